//! Ports that are really listened at.

use std::collections::HashMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, OnceLock};

use crate::{Claim, Error, Forward, Kind, Result};

type Listeners = HashMap<(Claim, SocketAddr), TcpListener>;

/// The ports that are really listened at: those of machines that this very process opened.
fn listeners() -> &'static Mutex<Listeners> {
    static OPEN: OnceLock<Mutex<Listeners>> = OnceLock::new();
    OPEN.get_or_init(Mutex::default)
}

/// Listens for `claim` at exactly these addresses, or, when one is taken, at those of before.
///
/// # Errors
/// As [`bind`].
pub(super) fn listen_exactly(claim: Claim, wanted: &[Forward]) -> Result<()> {
    let mut open = listeners()
        .lock()
        .map_err(|_| Error::new(Kind::Failed, "the list of listeners is lost"))?;
    let mut new = Vec::new();
    for forward in wanted {
        if !open.contains_key(&(claim, forward.host)) {
            new.push((forward.host, bind(forward.host)?));
        }
    }
    open.retain(|(whose, address), _| {
        *whose != claim || wanted.iter().any(|forward| forward.host == *address)
    });
    open.extend(
        new.into_iter()
            .map(|(address, listener)| ((claim, address), listener)),
    );
    Ok(())
}

/// Listens there.
///
/// # Errors
/// [`Kind::Conflict`] with the process that has the port.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let taken = Error::new(
            Kind::Conflict,
            format!("port {} of {} is taken", address.port(), address.ip()),
        );
        match owner(address) {
            Some(pid) => taken.because(format!("process {pid} listens there")),
            None => taken.because(error),
        }
    })
}

/// The process that listens at an IPv4 address (proc(5): /proc/net/tcp, /proc/PID/fd).
fn owner(address: SocketAddr) -> Option<u32> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let local = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(address.ip().octets()),
        address.port()
    );
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(1) == Some(&local.as_str()) && columns.get(3) == Some(&"0A"))
            .then(|| columns.get(9).map(|inode| format!("socket:[{inode}]")))?
    })?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        fs::read_dir(entry.path().join("fd"))
            .ok()?
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == inode.as_str()))
            .then_some(pid)
    })
}
