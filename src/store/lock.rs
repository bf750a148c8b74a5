//! Advisory locks: `flock` on files that are never unlinked.
//!
//! They are always taken in this order: imports, cluster, machines (sorted by name), addresses and ports,
//! image, CA, secrets; so two commands never wait for each other. Readers need none.
//!
//! A lock file is open without `O_CLOEXEC` on purpose. A short-lived child (qemu-img, mmdebstrap …)
//! that survives a killed forge still works on what the lock guards; holding its descriptor, it makes
//! the next command wait for it. Children that live on are started by [`forge_driver::process::detach`],
//! which drops the descriptor.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result, atomic};
use rustix::fs::FlockOperation;
use tokio::time::{Instant, sleep};

use super::Store;
use crate::event::Events;

/// What a lock guards, in the order in which locks are taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarded {
    /// Imports, of which there is one at a time.
    Imports,
    /// One cluster.
    Cluster(String),
    /// One machine.
    Machine(String),
    /// The allocation of addresses and ports.
    Addresses,
    /// The base images.
    Image,
    /// The certificate authority and the client pair.
    Ca,
    /// The sealed file of secrets.
    Credentials,
}

impl Guarded {
    fn file(&self) -> String {
        match self {
            Self::Imports => "imports.lock".to_owned(),
            Self::Cluster(name) => format!("cluster-{name}.lock"),
            Self::Machine(name) => format!("machine-{name}.lock"),
            Self::Addresses => "addresses.lock".to_owned(),
            Self::Image => "image.lock".to_owned(),
            Self::Ca => "ca.lock".to_owned(),
            Self::Credentials => "credentials.lock".to_owned(),
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Imports => "the import".to_owned(),
            Self::Cluster(name) => format!("cluster `{name}`"),
            Self::Machine(name) => format!("machine `{name}`"),
            Self::Addresses => "the addresses".to_owned(),
            Self::Image => "the base images".to_owned(),
            Self::Ca => "the certificate authority".to_owned(),
            Self::Credentials => "the sealed secrets".to_owned(),
        }
    }
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Unlocked by word, not by closing: a child started meanwhile by another task has inherited
        // the descriptor and must not keep what this process is done with. An error leaves the lock
        // to the end of the process.
        let _ = rustix::fs::flock(self.file.as_fd(), FlockOperation::Unlock);
    }
}

/// Takes the lock of `guarded`, waiting for whoever holds it for at most `patience`.
///
/// # Errors
/// [`Kind::Conflict`] that names the holder's pid when it is still held at the deadline.
pub async fn acquire(
    store: &Store,
    guarded: &Guarded,
    patience: Duration,
    events: &Events,
) -> Result<Lock> {
    let (path, file) = open(store, guarded)?;
    let deadline = Instant::now() + patience;
    let mut told = false;
    while !attempt(&path, &file)? {
        if Instant::now() >= deadline {
            let holder = holder(&path);
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} is busy: {holder} still holds it after {} s",
                    guarded.what(),
                    patience.as_secs()
                ),
            )
            .hint("wait for that process to end, or end it; then run the same command again"));
        }
        if !told {
            told = true;
            events
                .step(
                    &format!("waiting for {}", guarded.what()),
                    &holder(&path),
                    Some(deadline),
                )
                .await;
        }
        crate::interrupt::check()?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(taken(file))
}

/// Takes the lock of `guarded` when it is free; `None` when somebody holds it.
///
/// # Errors
/// When its file cannot be opened.
pub fn try_acquire(store: &Store, guarded: &Guarded) -> Result<Option<Lock>> {
    let (path, file) = open(store, guarded)?;
    Ok(attempt(&path, &file)?.then(|| taken(file)))
}

/// The file of a lock, which children are to inherit.
fn open(store: &Store, guarded: &Guarded) -> Result<(PathBuf, File)> {
    let path = store.root().join("locks").join(guarded.file());
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| {
            atomic::full(
                error,
                &format!("failed to open the lock `{}`", path.display()),
            )
        })?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).or_fail(Kind::Io, || {
        format!("failed to prepare the lock `{}`", path.display())
    })?;
    Ok((path, file))
}

/// Whether the lock was free, and is taken now.
fn attempt(path: &Path, file: &File) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => {
            Err(Error::new(Kind::Io, format!("failed to lock `{}`", path.display())).because(error))
        }
    }
}

/// A lock that this process has.
fn taken(mut file: File) -> Lock {
    // Who holds it, for the messages of others; that it cannot be written costs only their precision.
    let _ = file.set_len(0);
    let _ = file.rewind();
    let _ = writeln!(file, "{}", std::process::id());
    Lock { file }
}

/// Takes the locks of several machines, in the order of their names.
///
/// # Errors
/// As [`acquire`].
pub async fn acquire_machines(
    store: &Store,
    names: &[String],
    patience: Duration,
    events: &Events,
) -> Result<Vec<Lock>> {
    let mut sorted = names.to_vec();
    sorted.sort();
    sorted.dedup();
    let mut locks = Vec::with_capacity(sorted.len());
    for name in sorted {
        locks.push(acquire(store, &Guarded::Machine(name), patience, events).await?);
    }
    Ok(locks)
}

/// Takes the locks of clusters, then those of machines, each once and in order.
///
/// # Errors
/// As [`acquire`].
pub async fn acquire_all(
    store: &Store,
    clusters: &[String],
    machines: &[String],
    patience: Duration,
    events: &Events,
) -> Result<Vec<Lock>> {
    let sorted: BTreeSet<&String> = clusters.iter().collect();
    let mut locks = Vec::with_capacity(sorted.len() + machines.len());
    for name in sorted {
        locks.push(acquire(store, &Guarded::Cluster(name.clone()), patience, events).await?);
    }
    locks.extend(acquire_machines(store, machines, patience, events).await?);
    Ok(locks)
}

/// Names the process that holds the lock file at `path`: the one that wrote its pid there, or, when
/// that one is gone, a child of it that has inherited the descriptor.
fn holder(path: &Path) -> String {
    let recorded = fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(pid) = recorded
        && let Some(name) = command_of(pid)
    {
        return format!("pid {pid} ({name})");
    }
    match open_elsewhere(path) {
        Some((pid, name)) => format!("pid {pid} ({name}), left over from a forge that was killed,"),
        None => "another process".to_owned(),
    }
}

/// The first words of the command line of a living process.
fn command_of(pid: u32) -> Option<String> {
    let words = fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).ok()?;
    let text: Vec<String> = words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .take(3)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    (!text.is_empty()).then(|| text.join(" "))
}

/// A process other than this one that has `path` open (Linux: `/proc/PID/fd`).
fn open_elsewhere(path: &Path) -> Option<(u32, String)> {
    let wanted = fs::metadata(path).ok()?;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|fd| {
            fs::metadata(fd.path())
                .is_ok_and(|found| found.ino() == wanted.ino() && found.dev() == wanted.dev())
        });
        if holds {
            return Some((pid, command_of(pid).unwrap_or_default()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        (folder, store)
    }

    #[tokio::test]
    async fn a_held_lock_names_its_holder_at_the_deadline() {
        let (_folder, store) = store();
        let events = Events::silent();
        let machine = Guarded::Machine("n1".into());
        let held = acquire(&store, &machine, Duration::ZERO, &events)
            .await
            .expect("free");
        let error = acquire(&store, &machine, Duration::from_millis(120), &events)
            .await
            .expect_err("held");
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(
            error
                .message()
                .contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert!(try_acquire(&store, &machine).expect("opened").is_none());
        drop(held);
        let free = try_acquire(&store, &machine).expect("opened");
        assert!(free.is_some());
        drop(free);
        acquire(&store, &machine, Duration::ZERO, &events)
            .await
            .expect("free again");
    }

    #[tokio::test]
    async fn a_child_holds_the_lock_of_a_process_that_let_go_without_a_word() {
        let (_folder, store) = store();
        let events = Events::silent();
        let lock = acquire(&store, &Guarded::Image, Duration::ZERO, &events)
            .await
            .expect("free");
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("sleep");
        // As after kill -9: the descriptor is closed, nothing is unlocked by word.
        let path = store.root().join("locks/image.lock");
        let copy = lock.file.try_clone().expect("dup");
        std::mem::forget(lock);
        drop(copy);
        fs::write(&path, "999999999\n").expect("a pid that is gone");
        let pid = child.id();
        let found = open_elsewhere(&path).expect("the child");
        assert_eq!(found.0, pid);
        let error = acquire(&store, &Guarded::Image, Duration::from_millis(60), &events)
            .await
            .expect_err("the child works");
        assert!(error.message().contains(&format!("pid {pid}")), "{error}");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[tokio::test]
    async fn a_child_does_not_keep_what_was_unlocked_by_word() {
        let (_folder, store) = store();
        let events = Events::silent();
        let lock = acquire(&store, &Guarded::Addresses, Duration::ZERO, &events)
            .await
            .expect("free");
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("sleep");
        drop(lock);
        acquire(&store, &Guarded::Addresses, Duration::ZERO, &events)
            .await
            .expect("free again");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn the_order_is_the_documented_one() {
        let mut order = [
            Guarded::Ca,
            Guarded::Image,
            Guarded::Addresses,
            Guarded::Machine("b".into()),
            Guarded::Machine("a".into()),
            Guarded::Cluster("c".into()),
        ];
        order.sort();
        assert_eq!(
            order.map(|guarded| guarded.file()),
            [
                "cluster-c.lock",
                "machine-a.lock",
                "machine-b.lock",
                "addresses.lock",
                "image.lock",
                "ca.lock"
            ]
        );
    }
}
