//! Base images: built from packages or downloaded, kept in the store, shared by the overlays of machines.
//!
//! An image is a folder that appears by one rename when it is complete and is never changed afterwards.
//! Whoever builds, downloads or removes holds the lock of images; readers need none.

mod build;
mod checksum;
mod download;
mod mirrors;
mod pull;
mod record;
#[cfg(test)]
mod testing;

use std::fs;
use std::path::{Path, PathBuf};

use forge_driver::assets::Assets;
use forge_driver::{BaseImage, Context, Error, KernelFiles, Kind, Result, atomic};
use jiff::Timestamp;

pub use build::{BuildOptions, DEFAULT_NAME};
pub use checksum::Checksum;
pub use pull::{PullSource, Sum, catalogue};
pub use record::{FirstBoot, Image, ImageKind, RecordedFile};

use crate::store::{read_json, write_json};

const RECORD: &str = "image.json";
const DISK: &str = "disk.qcow2";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";

/// Where a long piece of work on an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: String,
    /// How much of it is done.
    pub done: Option<u64>,
    /// How much it is in all.
    pub total: Option<u64>,
}

/// The base images of a store.
#[derive(Clone, Debug)]
pub struct Images {
    root: PathBuf,
    assets: Assets,
}

impl Images {
    /// The images in the folder `root`; what is built comes from `assets`.
    pub fn new(root: PathBuf, assets: Assets) -> Self {
        Self { root, assets }
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// When a record is damaged or was written by a newer forge.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for id in self.ids()? {
            images.extend(self.read(&id)?);
        }
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// The image with this id, or the newest with this name. Its files are there and have the recorded
    /// lengths; when one was changed since, it is read through and compared with its checksum.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Corrupt`] when a file is not what was recorded.
    pub fn find(&self, name: &str) -> Result<Image> {
        let image = self.named(name)?;
        self.check(&image, false)?;
        Ok(image)
    }

    /// Reads every file of the image through and compares it with its checksum.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] names the file that is not what was recorded.
    pub fn verify(&self, image: &Image) -> Result<()> {
        self.check(image, true)
    }

    /// Removes an image by id or name, also when its record is damaged. The caller has made sure that no
    /// machine's disk lies over it.
    ///
    /// # Errors
    /// [`Kind::NotFound`], or what the file system reports.
    pub fn remove(&self, name: &str) -> Result<()> {
        let id = if self.ids()?.iter().any(|id| id == name) {
            name.to_owned()
        } else {
            self.named(name)?.id
        };
        // Renamed first: a reader never sees an image with files missing.
        let gone = self.root.join(format!(".removed-{id}"));
        let failed = || format!("failed to remove the image `{id}`");
        if gone.exists() {
            fs::remove_dir_all(&gone).or_fail(Kind::Io, failed)?;
        }
        fs::rename(self.root.join(&id), &gone).or_fail(Kind::Io, failed)?;
        atomic::sync_folder(&self.root)?;
        fs::remove_dir_all(&gone).or_fail(Kind::Io, failed)
    }

    /// The image as drivers take it.
    pub fn base(&self, image: &Image) -> BaseImage {
        let folder = self.root.join(&image.id);
        BaseImage {
            disk: folder.join(DISK),
            kernel: image.cmdline.as_ref().map(|cmdline| KernelFiles {
                kernel: folder.join(KERNEL),
                initrd: folder.join(INITRD),
                cmdline: cmdline.clone(),
            }),
            size: image.size,
        }
    }

    /// The kernel of any image that has one: what an accelerator is tried with.
    pub fn any_kernel(&self) -> Option<KernelFiles> {
        let all = self.list().unwrap_or_default();
        all.iter().find_map(|image| self.base(image).kernel)
    }

    fn ids(&self) -> Result<Vec<String>> {
        let failed = || format!("failed to list `{}`", self.root.display());
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).or_fail(Kind::Io, failed),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.or_fail(Kind::Io, failed)?.file_name();
            // Names with a dot in front are work that is not complete.
            if let Some(name) = name.to_str()
                && !name.starts_with('.')
            {
                ids.push(name.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }

    fn read(&self, id: &str) -> Result<Option<Image>> {
        let image: Option<Image> = read_json(&self.root.join(id).join(RECORD))
            .map_err(|error| error.context(format!("failed to read the image `{id}`")))?;
        if let Some(image) = &image
            && image.id != id
        {
            return Err(Error::new(
                Kind::Corrupt,
                format!("the record of the image `{id}` is that of `{}`", image.id),
            )
            .hint(format!("remove it with `forge image rm {id}`")));
        }
        Ok(image)
    }

    fn named(&self, name: &str) -> Result<Image> {
        if self.ids()?.iter().any(|id| id == name)
            && let Some(image) = self.read(name)?
        {
            return Ok(image);
        }
        self.list()?
            .into_iter()
            .find(|image| image.name == name)
            .ok_or_else(|| {
                Error::new(Kind::NotFound, format!("there is no image `{name}`")).hint(
                    "`forge image ls` shows those that are there, `forge image build` makes one",
                )
            })
    }

    fn check(&self, image: &Image, thorough: bool) -> Result<()> {
        for file in &image.files {
            let path = self.root.join(&image.id).join(&file.name);
            let damaged = |why: String| {
                Error::new(Kind::Corrupt, format!("the image `{}` is damaged", image.id))
                    .because(why)
                    .hint(format!(
                        "machines made from it cannot be trusted; remove it with `forge image rm {}`, then `forge image build`",
                        image.id
                    ))
            };
            if !path.is_file() {
                return Err(damaged(format!("`{}` is missing", file.name)));
            }
            let (length, changed) = record::stamp(&path)?;
            if length != file.length {
                return Err(damaged(format!(
                    "`{}` has {length} bytes instead of {}",
                    file.name, file.length
                )));
            }
            if (thorough || changed != file.changed) && checksum::sha256(&path)? != file.sha256 {
                return Err(damaged(format!(
                    "the contents of `{}` have changed",
                    file.name
                )));
            }
        }
        Ok(())
    }

    /// Turns the complete folder `work` into an image: checksums, record, sync, one rename.
    fn admit(&self, work: &Path, draft: Draft) -> Result<Image> {
        let mut files = Vec::new();
        for name in [DISK, KERNEL, INITRD] {
            let path = work.join(name);
            if !path.exists() {
                continue;
            }
            fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|error| {
                    atomic::full(error, &format!("failed to sync `{}`", path.display()))
                })?;
            let sha256 = checksum::sha256(&path)?;
            let (length, changed) = record::stamp(&path)?;
            files.push(RecordedFile {
                name: name.to_owned(),
                length,
                changed,
                sha256,
            });
        }
        let mut image = Image {
            id: String::new(),
            name: draft.name,
            kind: draft.kind,
            first_boot: draft.first_boot,
            size: draft.size,
            cmdline: draft.cmdline,
            created: Timestamp::now(),
            provenance: draft.provenance,
            files,
        };
        image.id = format!(
            "{}-{}",
            image.name,
            image.sha256().get(..12).unwrap_or_default()
        );
        let place = self.root.join(&image.id);
        if let Some(there) = self.ids()?.iter().find(|id| **id == image.id) {
            // The same contents: the folder that machines may use already stays.
            fs::remove_dir_all(work).or_fail(Kind::Io, || {
                format!("failed to remove `{}`", work.display())
            })?;
            return self.read(there)?.ok_or_else(|| {
                Error::new(Kind::Corrupt, format!("the image `{there}` has no record"))
                    .hint(format!("remove it with `forge image rm {there}`"))
            });
        }
        write_json(&work.join(RECORD), &image)?;
        crate::fault::point("before the image appears");
        fs::rename(work, &place).or_fail(Kind::Io, || {
            format!("failed to put the image at `{}`", place.display())
        })?;
        atomic::sync_folder(&self.root)?;
        crate::fault::point("after the image appears");
        Ok(image)
    }
}

/// An image that is complete but for its checksums.
struct Draft {
    name: String,
    kind: ImageKind,
    first_boot: FirstBoot,
    size: u64,
    cmdline: Option<String>,
    provenance: Vec<String>,
}

/// Refuses names that could not be a folder or an argument.
fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
        });
    if fits {
        return Ok(());
    }
    Err(
        Error::new(Kind::Usage, format!("`{name}` is not a name for an image"))
            .hint("lower-case letters, digits, `-` and `.`, at most 64, a letter or digit first"),
    )
}

#[cfg(test)]
mod tests;
