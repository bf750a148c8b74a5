//! The network between the machines: a learning Ethernet switch over unix datagram sockets.
//!
//! Each frame is one datagram (QEMU's `-netdev dgram`). The switch is bound to `switch` in the
//! network's folder, each machine to a socket `port-…` beside it. Sockets are addressed by path, so
//! the switch holds nothing that a successor could not learn again: killed and started anew, it goes
//! on, and the guests notice a few lost frames. The folder is its owner's alone (0700), so are the
//! sockets (0600): nobody else on the host can join or listen, and a network with another id is
//! another folder, so no frame crosses.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forge_driver::hold::try_lock;
use forge_driver::{Context, Error, Kind, Result};

use crate::sockets::PORT;

/// The name of the switch's own socket.
pub(crate) const SOCKET: &str = "switch";

/// The longest frame that is passed on.
const FRAME_LIMIT: usize = 64 << 10;

/// The most addresses that are remembered, and the most ports that are served.
const ADDRESS_LIMIT: usize = 4096;
const PORT_LIMIT: usize = 1024;

/// How long a frame waits for a machine whose queue is full. One that does not drain it (a paused
/// machine) is not waited for again until it has taken a frame.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often it looks after its folder when nothing is sent.
const TICK: Duration = Duration::from_secs(1);

/// How long it goes on without a machine.
const LINGER: Duration = Duration::from_secs(60);

type Address = [u8; 6];

/// Switches frames between the machines whose sockets lie in `dir`, until none has been there for a
/// while or the folder is taken away. Returns at once when another process does it already.
///
/// # Errors
/// When the folder or a socket in it cannot be used.
pub fn run_switch(dir: &Path) -> Result<()> {
    run(dir, LINGER)
}

fn run(dir: &Path, linger: Duration) -> Result<()> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("switch.lock"))
        .or_fail(Kind::Io, || {
            format!("failed to open the lock of the network `{}`", dir.display())
        })?;
    if !try_lock(&lock)? {
        return Ok(());
    }
    let mut switch = Switch::open(dir, lock)?;
    let mut alone_since = Instant::now();
    let mut looked = Instant::now();
    let mut frame = vec![0; FRAME_LIMIT];
    loop {
        switch.step(&mut frame)?;
        if looked.elapsed() < TICK {
            continue;
        }
        looked = Instant::now();
        if !switch.still_mine() {
            return Ok(());
        }
        switch.scan()?;
        if switch.any_attached() {
            alone_since = Instant::now();
        } else if alone_since.elapsed() >= linger {
            // A machine that starts now either is seen by the second look, or does not find our
            // socket and starts a successor.
            switch.close()?;
            switch.scan()?;
            if !switch.any_attached() {
                return Ok(());
            }
            switch.bind()?;
            alone_since = Instant::now();
        }
    }
}

struct Switch {
    dir: PathBuf,
    _lock: File,
    inbox: UnixDatagram,
    /// The file that `inbox` is bound to.
    inode: u64,
    /// Waits up to [`PATIENCE`] for room.
    patient: UnixDatagram,
    /// Never waits.
    hasty: UnixDatagram,
    ports: HashMap<PathBuf, Port>,
    learned: HashMap<Address, PathBuf>,
}

#[derive(Default)]
struct Port {
    stuck: bool,
}

impl Switch {
    fn open(dir: &Path, lock: File) -> Result<Self> {
        let unbound =
            || UnixDatagram::unbound().or_fail(Kind::Io, || "failed to make a socket".into());
        let patient = unbound()?;
        let hasty = unbound()?;
        patient
            .set_write_timeout(Some(PATIENCE))
            .and_then(|()| hasty.set_nonblocking(true))
            .or_fail(Kind::Io, || "failed to set up a socket".into())?;
        let (inbox, inode) = listen(dir)?;
        let mut switch = Self {
            dir: dir.to_owned(),
            _lock: lock,
            inbox,
            inode,
            patient,
            hasty,
            ports: HashMap::new(),
            learned: HashMap::new(),
        };
        switch.scan()?;
        Ok(switch)
    }

    fn bind(&mut self) -> Result<()> {
        (self.inbox, self.inode) = listen(&self.dir)?;
        Ok(())
    }

    fn close(&self) -> Result<()> {
        fs::remove_file(self.dir.join(SOCKET))
            .or_fail(Kind::Io, || "failed to remove the switch's socket".into())
    }

    /// The socket at our path is ours: nobody took the folder away.
    fn still_mine(&self) -> bool {
        fs::symlink_metadata(self.dir.join(SOCKET)).is_ok_and(|meta| meta.ino() == self.inode)
    }

    /// Brings the list of ports in line with the folder.
    fn scan(&mut self) -> Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).or_fail(Kind::Io, || {
                    format!("failed to list `{}`", self.dir.display())
                });
            }
        };
        let mut there = HashMap::new();
        for entry in entries
            .flatten()
            .filter(|entry| is_port(&entry.path()))
            .take(PORT_LIMIT)
        {
            let path = entry.path();
            let port = self.ports.remove(&path).unwrap_or_default();
            there.insert(path, port);
        }
        self.ports = there;
        let ports = &self.ports;
        self.learned.retain(|_, path| ports.contains_key(path));
        Ok(())
    }

    /// A process is bound to one of the ports. Connecting sends nothing.
    fn any_attached(&self) -> bool {
        self.ports
            .keys()
            .any(|path| UnixDatagram::unbound().is_ok_and(|probe| probe.connect(path).is_ok()))
    }

    /// Waits for one frame, at most a tick, and passes it on.
    fn step(&mut self, frame: &mut [u8]) -> Result<()> {
        let (count, sender) = match self.inbox.recv_from(frame) {
            Ok(received) => received,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            Err(error) => {
                return Err(error).or_fail(Kind::Io, || "failed to receive a frame".into());
            }
        };
        let frame = &frame[..count];
        let (Some(from), Some((to, source))) = (sender.as_pathname(), addresses(frame)) else {
            return Ok(());
        };
        if !self.ports.contains_key(from) {
            self.scan()?;
            if !self.ports.contains_key(from) {
                return Ok(());
            }
        }
        let from = from.to_owned();
        if !is_group(source) && self.learned.get(&source) != Some(&from) {
            if self.learned.len() >= ADDRESS_LIMIT {
                self.learned.clear();
            }
            self.learned.insert(source, from.clone());
        }
        let known = if is_group(to) {
            None
        } else {
            self.learned.get(&to).cloned()
        };
        match known {
            Some(port) if port == from => {}
            Some(port) => self.send(frame, &port),
            None => {
                let others: Vec<PathBuf> = self
                    .ports
                    .keys()
                    .filter(|port| **port != from)
                    .cloned()
                    .collect();
                for port in others {
                    self.send(frame, &port);
                }
            }
        }
        Ok(())
    }

    /// Sends one frame to one port; like any Ethernet, it may lose it.
    fn send(&mut self, frame: &[u8], path: &Path) {
        let Some(port) = self.ports.get_mut(path) else {
            return;
        };
        let socket = if port.stuck {
            &self.hasty
        } else {
            &self.patient
        };
        match socket.send_to(frame, path) {
            Ok(_) => port.stuck = false,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                port.stuck = true;
            }
            // Nobody is bound to it any more. The file is its machine's to remove.
            Err(_) => self.learned.retain(|_, port| port != path),
        }
    }
}

fn listen(dir: &Path) -> Result<(UnixDatagram, u64)> {
    let path = dir.join(SOCKET);
    // We hold the lock: a socket that lies here is a dead one's.
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).or_fail(Kind::Io, || {
                format!("failed to remove `{}`", path.display())
            });
        }
    }
    let inbox = UnixDatagram::bind(&path).or_fail(Kind::Io, || {
        format!("failed to listen on `{}`", path.display())
    })?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .and_then(|()| inbox.set_read_timeout(Some(TICK)))
        .and_then(|()| fs::symlink_metadata(&path))
        .map(|meta| (inbox, meta.ino()))
        .or_fail(Kind::Io, || {
            format!("failed to set up `{}`", path.display())
        })
}

fn is_port(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(PORT))
}

/// Destination and source of an Ethernet frame (IEEE 802.3: the first twelve bytes).
fn addresses(frame: &[u8]) -> Option<(Address, Address)> {
    let to = frame.get(..6)?.try_into().ok()?;
    let source = frame.get(6..12)?.try_into().ok()?;
    Some((to, source))
}

/// A group address: broadcast or multicast (IEEE 802: the lowest bit of the first byte).
fn is_group(address: Address) -> bool {
    address[0] & 1 == 1
}

/// A switch serves this folder: its socket is there and somebody is bound to it.
pub(crate) fn serves(dir: &Path) -> bool {
    UnixDatagram::unbound().is_ok_and(|probe| probe.connect(dir.join(SOCKET)).is_ok())
}

/// What the last switch of this folder had to say before it ended.
pub(crate) fn last_words(dir: &Path) -> Error {
    let text = fs::read_to_string(dir.join("switch.log")).unwrap_or_default();
    Error::new(Kind::Failed, forge_driver::process::tail(&text, 5))
}

#[cfg(test)]
mod tests;
