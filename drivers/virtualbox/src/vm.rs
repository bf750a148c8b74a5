//! `box.json`: what was decided for a machine before VirtualBox was asked for anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use forge_driver::folder::Record;
use forge_driver::{
    Artefact, Claim, ENGINE_PORT, Endpoints, Error, Forward, Instance, Kind, Mac, Nic, Result,
    SSH_PORT, Spec,
};
use serde::{Deserialize, Serialize};

use crate::lan::Lan;
use crate::network::Attachment;
use crate::options::{Config, word};
use crate::server::Tenant;

/// The format that is written.
const FORMAT: u32 = 1;

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vm {
    format: u32,
    /// The identity, which is the machine's UUID in VirtualBox.
    pub(crate) claim: Claim,
    /// The visible name, which is the one in VirtualBox.
    pub(crate) name: String,
    /// What was asked for.
    pub(crate) config: Config,
    /// Its place on the network.
    pub(crate) nic: Nic,
    /// The hardware address of the interface that leads out.
    pub(crate) outer_mac: Mac,
    /// The forwards of the endpoints, which never change.
    pub(crate) forwards: Vec<Forward>,
    /// Those that were published, besides.
    pub(crate) published: Vec<Forward>,
    /// The id of the image that its disk differs from.
    pub(crate) base: String,
    /// What its second interface is attached to, once that is there.
    pub(crate) attachment: Option<Attachment>,
    /// All of it is there: what is missing later was taken away by somebody.
    pub(crate) whole: bool,
    /// It goes, and needs its base no more.
    pub(crate) leaving: bool,
}

/// The folder of one machine in the driver's directory.
pub(crate) type Folder = forge_driver::folder::Folder<Vm>;

impl Record for Vm {
    const FILE: &str = "box.json";
    const FORMAT: u32 = FORMAT;

    fn claim(&self) -> Claim {
        self.claim
    }
}

impl Vm {
    /// The machine that `spec` wishes, on `base`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it has no place on a network, or is not forwarded to although it has to be.
    pub(crate) fn new(spec: &Spec, config: &Config, base: String) -> Result<Self> {
        let lacks = |what: &str| {
            Error::new(
                Kind::Invalid,
                format!("machine `{}` has no {what}", spec.name),
            )
        };
        let nic = spec
            .nic
            .clone()
            .ok_or_else(|| lacks("place on a network"))?;
        let vm = Self {
            format: FORMAT,
            claim: spec.claim,
            name: spec.name.clone(),
            config: config.clone(),
            nic,
            outer_mac: spec.outer_mac,
            forwards: spec.forwards.clone(),
            published: Vec::new(),
            base,
            attachment: None,
            whole: false,
            leaving: false,
        };
        if matches!(config.lan, Lan::Internal { .. }) {
            for port in [SSH_PORT, ENGINE_PORT] {
                vm.forwarded(port)
                    .ok_or_else(|| lacks(&format!("forward to its port {port}")))?;
            }
        }
        Ok(vm)
    }

    fn forwarded(&self, guest: u16) -> Option<SocketAddr> {
        self.forwards
            .iter()
            .find(|forward| forward.guest == guest)
            .map(|forward| forward.host)
    }

    /// Every rule that leads to it.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Forward> {
        self.forwards.iter().chain(&self.published)
    }

    /// The lease that is its own; `settled` when the server has been told of it.
    pub(crate) fn tenant(&self, settled: bool) -> Tenant {
        Tenant {
            claim: self.claim,
            address: self.nic.address,
            settled,
        }
    }

    /// What the caller of the driver gets to see. The address behind NAT is the same for every machine: it is none
    /// of these.
    pub(crate) fn instance(&self) -> Instance {
        let address = IpAddr::V4(self.nic.address);
        let endpoint = |port: u16| {
            self.forwarded(port)
                .unwrap_or_else(|| SocketAddr::new(address, port))
        };
        let artefact = |kind: &str, id: String| Artefact {
            kind: kind.into(),
            id,
        };
        let config = &self.config;
        Instance {
            endpoints: Endpoints {
                ssh: endpoint(SSH_PORT),
                engine: endpoint(ENGINE_PORT),
                cluster: Some(address),
                data: None,
                public: None,
            },
            artefacts: vec![
                artefact("machine", self.claim.to_string()),
                artefact("disk", format!("{}/disk.vdi", self.claim)),
                artefact("seed", format!("{}/seed.iso", self.claim)),
            ],
            hardware: BTreeMap::from([
                ("firmware".to_owned(), word(config.firmware)),
                ("memory".to_owned(), format!("{} MiB", config.memory_mib)),
                ("cpus".to_owned(), config.cpus.to_string()),
                ("mac".to_owned(), self.nic.mac.to_string()),
                ("outer mac".to_owned(), self.outer_mac.to_string()),
            ]),
        }
    }
}
