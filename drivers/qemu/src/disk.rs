//! The disk of one machine: a qcow2 overlay over the base image.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use forge_driver::{BaseImage, Context, Error, Kind, Result, atomic, process};
use tokio::process::Command;

/// How long qemu-img may take; an overlay is a few hundred kilobytes, whatever its virtual size.
const DEADLINE: Duration = Duration::from_secs(60);

/// The program that makes disks, from the folder of the QEMU program that the user chose if there is
/// one, so that the two are of one version.
pub(crate) fn tool(binary: &Path) -> PathBuf {
    let beside = binary.with_file_name("qemu-img");
    if binary.components().count() > 1 && process::which(&beside).is_some() {
        return beside;
    }
    "qemu-img".into()
}

/// Makes the overlay `disk` of `bytes` over `image`, unless it is there. It appears whole: made under
/// another name, then renamed. The path of the base inside it is relative, so that a store can move.
///
/// # Errors
/// What qemu-img reports.
pub(crate) async fn make(binary: &Path, disk: &Path, image: &BaseImage, bytes: u64) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    let folder = disk.parent().unwrap_or(Path::new("/"));
    let base = relative(folder, &image.disk)?;
    let unfinished = folder.join(".new-disk.qcow2");
    let mut command = Command::new(tool(binary));
    command
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(&base)
        .arg(&unfinished)
        .arg(bytes.max(image.size).to_string());
    process::run(command, None, DEADLINE)
        .await?
        .success("`qemu-img create`")
        .map_err(|error| error.context(format!("failed to make the disk `{}`", disk.display())))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&unfinished, private)
        .and_then(|()| fs::File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, disk))
        .map_err(|error| {
            atomic::full(
                error,
                &format!("failed to make the disk `{}`", disk.display()),
            )
        })?;
    atomic::sync_folder(folder)
}

/// The path that leads from `folder` to `file`, both of which exist.
fn relative(folder: &Path, file: &Path) -> Result<PathBuf> {
    let real = |path: &Path| {
        fs::canonicalize(path).or_fail(Kind::NotFound, || {
            format!("failed to find `{}`", path.display())
        })
    };
    Ok(between(&real(folder)?, &real(file)?))
}

fn between(folder: &Path, file: &Path) -> PathBuf {
    let from: Vec<Component<'_>> = folder.components().collect();
    let to: Vec<Component<'_>> = file.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}

/// An error unless the base image is there and its disk fits into `bytes`.
pub(crate) fn fits(image: &BaseImage, bytes: u64) -> Result<()> {
    if !image.disk.is_file() {
        return Err(Error::new(
            Kind::Precheck,
            format!("the base image `{}` is missing", image.disk.display()),
        )
        .hint("run `forge image ls` to see what there is, `forge image build` to make one"));
    }
    if bytes < image.size {
        return Err(Error::new(
            Kind::Precheck,
            format!(
                "a disk of {} is smaller than the base image, which needs {}",
                mib(bytes),
                mib(image.size)
            ),
        )
        .hint(format!(
            "give at least `--qemu-disk-size {}G`",
            image.size.div_ceil(1 << 30)
        )));
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_base_image_is_relative() {
        let way = between(
            Path::new("/h/.forge/drivers/qemu/c"),
            Path::new("/h/.forge/images/i/disk.qcow2"),
        );
        assert_eq!(way, Path::new("../../../images/i/disk.qcow2"));
        assert_eq!(between(Path::new("/a"), Path::new("/a/b")), Path::new("b"));
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let image = BaseImage {
            disk: file.path().to_owned(),
            kernel: None,
            size: 8 << 30,
        };
        fits(&image, 8 << 30).expect("fits");
        let error = fits(&image, 4 << 30).expect_err("too small");
        assert_eq!(error.kind(), Kind::Precheck);
        assert_eq!(
            error.deepest_hint(),
            Some("give at least `--qemu-disk-size 8G`")
        );
        let none = BaseImage {
            disk: "/nonexistent".into(),
            ..image
        };
        assert_eq!(
            fits(&none, 8 << 30).expect_err("missing").kind(),
            Kind::Precheck
        );
    }
}
