//! The folder of one machine in a driver's directory, and the record in it.

use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::claim::Claim;
use crate::error::{Context, Error, Kind, Result};
use crate::hold::{self, Work};
use crate::{atomic, versioned};

/// What a driver remembers of one machine.
pub trait Record: Serialize + DeserializeOwned {
    /// The name of its file.
    const FILE: &str;
    /// The format that is written, and the newest that is read.
    const FORMAT: u32;

    /// The identity of the machine.
    fn claim(&self) -> Claim;

    /// Reads the record that `text` holds.
    ///
    /// # Errors
    /// As [`versioned::parse`].
    fn parse(text: &[u8]) -> Result<Self> {
        versioned::parse(text, Self::FORMAT, "a machine's record")
    }
}

/// The folder of one claim, with its record. It may not exist.
#[derive(Debug)]
pub struct Folder<R> {
    path: PathBuf,
    claim: Claim,
    record: PhantomData<R>,
}

impl<R: Record> Folder<R> {
    /// The folder of `claim` in the driver's directory.
    #[must_use]
    pub fn new(home: &Path, claim: Claim) -> Self {
        Self {
            path: home.join(claim.to_string()),
            claim,
            record: PhantomData,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn claim(&self) -> Claim {
        self.claim
    }

    /// The record, or `None` when nothing was made under this claim.
    ///
    /// # Errors
    /// [`Kind::Refused`] when the record is another machine's; what [`Record::parse`] reports.
    pub fn read(&self) -> Result<Option<R>> {
        let file = self.path.join(R::FILE);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error)
                    .or_fail(Kind::Io, || format!("failed to read `{}`", file.display()));
            }
        };
        let record = R::parse(&text)
            .map_err(|error| error.context(format!("failed to read `{}`", file.display())))?;
        if record.claim() != self.claim {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "`{}` belongs to another machine: it carries the claim `{}`",
                    self.path.display(),
                    record.claim()
                ),
            )
            .hint("look at that folder by hand: forge does not touch what is not its own"));
        }
        Ok(Some(record))
    }

    /// The record of a machine that must be there.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not, else as [`Self::read`].
    pub fn demand(&self) -> Result<R> {
        self.read()?.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                format!(
                    "there is no virtual machine with the claim `{}`",
                    self.claim
                ),
            )
        })
    }

    /// Writes the record; the folder is there.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn write(&self, record: &R) -> Result<()> {
        atomic::write_json(&self.path.join(R::FILE), record, "a machine's record")
    }

    /// Keeps other commands from working on this machine; `None` when the folder does not exist.
    ///
    /// # Errors
    /// [`Kind::Timeout`] when another command does not finish.
    pub async fn work(&self) -> Result<Option<Work>> {
        hold::work(&self.path).await
    }

    /// Another command works on this machine right now.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn worked_on(&self) -> Result<bool> {
        hold::worked_on(&self.path)
    }

    /// Removes the folder and everything in it. Gone already: succeeds.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn remove(&self) -> Result<()> {
        atomic::gone(fs::remove_dir_all(&self.path), &self.path)
    }
}

/// The records in a driver's directory that can be read.
///
/// # Errors
/// When the directory cannot be listed.
pub fn records<R: Record>(home: &Path) -> Result<Vec<R>> {
    let entries = match fs::read_dir(home) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).or_fail(Kind::Io, || format!("failed to list `{}`", home.display()));
        }
    };
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<Claim>().ok())
        .filter_map(|claim| Folder::new(home, claim).read().ok()?)
        .collect())
}
