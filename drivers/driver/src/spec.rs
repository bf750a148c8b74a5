//! What a driver is asked for: one machine, wished.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claim::Claim;
use crate::error::{Error, Kind, Result};

/// One machine, wished. CPU, memory and disk are the driver's own configuration.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The identity that the VM will carry.
    pub claim: Claim,
    /// The visible name.
    pub name: String,
    /// The disk it starts from.
    pub image: BaseImage,
    /// What it reads at its first boot.
    pub seed: Seed,
    /// Its place on an internal network.
    pub nic: Option<Nic>,
    /// The hardware address of the interface that leads out.
    pub outer_mac: Mac,
    /// Where the host forwards ports from; empty for drivers whose machines have addresses of their own.
    pub forwards: Vec<Forward>,
}

/// A base image in the store: read only, shared by the overlays of many machines.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// The qcow2 file.
    pub disk: PathBuf,
    /// Kernel files taken from that very disk, for drivers that can start them without a bootloader.
    pub kernel: Option<KernelFiles>,
    /// Virtual size in bytes.
    pub size: u64,
}

/// A kernel, its initial ram disk and its command line.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial ram disk.
    pub initrd: PathBuf,
    /// The command line.
    pub cmdline: String,
}

/// A NoCloud seed (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>).
/// It holds the private host key for the first contact, so it is never printed.
#[derive(Clone)]
pub struct Seed {
    /// `user-data`: a `#cloud-config` document.
    pub user_data: String,
    /// `meta-data`: instance id and host name.
    pub meta_data: String,
    /// `network-config`, version 2.
    pub network_config: String,
}

impl BaseImage {
    /// Its id: the name of its folder in the store.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it lies in none.
    pub fn id(&self) -> Result<String> {
        self.disk
            .parent()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("`{}` is in no folder of an image", self.disk.display()),
                )
            })
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// An internal network, recorded in the store and shared by machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The identity: networks are recognised by it, never by name or range.
    pub id: Uuid,
    /// The range of its addresses.
    pub cidr: Ipv4Net,
    /// The id of the store that owns it.
    pub owner: Uuid,
}

/// A machine's place on an internal network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The network.
    pub network: Network,
    /// The machine's fixed address there.
    pub address: Ipv4Addr,
    /// The hardware address of that interface.
    pub mac: Mac,
}

/// SSH's port inside every machine.
pub const SSH_PORT: u16 = 22;

/// The port of the engine's TLS inside every machine.
pub const ENGINE_PORT: u16 = 2376;

/// A TCP port of the guest, reachable at an address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The port inside the machine.
    pub guest: u16,
    /// The address and port on the host.
    pub host: SocketAddr,
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The address of interface `index` of the machine with this claim. The prefix 52:54:00 is the
    /// locally administered one that QEMU and libvirt use.
    #[must_use]
    pub fn of(claim: Claim, index: u8) -> Self {
        let bytes = claim.bytes();
        // Bytes 6 and 8 of a version 4 UUID hold fixed bits; these three do not.
        Self([
            0x52,
            0x54,
            0x00,
            bytes[13],
            bytes[14],
            bytes[15].wrapping_add(index),
        ])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("`{text}` is not a hardware address: {error}"))?;
        <[u8; 6]>::try_from(bytes)
            .map(Self)
            .map_err(|_| format!("`{text}` is not a hardware address: it needs six bytes"))
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_survives_its_text() {
        let mac = Mac::of(Claim::random(), 1);
        assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
        assert!(mac.to_string().starts_with("52:54:00:"));
        assert_ne!(mac, Mac::of(Claim::random(), 1));
    }

    #[test]
    fn a_malformed_mac_is_refused() {
        for text in ["", "52:54:00", "52:54:00:00:00:zz", "52:54:00:00:00:00:00"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_seed_is_not_printed() {
        let seed = Seed {
            user_data: "PRIVATE".into(),
            meta_data: String::new(),
            network_config: String::new(),
        };
        assert!(!format!("{seed:?}").contains("PRIVATE"));
    }
}
