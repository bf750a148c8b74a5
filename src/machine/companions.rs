//! What lies beside a machine's record for other programs: docker-machine's `config.json`, the SSH key under the
//! name that it had there, and `known_hosts` for OpenSSH.
//!
//! All of it follows from the record, the key and the place of the store. It is written in one transaction with the
//! record, and forge never reads it back but to see whether it differs: whoever changes it changes nothing.

mod config;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use forge_driver::atomic::{self, NewFile};
use forge_driver::{Kind, Result, SSH_PORT};
use sha2::{Digest, Sha256};

use super::record::valid_name;
use super::{Record, access};
use crate::ca::hex;
use crate::remote::HostKeys;
use crate::store::lock::{Guarded, try_acquire};
use crate::store::{Store, write_file};

pub use config::Config;

/// docker-machine's record of a machine.
const CONFIG: &str = "config.json";
/// The SSH key, under the name that docker-machine gave it.
const ID_RSA: &str = "id_rsa";
/// The host keys that OpenSSH is to accept.
const KNOWN_HOSTS: &str = "known_hosts";
/// Where the store was when the companions were written: the SHA-256 of its path, since no file that forge goes by holds
/// a path.
const ROOT: &str = "companions.root";

/// Whether a file beside a record is a companion, or tells of them. The key of the record is none: that of a machine which
/// docker-machine made has the name that it had there.
pub fn is_one(name: &str, record: &Record) -> bool {
    let key = name.strip_suffix(".pub").unwrap_or(name);
    name == CONFIG || name == KNOWN_HOSTS || key == ID_RSA && key != record.ssh.key
}

/// The companions of a record that are not as they should be, in the order in which they are written.
pub(super) fn outdated(record: &Record, store: &Store) -> Vec<NewFile> {
    let folder = store.machine_dir(&record.name);
    let mut files = all(record, store, &folder);
    files.retain(|file| !is_there(&folder.join(&file.name), file));
    files
}

/// Whatever of them can be had. What is missing for one (a key that was lost, an address that is not known yet) is an
/// error where it is used; it keeps no record from being saved.
fn all(record: &Record, store: &Store, folder: &Path) -> Vec<NewFile> {
    let new = |name: &str, contents: Vec<u8>, mode: u32| NewFile {
        name: name.to_owned(),
        contents,
        mode,
    };
    let mut files = Vec::new();
    if let Ok(text) = Config::of(record, store).text() {
        files.push(new(CONFIG, text, 0o600));
    }
    if let Ok(key) = fs::read(folder.join(&record.ssh.key)) {
        files.push(new(ID_RSA, key, 0o600));
    }
    if let Ok(key) = fs::read(folder.join(format!("{}.pub", record.ssh.key))) {
        files.push(new(&format!("{ID_RSA}.pub"), key, 0o644));
    }
    if let Ok(text) = known_hosts(record) {
        files.push(new(KNOWN_HOSTS, text.into_bytes(), 0o600));
    }
    files
}

fn is_there(path: &Path, file: &NewFile) -> bool {
    let mode = |found: fs::Metadata| found.permissions().mode() & 0o7777;
    fs::metadata(path).is_ok_and(|found| mode(found) == file.mode)
        && fs::read(path).is_ok_and(|contents| contents == file.contents)
}

/// The lines of `known_hosts` for a machine: the keys that are accepted from it now, under its address.
///
/// # Errors
/// When its address is not known yet, or a recorded key is none.
pub fn known_hosts(record: &Record) -> Result<String> {
    let address = record.endpoints()?.ssh;
    let names = [&*address.ip().to_string()];
    let mut lines = HostKeys::new(record.ssh.accepted())?.known_hosts(&names, address.port());
    let authorities = HostKeys::new(&record.ssh.authorities)?;
    lines.push_str(&authorities.authorities(&names, address.port()));
    if let Some(name) = access::principal(record) {
        // By that name OpenSSH looks for it, whatever the port (ssh_config(5), HostKeyAlias).
        lines.push_str(&authorities.authorities(&[&name], SSH_PORT));
    }
    let jump = record
        .adopted
        .as_ref()
        .and_then(|adopted| adopted.jump.as_ref());
    if let Some(jump) = jump {
        let (names, port) = ([jump.known_as()], jump.known_port());
        lines.push_str(&HostKeys::new(&jump.accept)?.known_hosts(&names, port));
        lines.push_str(&HostKeys::new(&jump.authorities)?.authorities(&names, port));
    }
    Ok(lines)
}

/// Writes anew what does not follow from its record any more: everywhere after the store was moved or came from a
/// forge that wrote no companions, else beside records whose save was cut off. A machine that another command
/// works on is left to the next command, and a record that cannot be read is left as it is.
///
/// # Errors
/// The first that the file system reports, once all machines were gone through.
pub fn follow(store: &Store) -> Result<()> {
    let marker = store.root().join(ROOT);
    let path = Sha256::digest(store.root().as_os_str().as_bytes());
    let here = format!("{}\n", hex(&path));
    let moved = fs::read_to_string(&marker).ok().as_deref() != Some(&here);
    let mut left = false;
    let mut failed = Ok(());
    for name in store.names("machines")? {
        match follow_one(store, &name, moved) {
            Ok(done) => left |= !done,
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed?;
    if moved && !left {
        write_file(&marker, here.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Whether nothing is left to do for this machine.
fn follow_one(store: &Store, name: &str, moved: bool) -> Result<bool> {
    let due = moved || !atomic::unfinished(&store.machine_dir(name))?.is_empty();
    if !due || !valid_name(name) {
        return Ok(true);
    }
    let Some(_lock) = try_acquire(store, &Guarded::Machine(name.to_owned()))? else {
        return Ok(false);
    };
    match Record::find(store, name) {
        // In a copy of a folder by hand lies another machine's record.
        Ok(Some(record)) if record.name == name => record.save(store)?,
        Ok(_) => {}
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Newer) => {}
        Err(error) => return Err(error),
    }
    Ok(true)
}
