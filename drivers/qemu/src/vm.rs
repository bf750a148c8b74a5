//! `vm.json`: everything that is needed to start a machine again, whatever the configuration of the
//! command that does it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use forge_driver::folder::Record;
use forge_driver::{
    Artefact, Claim, ENGINE_PORT, Endpoints, Error, Forward, Instance, Kind, Mac, Nic, Result,
    SSH_PORT, Spec,
};
use serde::{Deserialize, Serialize};

use crate::options::Config;

/// The format that is written.
const FORMAT: u32 = 1;

/// One machine, as it was made. It holds no absolute path but a `binary` that the user gave as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vm {
    format: u32,
    /// The identity.
    pub(crate) claim: Claim,
    /// The visible name.
    pub(crate) name: String,
    /// What was asked for.
    pub(crate) config: Config,
    /// What that became.
    pub(crate) hardware: Hardware,
    /// The hardware address of the interface that leads out.
    pub(crate) outer_mac: Mac,
    /// The place on the network between the machines.
    pub(crate) nic: Option<Nic>,
    /// Forwards of the endpoints.
    pub(crate) endpoints: Vec<Forward>,
    /// Forwards besides those.
    pub(crate) published: Vec<Forward>,
    /// It has run once: from now on its disk's own bootloader starts it, so that a kernel that the
    /// guest installed is the one that runs.
    pub(crate) booted: bool,
}

/// The exact hardware: nothing here is an alias, so that a saved running state still fits after an
/// upgrade of QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hardware {
    /// The machine type with its properties.
    pub(crate) machine: String,
    /// The accelerator.
    pub(crate) accelerator: String,
    /// The CPU model.
    pub(crate) cpu: String,
}

impl Record for Vm {
    const FILE: &str = "vm.json";
    const FORMAT: u32 = FORMAT;

    fn claim(&self) -> Claim {
        self.claim
    }
}

impl Vm {
    /// The machine that `spec` wishes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the ports of the endpoints are not forwarded.
    pub(crate) fn new(spec: &Spec, config: &Config, hardware: Hardware) -> Result<Self> {
        let (endpoints, published) = spec
            .forwards
            .iter()
            .partition(|forward| [SSH_PORT, ENGINE_PORT].contains(&forward.guest));
        let vm = Self {
            format: FORMAT,
            claim: spec.claim,
            name: spec.name.clone(),
            config: config.clone(),
            hardware,
            outer_mac: spec.outer_mac,
            nic: spec.nic.clone(),
            endpoints,
            published,
            booted: false,
        };
        vm.instance()?;
        Ok(vm)
    }

    /// All forwards, those of the endpoints first.
    pub(crate) fn forwards(&self) -> impl Iterator<Item = Forward> + '_ {
        self.endpoints.iter().chain(&self.published).copied()
    }

    /// What the caller of the driver gets to see.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the ports of the endpoints are not forwarded.
    pub(crate) fn instance(&self) -> Result<Instance> {
        let host = |guest: u16| {
            self.endpoints
                .iter()
                .find(|forward| forward.guest == guest)
                .map(|forward| forward.host)
                .ok_or_else(|| {
                    Error::new(
                        Kind::Invalid,
                        format!("port {guest} of machine `{}` is not forwarded", self.name),
                    )
                })
        };
        let inner = self.nic.as_ref().map(|nic| IpAddr::V4(nic.address));
        let mut hardware = BTreeMap::from([
            ("machine".to_owned(), self.hardware.machine.clone()),
            ("cpu".to_owned(), self.hardware.cpu.clone()),
            ("accelerator".to_owned(), self.hardware.accelerator.clone()),
            (
                "memory".to_owned(),
                format!("{} MiB", self.config.memory_mib),
            ),
            ("cpus".to_owned(), self.config.cpus.to_string()),
            ("outer_mac".to_owned(), self.outer_mac.to_string()),
        ]);
        if let Some(nic) = &self.nic {
            hardware.insert("inner_mac".into(), nic.mac.to_string());
        }
        let file = |kind: &str, name: &str| Artefact {
            kind: kind.into(),
            id: format!("{}/{name}", self.claim),
        };
        Ok(Instance {
            endpoints: Endpoints {
                ssh: host(SSH_PORT)?,
                engine: host(ENGINE_PORT)?,
                cluster: inner,
                data: inner,
                public: None,
            },
            artefacts: vec![
                file("disk", "disk.qcow2"),
                file("seed", "seed.iso"),
                file("console", "console.log"),
                file("process", "vm.pid"),
            ],
            hardware,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use forge_driver::{BaseImage, Network, Seed};
    use uuid::Uuid;

    use super::*;

    pub(crate) fn spec() -> Spec {
        let claim = Claim::random();
        let at = |port: u16| SocketAddr::from((Ipv4Addr::new(127, 133, 7, 101), port));
        Spec {
            claim,
            name: "n1".into(),
            image: BaseImage {
                disk: "/none.qcow2".into(),
                kernel: None,
                size: 1 << 20,
            },
            seed: Seed {
                user_data: "#cloud-config\n".into(),
                meta_data: "instance-id: n1\n".into(),
                network_config: "version: 2\n".into(),
            },
            nic: Some(Nic {
                network: Network {
                    id: Uuid::new_v4(),
                    cidr: "10.133.7.0/24".parse().expect("cidr"),
                    owner: Uuid::new_v4(),
                },
                address: Ipv4Addr::new(10, 133, 7, 11),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: vec![
                Forward {
                    guest: 22,
                    host: at(2222),
                },
                Forward {
                    guest: 2376,
                    host: at(2376),
                },
                Forward {
                    guest: 80,
                    host: at(8080),
                },
            ],
        }
    }

    pub(crate) fn vm(spec: &Spec) -> Vm {
        let hardware = Hardware {
            machine: "pc-q35-10.0".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
        };
        Vm::new(spec, &Config::default(), hardware).expect("fits")
    }

    #[test]
    fn a_record_survives_its_text() {
        let vm = vm(&spec());
        let text = serde_json::to_vec(&vm).expect("serialises");
        assert_eq!(Vm::parse(&text).expect("parses"), vm);
    }

    #[test]
    fn newer_and_broken_records_are_told_apart() {
        assert_eq!(
            Vm::parse(br#"{"format":2,"more":1}"#)
                .expect_err("newer")
                .kind(),
            Kind::Newer
        );
        assert_eq!(
            Vm::parse(b"{\"format\":1").expect_err("cut").kind(),
            Kind::Corrupt
        );
        assert_eq!(
            Vm::parse(b"{\"format\":1}").expect_err("empty").kind(),
            Kind::Corrupt
        );
    }

    #[test]
    fn endpoints_come_from_the_forwards_and_the_inner_address() {
        let instance = vm(&spec()).instance().expect("whole");
        assert_eq!(instance.endpoints.ssh.to_string(), "127.133.7.101:2222");
        assert_eq!(instance.endpoints.engine.to_string(), "127.133.7.101:2376");
        assert_eq!(
            instance.endpoints.cluster,
            Some(IpAddr::from([10, 133, 7, 11]))
        );
        assert_eq!(instance.hardware["machine"], "pc-q35-10.0");
    }

    #[test]
    fn a_machine_that_could_not_be_reached_is_refused() {
        let mut spec = spec();
        spec.forwards.remove(0);
        let hardware = Hardware {
            machine: "q".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
        };
        let error = Vm::new(&spec, &Config::default(), hardware).expect_err("no SSH");
        assert_eq!(error.kind(), Kind::Invalid);
    }
}
