//! The base image as a volume: brought to each host once, and taken away with the last machine on it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{BaseImage, Context, Error, Kind, Result, atomic, hold};
use serde::{Deserialize, Serialize};

use crate::storage::{Copy, Pool};

/// How long others may take to bring the same image.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What travels to another host at once. A piece that was cut off is sent again, so it is small next to an image;
/// each costs a moment of libvirt's, so it is not smaller.
const PIECE: u64 = 32 << 20;

/// A piece that was read back wrong is sent so often in all.
const TRIES: u32 = 3;

const FORMAT: u32 = 1;

/// `bases/DAEMON/POOL.VOLUME`: how far an image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// The length of the file here.
    size: u64,
    /// So much of it, from its beginning, is there as it should be.
    arrived: u64,
    /// What the volume looked like when it was whole: nobody writes to it afterwards.
    #[serde(default)]
    whole: Option<Stamp>,
}

/// By which a volume that was cut, replaced or written to is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// The length of its file.
    length: String,
    /// When it was changed.
    changed: String,
}

/// Reads them in a volume's description (<https://libvirt.org/formatstorage.html#storage-volume-general-metadata>).
fn stamp(description: &str) -> Option<Stamp> {
    let document = roxmltree::Document::parse(description).ok()?;
    let of = |name: &str| {
        let node = document
            .descendants()
            .find(|node| node.has_tag_name(name))?;
        Some(node.text()?.trim().to_owned())
    };
    Some(Stamp {
        length: of("physical")?,
        changed: of("mtime")?,
    })
}

impl Pool<'_> {
    fn note(&self, notes: &Path, name: &str) -> PathBuf {
        notes.join(format!("{}.{name}", self.name))
    }

    /// What a volume looks like; `None` when that cannot be told, as of one whose file is gone.
    async fn stamp(&self, name: &str) -> Result<Option<Stamp>> {
        let words = ["vol-dumpxml", name, "--pool", self.name];
        match self.virsh.call(&words).await {
            Ok(text) => Ok(stamp(&text)),
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The base image as the volume `name`, brought when it is not there whole, or not any more: machines whose
    /// disks lie over it find what they knew. `notes` is a folder in which it
    /// is noted how far it has come.
    ///
    /// To another host it goes in pieces. Each is read back and compared before it is noted as arrived: what was
    /// cut off goes on with the first piece that was not, and what is noted is the same there as here. That
    /// costs the way twice, once for each host. Rejected: asking that host for a sum, since the files of a pool
    /// are root's and the user who comes by SSH need not be; trusting the copy, since SSH guards the way and
    /// nobody the disk at its end.
    ///
    /// # Errors
    /// What libvirt said; [`Kind::Corrupt`] when a piece arrives as something else again and again.
    pub(crate) async fn base(&self, name: &str, image: &BaseImage, notes: &Path) -> Result<()> {
        atomic::private_folder(notes)?;
        let _work = hold::work_within(notes, PATIENCE).await?;
        let size = fs::metadata(&image.disk)
            .or_fail(Kind::NotFound, || {
                format!("failed to find the base image `{}`", image.disk.display())
            })?
            .len();
        let path = self.note(notes, name);
        let there = self.has(name).await?;
        let mut known = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Note>(&text).ok())
            .filter(|note| there && note.format == FORMAT && note.size == size);
        let stamped = known.as_ref().filter(|note| note.arrived == size);
        if let Some(whole) = stamped.and_then(|note| note.whole.clone()) {
            if self.stamp(name).await? == Some(whole) {
                return Ok(());
            }
            known = None;
        }
        let mut note = match known {
            Some(note) => note,
            None => {
                atomic::gone(fs::remove_file(&path), &path)?;
                if there {
                    self.delete(name).await?;
                }
                // As raw bytes; libvirt reads the format from the file itself afterwards.
                self.create(name, size).await?;
                let note = Note {
                    format: FORMAT,
                    size,
                    arrived: 0,
                    whole: None,
                };
                atomic::write_json(&path, &note, "how far an image has come")?;
                note
            }
        };
        let brought = |error: Error| error.context("failed to bring the base image to libvirt");
        while note.arrived < size {
            note.arrived = if self.virsh.uri().over_ssh() {
                self.piece(name, &image.disk, note.arrived, notes)
                    .await
                    .map_err(brought)?
            } else {
                let file = image.disk.to_string_lossy();
                self.virsh
                    .transfer(&["vol-upload", name, &file, "--pool", self.name, "--sparse"])
                    .await
                    .map_err(brought)?;
                size
            };
            atomic::write_json(&path, &note, "how far an image has come")?;
        }
        note.whole = self.stamp(name).await?;
        atomic::write_json(&path, &note, "how far an image has come")
    }

    /// Brings the piece of `file` that begins at `from`, as it is; where the next one begins.
    async fn piece(&self, name: &str, file: &Path, from: u64, folder: &Path) -> Result<u64> {
        let bytes = read(file, from)?;
        let (offset, length) = (from.to_string(), bytes.len().to_string());
        let place = [
            "--pool", self.name, "--offset", &offset, "--length", &length,
        ];
        let copy = Copy::new(folder.join(".piece"), b"")?;
        let back = copy.path().to_string_lossy();
        for _ in 0..TRIES {
            let words = [&["vol-upload", name, "/dev/stdin"][..], &place].concat();
            self.virsh.send(&words, &bytes).await?;
            let words = [&["vol-download", name, &back][..], &place].concat();
            self.virsh.transfer(&words).await?;
            let arrived =
                fs::read(copy.path()).or_fail(Kind::Io, || format!("failed to read `{back}`"))?;
            if arrived == bytes {
                return Ok(from + bytes.len() as u64);
            }
        }
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "the volume `{name}` at `{}` does not keep what is written to it",
                self.virsh.uri()
            ),
        )
        .because(format!(
            "{length} bytes from {offset} on were read back as something else, {TRIES} times"
        ))
        .hint("look at the disk of that host"))
    }

    /// Removes the base image `name`, when it is `unused`: asked while nobody else brings or drops one.
    ///
    /// # Errors
    /// What libvirt said. Gone already: succeeds.
    pub(crate) async fn drop_base(
        &self,
        name: &str,
        notes: &Path,
        unused: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        atomic::private_folder(notes)?;
        let _work = hold::work_within(notes, PATIENCE).await?;
        if !unused()? {
            return Ok(());
        }
        let note = self.note(notes, name);
        atomic::gone(fs::remove_file(&note), &note)?;
        self.delete(name).await
    }
}

/// The piece of a file that begins at `from`.
fn read(file: &Path, from: u64) -> Result<Vec<u8>> {
    let failed = || format!("failed to read `{}`", file.display());
    let mut source = File::open(file).or_fail(Kind::Io, failed)?;
    source
        .seek(SeekFrom::Start(from))
        .or_fail(Kind::Io, failed)?;
    let mut bytes = Vec::new();
    source
        .take(PIECE)
        .read_to_end(&mut bytes)
        .or_fail(Kind::Io, failed)?;
    if bytes.is_empty() {
        return Err(Error::new(Kind::Io, failed()).because("it became shorter meanwhile"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_was_changed_is_known() {
        let text = |length: u64, changed: &str| {
            format!(
                "<volume type='file'><name>b</name><physical unit='bytes'>{length}</physical>\
                 <target><timestamps><mtime>{changed}</mtime><ctime>9</ctime></timestamps></target></volume>"
            )
        };
        let first = stamp(&text(42, "1.5")).expect("a stamp");
        assert_eq!(stamp(&text(42, "1.5")), Some(first.clone()));
        assert_ne!(stamp(&text(41, "1.5")), Some(first.clone()));
        assert_ne!(stamp(&text(42, "1.6")), Some(first));
        assert_eq!(stamp("<volume/>"), None);
        assert_eq!(stamp("garbage"), None);
    }
}
