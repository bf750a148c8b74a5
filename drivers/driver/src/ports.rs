//! Ports of the host: whether one is free, and who has it when it is not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener};

use crate::error::{Error, Kind, Result};
use crate::spec::Forward;

/// An error unless this process could listen at every one of these addresses.
///
/// # Errors
/// [`Kind::Conflict`] naming the owner of a port that is taken, [`Kind::Refused`] for one that this
/// user may not have.
pub fn free(forwards: &[Forward]) -> Result<()> {
    for forward in forwards {
        if !forward.host.is_ipv4() {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "cannot forward from `{}`: only IPv4 addresses can",
                    forward.host
                ),
            ));
        }
        match TcpListener::bind(forward.host) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                return Err(taken(forward.host));
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::new(
                    Kind::Refused,
                    format!("this user may not listen on `{}`", forward.host),
                )
                .because(error)
                .hint("take a port from 1024 up"));
            }
            Err(error) => {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("cannot listen on `{}`", forward.host),
                )
                .because(error));
            }
        }
    }
    Ok(())
}

/// The error for a port that something else has, naming its owner.
pub fn taken(address: SocketAddr) -> Error {
    let error = Error::new(
        Kind::Conflict,
        format!("port {} of {} is taken", address.port(), address.ip()),
    );
    match owner(address) {
        Some(owner) => error
            .because(owner.clone())
            .hint(format!("end that process ({owner}) or take another port")),
        None => error.hint("see who has it with `ss -ltnp`, or take another port"),
    }
}

/// Whether a connection to `address`, one of this host's own loopback addresses, would certainly be refused: nothing
/// listens there. It is looked up, and nothing is sent: what is listening may be a forwarded port, behind which a guest
/// would have to answer. Of other addresses this says no.
pub fn refused(address: SocketAddr) -> bool {
    let SocketAddr::V4(address) = address else {
        return false;
    };
    if !address.ip().is_loopback() {
        return false;
    }
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else {
        return false;
    };
    // Without IPv6 there is no such table, and nothing in it.
    let six = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    listener(&table, address).is_none() && listener(&six, address).is_none()
}

/// Who listens at `address`: `process 4711 (nginx)`, or the user when the process is not visible.
fn owner(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listener(&table, address))?;
    match process_of(sockets.inode) {
        Some((pid, command)) => Some(format!("process {pid}, `{command}`")),
        None => Some(format!("a process of the user with id {}", sockets.uid)),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    uid: u32,
    inode: u64,
}

/// Finds the listener that keeps `wanted` from being bound, in the text of /proc/net/tcp or tcp6.
/// Columns (proc_net_tcp in the kernel's documentation): slot, local, remote, state, queues, timer,
/// retransmits, uid, timeout, inode; addresses are groups of four bytes in host order; state 0A listens.
fn listener(table: &str, wanted: SocketAddrV4) -> Option<Listener> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = columns.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let local = local(address)?;
        let meets = port == wanted.port()
            && columns.get(3) == Some(&"0A")
            && (local.is_unspecified() || local == *wanted.ip());
        meets.then_some(Listener {
            uid: columns.get(7)?.parse().ok()?,
            inode: columns.get(9)?.parse().ok()?,
        })
    })
}

/// The IPv4 address that a listener covers; an IPv6 socket on `::` covers all of them.
fn local(hex: &str) -> Option<Ipv4Addr> {
    let word = |at: usize| {
        u32::from_str_radix(hex.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => word(0).map(Ipv4Addr::from),
        32 => {
            let mut bytes = [0; 16];
            for group in 0..4 {
                bytes[group * 4..group * 4 + 4].copy_from_slice(&word(group * 8)?);
            }
            let address = Ipv6Addr::from(bytes);
            if address.is_unspecified() {
                Some(Ipv4Addr::UNSPECIFIED)
            } else {
                address.to_ipv4_mapped()
            }
        }
        _ => None,
    }
}

/// The process that has the socket open, and its command.
fn process_of(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let has = descriptors.flatten().any(|descriptor| {
            std::fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str() == wanted.as_str())
        });
        if has {
            let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((pid, command.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_passes_and_a_taken_one_names_its_owner() {
        // Nobody else's address: the port stays free once it is.
        let listener = TcpListener::bind("127.91.17.3:0").expect("listens");
        let host = listener.local_addr().expect("address");
        let error = free(&[Forward { guest: 80, host }]).expect_err("taken");
        assert_eq!(error.kind(), Kind::Conflict);
        if cfg!(target_os = "linux") {
            assert!(
                error
                    .line()
                    .contains(&format!("process {}", std::process::id())),
                "{}",
                error.line()
            );
        }
        drop(listener);
        free(&[Forward { guest: 80, host }]).expect("free now");
    }

    #[test]
    fn a_listener_on_every_address_is_found_as_well() {
        let listener = TcpListener::bind("0.0.0.0:0").expect("listens");
        let host = SocketAddr::from((
            Ipv4Addr::new(127, 0, 0, 9),
            listener.local_addr().expect("address").port(),
        ));
        let error = free(&[Forward { guest: 80, host }]).expect_err("taken");
        if cfg!(target_os = "linux") {
            assert!(
                error
                    .line()
                    .contains(&format!("process {}", std::process::id())),
                "{}",
                error.line()
            );
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             \x20  0: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 0\n\
             \x20  1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 2 1 0 0\n";
        let address = |text: &str| text.parse().expect("address");
        assert_eq!(
            listener(table, address("127.0.0.1:8080")),
            Some(Listener {
                uid: 1001,
                inode: 2
            })
        );
        assert_eq!(listener(table, address("127.0.0.2:8080")), None);
        assert_eq!(listener(table, address("127.0.0.1:81")), None);
        assert_eq!(
            local("00000000000000000000000000000000"),
            Some(Ipv4Addr::UNSPECIFIED)
        );
        assert_eq!(
            local("0000000000000000FFFF00000100007F"),
            Some(Ipv4Addr::LOCALHOST)
        );
        assert_eq!(local("00000000000000000000000001000000"), None);
    }
}
