//! `domain.json`: what was decided for a machine before the daemon was asked for anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use forge_driver::folder::Record;
use forge_driver::{
    Artefact, Claim, ENGINE_PORT, Endpoints, Error, Instance, Kind, Mac, Nic, Result, SSH_PORT,
    Spec,
};
use serde::{Deserialize, Serialize};

use crate::options::Config;

/// The format that is written.
const FORMAT: u32 = 1;

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vm {
    format: u32,
    /// The identity, which is the domain's UUID.
    pub(crate) claim: Claim,
    /// The visible name, which is the domain's.
    pub(crate) name: String,
    /// What was asked for.
    pub(crate) config: Config,
    /// How it runs: `kvm` or `qemu`.
    pub(crate) virt: String,
    /// The hardware address of its interface.
    pub(crate) mac: Mac,
    /// Its place on the network that forge makes.
    pub(crate) nic: Option<Nic>,
    /// Its address on another network, where libvirt's own server gives it out: fixed for this machine.
    #[serde(default)]
    pub(crate) address: Option<Ipv4Addr>,
    /// The volume that its disk is an overlay of.
    pub(crate) base: String,
    /// Its seed has been written: no later call writes it again.
    pub(crate) seeded: bool,
    /// It is being removed, for good: it needs neither its base nor its network any more.
    #[serde(default)]
    pub(crate) leaving: bool,
    /// The folder of its pool, on the host of the daemon.
    pub(crate) folder: Option<PathBuf>,
}

/// The folder of one machine in the driver's directory.
pub(crate) type Folder = forge_driver::folder::Folder<Vm>;

impl Record for Vm {
    const FILE: &str = "domain.json";
    const FORMAT: u32 = FORMAT;

    fn claim(&self) -> Claim {
        self.claim
    }
}

impl Vm {
    /// The machine that `spec` wishes, on `base`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it has no place on a network, and its network is one that needs it.
    pub(crate) fn new(spec: &Spec, config: &Config, virt: String, base: String) -> Result<Self> {
        let nic = spec.nic.clone().filter(|_| config.network.own());
        if config.network.own() && nic.is_none() {
            return Err(Error::new(
                Kind::Invalid,
                format!("machine `{}` has no place on a network", spec.name),
            ));
        }
        Ok(Self {
            format: FORMAT,
            claim: spec.claim,
            name: spec.name.clone(),
            config: config.clone(),
            virt,
            mac: nic.as_ref().map_or(spec.outer_mac, |nic| nic.mac),
            nic,
            address: None,
            base,
            seeded: false,
            leaving: false,
            folder: None,
        })
    }

    /// The volume of its disk.
    pub(crate) fn disk(&self) -> String {
        format!("forge-{}.qcow2", self.claim)
    }

    /// The volume of its seed.
    pub(crate) fn seed(&self) -> String {
        format!("forge-{}-seed.iso", self.claim)
    }

    /// The file in the pool that its serial port is written to.
    pub(crate) fn console(&self) -> String {
        format!("forge-{}.log", self.claim)
    }

    /// Its address, where it is known before the machine has it.
    pub(crate) fn fixed_address(&self) -> Option<Ipv4Addr> {
        self.nic.as_ref().map(|nic| nic.address).or(self.address)
    }

    /// What the caller of the driver gets to see. `seen` is an address that the machine was seen with.
    pub(crate) fn instance(&self, seen: Option<Ipv4Addr>) -> Instance {
        let known = self.fixed_address().or(seen).map(IpAddr::V4);
        let address = known.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let artefact = |kind: &str, id: String| Artefact {
            kind: kind.into(),
            id,
        };
        let pool = &self.config.pool;
        Instance {
            endpoints: Endpoints {
                ssh: SocketAddr::new(address, SSH_PORT),
                engine: SocketAddr::new(address, ENGINE_PORT),
                cluster: known,
                data: None,
                public: None,
            },
            artefacts: vec![
                artefact("domain", format!("{} at {}", self.claim, self.config.uri)),
                artefact("disk", format!("{pool}/{}", self.disk())),
                artefact("seed", format!("{pool}/{}", self.seed())),
            ],
            hardware: BTreeMap::from([
                ("virt".to_owned(), self.virt.clone()),
                (
                    "memory".to_owned(),
                    format!("{} MiB", self.config.memory_mib),
                ),
                ("cpus".to_owned(), self.config.cpus.to_string()),
                ("mac".to_owned(), self.mac.to_string()),
            ]),
        }
    }
}
