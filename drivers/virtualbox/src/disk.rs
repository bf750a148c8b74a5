//! Disks: the base image converted once, and for each machine a differencing image over it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{BaseImage, Error, Kind, Result, atomic, hold, process};

use crate::info::{blocks, value};
use crate::manage::{Manage, text};

/// The program that reads the images that forge builds.
pub(crate) const CONVERTER: &str = "qemu-img";

/// How long the conversion of a base image may take.
const CONVERSION: Duration = Duration::from_secs(1800);

/// The converted base images of a store.
#[derive(Clone, Debug)]
pub(crate) struct Bases {
    folder: PathBuf,
    images: PathBuf,
}

impl Bases {
    /// Those in the driver's directory, of the images of the store.
    pub(crate) fn new(dir: &Path, store: &Path) -> Self {
        Self {
            folder: dir.join("bases"),
            images: store.join("images"),
        }
    }

    /// Where the base of the image `id` is.
    pub(crate) fn file(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.vdi"))
    }

    /// The base of the image `id` is there, whole. It appears at once: made under another name, then renamed.
    ///
    /// # Errors
    /// What the conversion reports, also when the image is damaged.
    pub(crate) async fn ensure(&self, id: &str, image: &BaseImage) -> Result<PathBuf> {
        atomic::private_folder(&self.folder)?;
        let work = hold::work_within(&self.folder, CONVERSION).await?;
        let file = self.file(id);
        if file.exists() {
            return Ok(file);
        }
        let failed = || {
            format!(
                "failed to convert the base image `{}`",
                image.disk.display()
            )
        };
        let unfinished = self.folder.join(".new.vdi");
        let held = work.as_ref().ok_or_else(|| {
            Error::new(Kind::Io, format!("`{}` was removed", self.folder.display()))
        })?;
        let words = ["convert", "-f", "qcow2", "-O", "vdi"];
        let files = [text(&image.disk)?, text(&unfinished)?];
        // One that outlives a killed forge keeps the next from writing to the same file.
        process::run_holding(
            Path::new(CONVERTER),
            &[&words[..], &files].concat(),
            held.shared()?,
            |_| {},
            CONVERSION,
        )
        .await?
        .success("`qemu-img convert`")
        .map_err(|error| {
            error.context(failed()).hint(
                "when the image is damaged: `forge image rm` it, then run the same command again",
            )
        })?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&unfinished, private)
            .and_then(|()| fs::File::open(&unfinished)?.sync_all())
            .and_then(|()| fs::rename(&unfinished, &file))
            .map_err(|error| atomic::full(error, &failed()))?;
        atomic::sync_folder(&self.folder)?;
        Ok(file)
    }

    /// VirtualBox forgets the base of the image `id` when it is `unused`, asked while nobody else uses a base
    /// anew. The file stays for the next machine, as long as the image does.
    ///
    /// # Errors
    /// What VirtualBox said.
    pub(crate) async fn release(
        &self,
        manage: &Manage,
        id: &str,
        unused: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        atomic::private_folder(&self.folder)?;
        let _work = hold::work_within(&self.folder, CONVERSION).await?;
        if !unused()? {
            return Ok(());
        }
        let file = self.file(id);
        close(manage, Medium::Disk, &file).await?;
        if !self.images.join(id).exists() {
            atomic::gone(fs::remove_file(&file), &file)?;
        }
        Ok(())
    }
}

/// Makes the disk of a machine, of `bytes`: a differencing image, which takes what the machine writes.
///
/// # Errors
/// What VirtualBox said.
pub(crate) async fn differ(manage: &Manage, disk: &Path, base: &Path, bytes: u64) -> Result<()> {
    let disk = text(disk)?;
    let make = [
        "createmedium",
        "disk",
        "--format",
        "VDI",
        "--filename",
        disk,
    ];
    manage
        .call(&[&make[..], &["--diffparent", text(base)?]].concat())
        .await
        .map_err(|error| {
            let what = format!("failed to make a disk that differs from `{}`", base.display());
            error.context(what).hint("when that file is damaged and no other machine's disk differs from it: remove it, then run the same command again, which makes it anew")
        })?;
    let size = bytes.to_string();
    manage
        .call(&["modifymedium", "disk", disk, "--resizebyte", &size])
        .await
        .map(drop)
}

/// A kind of medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A disk.
    Disk,
    /// What lies in a drive for optical discs.
    Disc,
}

/// VirtualBox forgets a medium; its file stays. Unknown to it: succeeds.
///
/// # Errors
/// What VirtualBox said.
pub(crate) async fn close(manage: &Manage, medium: Medium, file: &Path) -> Result<()> {
    let (list, kind) = match medium {
        Medium::Disk => ("hdds", "disk"),
        Medium::Disc => ("dvds", "dvd"),
    };
    let Some(id) = registered(&manage.call(&["list", list]).await?, file) else {
        return Ok(());
    };
    match manage.call(&["closemedium", kind, &id]).await {
        // VirtualBox forgets a base by itself when the last image that differs from it goes.
        Err(error) if registered(&manage.call(&["list", list]).await?, file).is_some() => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// How many disks in a machine's folder are closed at most: one, and one for each snapshot of each disk.
const DISKS: usize = 256;

/// VirtualBox forgets every disk whose file is below `folder`, those that differ from others first.
///
/// # Errors
/// What VirtualBox said, also when something elsewhere differs from one of them.
pub(crate) async fn close_below(manage: &Manage, folder: &Path) -> Result<()> {
    let mut failed = None;
    for _ in 0..DISKS {
        let Some(id) = outermost(&manage.call(&["list", "hdds"]).await?, folder) else {
            return Ok(());
        };
        if let Some((last, error)) = failed.take()
            && last == id
        {
            return Err(error);
        }
        if let Err(error) = manage.call(&["closemedium", "disk", &id]).await {
            failed = Some((id, error));
        }
    }
    Err(Error::new(
        Kind::Failed,
        format!(
            "VirtualBox has more than {DISKS} disks below `{}`",
            folder.display()
        ),
    ))
}

/// A disk below `folder`, by its UUID; one from which no other there differs, when there is such a one.
fn outermost(text: &str, folder: &Path) -> Option<String> {
    let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let all = blocks(text, "UUID");
    let ours: Vec<&Vec<(String, String)>> = all
        .iter()
        .filter(|block| {
            value(block, "Location").is_some_and(|location| {
                let location = Path::new(location);
                location.starts_with(folder) || location.starts_with(&real)
            })
        })
        .collect();
    let parents: Vec<&str> = ours
        .iter()
        .filter_map(|block| value(block, "Parent UUID"))
        .collect();
    let id = |block: &&Vec<(String, String)>| value(block, "UUID").map(str::to_owned);
    let leaf = ours
        .iter()
        .find(|block| value(block, "UUID").is_some_and(|id| !parents.contains(&id)));
    leaf.or(ours.first()).and_then(id)
}

/// The UUID of the medium at `file` in what `list hdds` or `list dvds` says.
fn registered(text: &str, file: &Path) -> Option<String> {
    let real = fs::canonicalize(file).ok();
    blocks(text, "UUID")
        .iter()
        .find(|block| {
            value(block, "Location").is_some_and(|location| {
                let location = Path::new(location);
                location == file || (real.is_some() && real == fs::canonicalize(location).ok())
            })
        })
        .and_then(|block| value(block, "UUID").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_closed_from_the_outermost_one() {
        let disk = |id: &str, parent: &str, location: &str| {
            format!(
                "UUID:           {id}\nParent UUID:    {parent}\nState:          created\nLocation:       {location}\n\n"
            )
        };
        let base = disk("0", "base", "/h/bases/x.vdi");
        let own = disk("1", "0", "/h/c/disk.vdi");
        let snapshot = disk("2", "1", "/h/c/vm/n1/Snapshots/{2}.vdi");
        let folder = Path::new("/h/c");
        let first = outermost(&format!("{base}{own}{snapshot}"), folder);
        assert_eq!(first.as_deref(), Some("2"));
        assert_eq!(
            outermost(&format!("{base}{own}"), folder).as_deref(),
            Some("1")
        );
        assert_eq!(outermost(&base, folder), None);
    }

    #[test]
    fn a_medium_is_found_by_its_place() {
        let text = "UUID:           8407b95b-d6c0-4ae0-a7a1-329a1c9f536d\nParent UUID:    base\n\
            State:          created\nLocation:       /h/a: b.vdi\n\n\
            UUID:           b95d7ba7-5167-41ad-912d-e0bc7c402603\nParent UUID:    base\nLocation:       /h/c.vdi\n";
        assert_eq!(
            registered(text, Path::new("/h/c.vdi")).as_deref(),
            Some("b95d7ba7-5167-41ad-912d-e0bc7c402603")
        );
        assert_eq!(
            registered(text, Path::new("/h/a: b.vdi")).as_deref(),
            Some("8407b95b-d6c0-4ae0-a7a1-329a1c9f536d")
        );
        assert_eq!(registered(text, Path::new("/h/d.vdi")), None);
    }
}
