//! The segments between machines: a bridge for each, a tap for each adapter.
//!
//! As with VirtualBox the host has no address on an internal network: its bridge has none, and its DHCP
//! server lives in a network name space of its own. A host-only network is a bridge that is named as
//! VirtualBox names such interfaces, with the host's address on it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use crate::disks::run;
use crate::vm::{Net, Nic};
use crate::{Result, dhcp, real};

/// A network that machines share.
#[derive(Clone, Debug)]
pub struct Segment {
    /// VirtualBox's name of it, which is also that of its DHCP server.
    pub name: String,
    pub bridge: String,
    /// Names of devices and name spaces are made of this.
    pub mark: String,
}

impl Segment {
    pub fn internal(name: &str) -> Self {
        let mark = mark(name);
        Self {
            name: name.to_owned(),
            bridge: format!("vbi-{mark}"),
            mark,
        }
    }

    pub fn host_only(interface: &str) -> Self {
        let name = format!("HostInterfaceNetworking-{interface}");
        Self {
            bridge: interface.to_owned(),
            mark: mark(&name),
            name,
        }
    }

    /// The segment of that name.
    pub fn named(name: &str) -> Self {
        match name.strip_prefix("HostInterfaceNetworking-") {
            Some(interface) => Self::host_only(interface),
            None => Self::internal(name),
        }
    }

    fn of(nic: &Nic) -> Option<Self> {
        match &nic.net {
            Net::Internal(name) => Some(Self::internal(name)),
            Net::HostOnly(interface) => Some(Self::host_only(interface)),
            _ => None,
        }
    }

    pub fn folder(&self) -> Result<PathBuf> {
        let folder = real::state()?.join("networks").join(&self.mark);
        fs::create_dir_all(folder.join("users"))?;
        Ok(folder)
    }

    fn host_only_interface(&self) -> bool {
        self.name.starts_with("HostInterfaceNetworking-")
    }
}

/// Names of devices have 15 letters at most, so a name becomes a number (FNV-1a).
fn mark(name: &str) -> String {
    let number = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{number:08x}")
}

/// The names of all devices here, without what stands behind an `@`.
fn devices() -> Result<Vec<String>> {
    let said = run(Command::new("ip").args(["-o", "link"]))?;
    let said = String::from_utf8_lossy(&said);
    let names = said.lines().filter_map(|line| line.split(": ").nth(1));
    Ok(names
        .map(|name| name.split('@').next().unwrap_or(name).to_owned())
        .collect())
}

/// The name of the tap of an adapter.
pub fn tap(uuid: &str, slot: u32) -> String {
    format!("vbt{}-{slot}", mark(uuid))
}

/// While it is held nobody else changes networks.
pub fn hold() -> Result<File> {
    let folder = real::state()?.join("networks");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

pub fn ip(words: &[&str]) -> Result<()> {
    run(Command::new("ip").args(words)).map(drop)
}

pub fn exists(device: &str) -> bool {
    Command::new("ip")
        .args(["link", "show", device])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Makes the tap of every adapter that is on a segment, and the segment; starts the DHCP server of a
/// segment that had nobody on it.
pub fn attach(uuid: &str, nics: &[Nic]) -> Result<()> {
    let _held = hold()?;
    for nic in nics {
        let Some(segment) = Segment::of(nic) else {
            continue;
        };
        if !exists(&segment.bridge) {
            if segment.host_only_interface() {
                return Err(format!(
                    "Nonexistent host networking interface, name '{}' (VERR_INTERNAL_ERROR)",
                    segment.bridge
                )
                .into());
            }
            ip(&["link", "add", &segment.bridge, "type", "bridge"])?;
        }
        ip(&["link", "set", &segment.bridge, "up"])?;
        let folder = segment.folder()?;
        fs::write(folder.join("name"), &segment.name)?;
        fs::write(folder.join("users").join(uuid), "")?;
        let tap = tap(uuid, nic.slot);
        if exists(&tap) {
            ip(&["link", "delete", &tap])?;
        }
        ip(&["tuntap", "add", "dev", &tap, "mode", "tap"])?;
        ip(&["link", "set", &tap, "master", &segment.bridge, "up"])?;
        dhcp::ensure(&segment)?;
    }
    Ok(())
}

/// Removes what a machine had on segments; what nobody uses any more goes, with its DHCP server.
pub fn detach(uuid: &str) -> Result<()> {
    let _held = hold()?;
    let ours = format!("vbt{}-", mark(uuid));
    for tap in devices()?.iter().filter(|name| name.starts_with(&ours)) {
        ip(&["link", "delete", tap])?;
    }
    let Ok(folders) = fs::read_dir(real::state()?.join("networks")) else {
        return Ok(());
    };
    for folder in folders.flatten().map(|entry| entry.path()) {
        if fs::remove_file(folder.join("users").join(uuid)).is_err() {
            continue;
        }
        if fs::read_dir(folder.join("users"))?.next().is_some() {
            continue;
        }
        let name = fs::read_to_string(folder.join("name")).unwrap_or_default();
        let mark = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        dhcp::stop(&folder, &mark)?;
        let bridge = format!("vbi-{mark}");
        if !name.starts_with("HostInterfaceNetworking-") && exists(&bridge) {
            ip(&["link", "delete", &bridge])?;
        }
    }
    Ok(())
}
