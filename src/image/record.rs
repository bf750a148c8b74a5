//! What is remembered of a base image: `image.json` beside its disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forge_driver::{Context, Kind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A base image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name of its folder, unique for its contents: the overlays of machines name it.
    pub id: String,
    /// The visible name; of several with one name the newest is meant.
    pub name: String,
    /// Where it came from.
    pub kind: ImageKind,
    /// What reads the seed at the first boot.
    pub first_boot: FirstBoot,
    /// The size that a machine sees, in bytes.
    pub size: u64,
    /// The command line for its kernel files; `None` when it only boots by its own bootloader.
    pub cmdline: Option<String>,
    /// When it was made here.
    pub created: Timestamp,
    /// What it was made of: suite, mirrors or address.
    pub provenance: Vec<String>,
    /// `disk.qcow2`, `vmlinuz`, `initrd.img`: as they were recorded.
    pub files: Vec<RecordedFile>,
}

/// Where a base image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// Made here from packages.
    Built,
    /// A distribution's own.
    Downloaded,
}

/// What reads the NoCloud seed at the first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstBoot {
    /// The light agent in the images that forge builds.
    ForgeSeed,
    /// cloud-init itself.
    CloudInit,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// When it was last changed, in nanoseconds since 1970: while this and the length are the same, the
    /// contents are taken to be the same.
    pub changed: i128,
    /// The SHA-256 of its contents.
    pub sha256: String,
}

impl Image {
    /// The SHA-256 of the disk.
    pub fn sha256(&self) -> &str {
        self.files
            .iter()
            .find(|file| file.name == super::DISK)
            .map_or("", |file| file.sha256.as_str())
    }
}

/// Length and time of the last change of a file.
pub(super) fn stamp(path: &Path) -> Result<(u64, i128)> {
    let meta =
        fs::metadata(path).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))?;
    Ok((
        meta.len(),
        i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
    ))
}
