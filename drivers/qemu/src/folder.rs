//! The folder of one machine, and the two locks that say what is going on with it.

use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::hold::try_lock;
use forge_driver::{Claim, Context, Kind, Result, atomic, folder};
use tokio::time::{Instant, sleep};

use crate::vm::Vm;

/// How long a start waits for a lock that a reader may be testing this very moment.
const TEST_DEADLINE: Duration = Duration::from_secs(2);

/// The folder of one claim, and what of QEMU's lies in it besides the record.
#[derive(Debug)]
pub(crate) struct Folder(folder::Folder<Vm>);

impl Deref for Folder {
    type Target = folder::Folder<Vm>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Folder {
    /// The folder of `claim` in the driver's directory.
    pub(crate) fn new(home: &Path, claim: Claim) -> Self {
        Self(folder::Folder::new(home, claim))
    }

    /// The overlay.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path().join("disk.qcow2")
    }

    /// A copy of the disk that needs no base, while it is taken elsewhere.
    pub(crate) fn packed(&self) -> PathBuf {
        self.path().join(".packed.qcow2")
    }

    /// The NoCloud medium.
    pub(crate) fn seed(&self) -> PathBuf {
        self.path().join("seed.iso")
    }

    /// What the guest writes to its serial port.
    pub(crate) fn console(&self) -> PathBuf {
        self.path().join("console.log")
    }

    /// What QEMU itself has to say once it runs.
    pub(crate) fn log(&self) -> PathBuf {
        self.path().join("qemu.log")
    }

    /// The process id, written by QEMU and removed by it when it ends.
    pub(crate) fn pid(&self) -> PathBuf {
        self.path().join("vm.pid")
    }

    /// A process of this machine lives. The lock is the process's own: it goes with it, however it ends.
    pub(crate) fn running(&self) -> Result<bool> {
        match File::open(self.lock_path()) {
            Ok(file) => Ok(!try_lock(&file)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).or_fail(Kind::Io, || {
                format!("failed to open `{}`", self.lock_path().display())
            }),
        }
    }

    /// Takes the lock that the machine's process is to hold; `None` when a process holds it.
    pub(crate) async fn run_lock(&self) -> Result<Option<OwnedFd>> {
        let path = self.lock_path();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| {
                atomic::full(error, &format!("failed to open `{}`", path.display()))
            })?;
        let until = Instant::now() + TEST_DEADLINE;
        loop {
            if try_lock(&file)? {
                return Ok(Some(file.into()));
            }
            if Instant::now() > until {
                return Ok(None);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until no process of this machine lives; says whether that came true.
    pub(crate) async fn stopped_within(&self, deadline: Duration) -> Result<bool> {
        let until = Instant::now() + deadline;
        while self.running()? {
            if Instant::now() > until {
                return Ok(false);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(true)
    }

    fn lock_path(&self) -> PathBuf {
        self.path().join("vm.lock")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vm::tests::{spec, vm};

    #[tokio::test]
    async fn a_record_of_another_machine_is_refused() {
        let home = tempfile::tempdir().expect("folder");
        let theirs = spec();
        let folder = Folder::new(home.path(), Claim::random());
        assert!(folder.read().expect("reads").is_none());
        assert!(folder.work().await.expect("asks").is_none());
        fs::create_dir(folder.path()).expect("mkdir");
        folder.write(&vm(&theirs)).expect("writes");
        assert_eq!(folder.read().expect_err("foreign").kind(), Kind::Refused);
    }

    #[tokio::test]
    async fn the_lock_says_whether_a_process_lives() {
        let home = tempfile::tempdir().expect("folder");
        let folder = Folder::new(home.path(), Claim::random());
        fs::create_dir(folder.path()).expect("mkdir");
        assert!(!folder.running().expect("asks"));
        let lock = folder.run_lock().await.expect("asks").expect("free");
        assert!(folder.running().expect("asks"));
        assert!(
            !folder
                .stopped_within(Duration::from_millis(30))
                .await
                .expect("asks")
        );
        drop(lock);
        assert!(
            folder
                .stopped_within(Duration::from_secs(5))
                .await
                .expect("asks")
        );
    }

    #[tokio::test]
    async fn one_command_at_a_time_works_on_a_machine() {
        let home = tempfile::tempdir().expect("folder");
        let folder = Folder::new(home.path(), Claim::random());
        fs::create_dir(folder.path()).expect("mkdir");
        let work = folder.work().await.expect("asks").expect("there");
        assert!(folder.worked_on().expect("asks"));
        drop(work);
        assert!(!folder.worked_on().expect("asks"));
    }
}
