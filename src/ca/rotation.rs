//! A CA gives way to another.
//!
//! `certs/next/` is the intent: while it is there, it holds the CA that signs, and machines are given certificates of
//! it one after another. Each machine is talked with by the files in its own folder, so those that still wait go on
//! with the earlier CA. Once no machine trusts that one, the files move to `certs/`, and `next/` goes as a whole. A kill
//! anywhere leaves either CA complete, and the next command goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::atomic::{self, NewFile};
use forge_driver::{Context, Kind, Result};

use super::{Authority, fingerprint, read, signing};
use crate::event::Events;
use crate::fault;
use crate::machine::Record;
use crate::store::lock::{Guarded, acquire};
use crate::store::{Store, write_files};

/// The files of an authority, with their modes; keys before what they belong to.
const FILES: [(&str, u32); 4] = [
    ("ca-key.pem", 0o600),
    ("ca.pem", 0o644),
    ("key.pem", 0o600),
    ("cert.pem", 0o644),
];

/// Where the next CA is made.
fn next(store: &Store) -> PathBuf {
    store.certs_dir().join("next")
}

/// Where what is left of a rotation that is over goes.
fn over(store: &Store) -> PathBuf {
    store.certs_dir().join(".over")
}

/// Whether a CA gives way to another.
pub fn under_way(store: &Store) -> bool {
    next(store).exists()
}

/// Whether this CA is the store's, and another is taking its place.
///
/// # Errors
/// When the files cannot be read.
pub fn gives_way(store: &Store, ca: &str) -> Result<bool> {
    Ok(under_way(store) && read(&store.certs_dir().join("ca.pem"))?.as_deref() == Some(ca))
}

/// The folder of the CA that signs from now on.
pub(super) fn folder(store: &Store) -> PathBuf {
    if under_way(store) {
        next(store)
    } else {
        store.certs_dir()
    }
}

/// Begins, or goes on with what was begun: the authority that signs from now on.
///
/// # Errors
/// When the lock is not had within `patience`, or files cannot be read or written.
pub async fn begin(store: &Store, patience: Duration, events: &Events) -> Result<Authority> {
    let _lock = acquire(store, &Guarded::Ca, patience, events).await?;
    // There may be no CA at all yet, and then nothing has to give way.
    signing(store)?;
    begin_held(store)?;
    signing(store)
}

/// [`begin`], by whoever holds the lock.
pub(super) fn begin_held(store: &Store) -> Result<()> {
    fault::point("before beginning a rotation");
    atomic::private_folder(&next(store))?;
    atomic::sync_folder(&store.certs_dir())?;
    fault::point("after beginning a rotation");
    Ok(())
}

/// Ends it when no machine trusts the earlier CA any more. The names of those that do.
///
/// # Errors
/// As [`begin`].
pub async fn finish(store: &Store, patience: Duration, events: &Events) -> Result<Vec<String>> {
    let _lock = acquire(store, &Guarded::Ca, patience, events).await?;
    finish_held(store)
}

/// [`finish`], by whoever holds the lock.
pub(super) fn finish_held(store: &Store) -> Result<Vec<String>> {
    tidy(store)?;
    if !under_way(store) {
        return Ok(Vec::new());
    }
    let (folder, next) = (store.certs_dir(), next(store));
    let mut files = Vec::new();
    for (name, mode) in FILES {
        // Before all of them are there nobody trusts it.
        let Some(text) = read(&next.join(name))? else {
            return Ok(Vec::new());
        };
        files.push(NewFile {
            name: name.to_owned(),
            contents: text.into_bytes(),
            mode,
        });
    }
    let waiting = trusting(store, &folder, &next)?;
    if waiting.is_empty() {
        // Cut off in here the old and the new lie mixed; `next` is what counts until it is gone.
        write_files(&folder, &files)?;
        fault::point("before ending a rotation");
        fs::rename(&next, over(store)).or_fail(Kind::Io, || {
            format!("failed to put `{}` aside", next.display())
        })?;
        atomic::sync_folder(&folder)?;
        fault::point("after ending a rotation");
        tidy(store)?;
    }
    Ok(waiting)
}

/// The machines that trust the CA in `folder`, and not yet the one in `next`.
fn trusting(store: &Store, folder: &Path, next: &Path) -> Result<Vec<String>> {
    let (old, new) = (read(&folder.join("ca.pem"))?, read(&next.join("ca.pem"))?);
    let Some(old) = old.filter(|old| Some(old) != new.as_ref()) else {
        return Ok(Vec::new());
    };
    let marked = fingerprint(&old);
    let mut names = Vec::new();
    for (name, record) in Record::all(store)? {
        let beside = read(&store.machine_dir(&name).join("ca.pem"));
        let beside = beside.is_ok_and(|ca| ca.as_ref() == Some(&old));
        let trusts = match record {
            // An engine that has no certificate of the store's is nobody's to wait for.
            Ok(record) => record
                .tls
                .is_some_and(|tls| beside || tls.authority == marked),
            Err(_) => beside,
        };
        if trusts {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes what a rotation that is over has left, and what was written beside files of the CA by a kill.
fn tidy(store: &Store) -> Result<()> {
    let over = over(store);
    if over.exists() {
        fs::remove_dir_all(&over).or_fail(Kind::Io, || {
            format!("failed to remove `{}`", over.display())
        })?;
    }
    for left in atomic::unfinished(&store.certs_dir())? {
        crate::store::remove_file(&left)?;
    }
    Ok(())
}
