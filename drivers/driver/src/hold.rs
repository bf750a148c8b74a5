//! One command at a time works on the folder of a machine.
//!
//! The lock is `flock` on the folder itself: it goes with the process, however that ends.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use crate::error::{Context, Error, Kind, Result};

/// How long one command waits for another that works on the same machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// One command works on this machine; let go when dropped or when the process ends.
#[derive(Debug)]
pub struct Work {
    held: File,
}

impl Work {
    /// The lock for a child: it lasts as long as one of both has it.
    ///
    /// # Errors
    /// When this process may open no more.
    pub fn shared(&self) -> Result<OwnedFd> {
        self.held
            .try_clone()
            .map(OwnedFd::from)
            .or_fail(Kind::Io, || "failed to hand a lock on".to_owned())
    }
}

/// Keeps other commands from working on what lies in `folder`; `None` when it does not exist.
///
/// # Errors
/// [`Kind::Timeout`] when another command does not finish.
pub async fn work(folder: &Path) -> Result<Option<Work>> {
    work_within(folder, DEADLINE).await
}

/// As [`work`], for work that takes longer than one machine's.
///
/// # Errors
/// As [`work`].
pub async fn work_within(folder: &Path, deadline: Duration) -> Result<Option<Work>> {
    let until = Instant::now() + deadline;
    loop {
        let Some(file) = open(folder)? else {
            return Ok(None);
        };
        if try_lock(&file)? {
            // The folder may have been removed, and made again, while we waited.
            if same_file(&file, folder) {
                return Ok(Some(Work { held: file }));
            }
            continue;
        }
        if Instant::now() > until {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "another command has been working on `{}` for {} s",
                    folder.display(),
                    deadline.as_secs()
                ),
            ));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Another command works on what lies in `folder` right now.
///
/// # Errors
/// When it cannot be opened.
pub fn worked_on(folder: &Path) -> Result<bool> {
    match open(folder)? {
        Some(file) => Ok(!try_lock(&file)?),
        None => Ok(false),
    }
}

/// Takes an exclusive lock on an open file, if nobody has it.
///
/// # Errors
/// When the file system has no locks.
pub fn try_lock(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => {
            Err(Error::new(Kind::Io, "failed to lock a file of a machine").because(error))
        }
    }
}

fn open(folder: &Path) -> Result<Option<File>> {
    match File::open(folder) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fail(Kind::Io, || {
            format!("failed to open `{}`", folder.display())
        }),
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
