//! The networks between machines: VirtualBox's DHCP servers, host-only interfaces, and each machine's fixed lease.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::routes;
use forge_driver::{Claim, Error, Kind, Network, Result, atomic, hold, versioned};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hostonly::{Interface, allowed, fitting, interfaces};
use crate::lan::{Dhcp, Lan};
use crate::manage::{Manage, Version};
use crate::server::{self, Server, Step, Tenant, Wanted, servers};

/// The format of the notes that is written.
const FORMAT: u32 = 1;

/// How long a machine waits for its turn at the networks: each of those before it makes a few calls, and each call
/// waits for all others of its user.
const TURN: Duration = Duration::from_secs(600);

/// The second interface of every machine, as VBoxManage counts them.
pub(crate) const SECOND: &str = "2";

/// What a network's DHCP server is known by.
const HOST_ONLY_PREFIX: &str = "HostInterfaceNetworking-";

/// What forge made for a network, noted before it is made: nothing else is ever removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// The network whose DHCP server is forge's.
    dhcp: Option<String>,
    /// The host-only interface that is forge's.
    interface: Option<String>,
    /// The address that it was given: with another one it is somebody else's, of the same name.
    #[serde(default)]
    address: Option<Ipv4Addr>,
    /// A host-only interface is being made; these were there before.
    before: Option<Vec<String>>,
}

impl Note {
    /// Something of the network was made.
    fn made(&self) -> bool {
        self.dhcp.is_some() || self.interface.is_some()
    }
}

/// The networks of one store.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    folder: PathBuf,
}

/// What the second interface of a machine is attached to, in VirtualBox's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Attachment {
    /// An internal network of this name.
    Internal(String),
    /// This host-only interface.
    HostOnly(String),
}

impl Attachment {
    /// The name of the network, as its DHCP server has it.
    fn network(&self) -> String {
        match self {
            Self::Internal(name) => name.clone(),
            Self::HostOnly(interface) => format!("{HOST_ONLY_PREFIX}{interface}"),
        }
    }
}

impl Networks {
    /// Networks whose notes lie in the driver's directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            folder: dir.join("networks"),
        }
    }

    fn note_file(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn read(&self, id: Uuid) -> Result<Note> {
        let file = self.note_file(id);
        match fs::read(&file) {
            Ok(text) => versioned::parse(&text, FORMAT, "the note of a network")
                .map_err(|error| error.context(format!("failed to read `{}`", file.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Note {
                format: FORMAT,
                ..Note::default()
            }),
            Err(error) => Err(
                Error::new(Kind::Io, format!("failed to read `{}`", file.display())).because(error),
            ),
        }
    }

    fn write(&self, id: Uuid, note: &Note) -> Result<()> {
        atomic::write_json(&self.note_file(id), note, "the note of a network")
    }

    /// Brings up what machines share: the host-only interface, the DHCP server; and gives a machine its fixed lease.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it overlaps something else, or the address is somebody else's, both shown.
    pub(crate) async fn ensure(
        &self,
        manage: &Manage,
        lan: &Lan,
        network: &Network,
        machine: Option<Tenant>,
    ) -> Result<Attachment> {
        atomic::private_folder(&self.folder)?;
        let _work = hold::work_within(&self.folder, TURN).await?;
        let attachment = self.attached(manage, lan, network).await?;
        if lan.served() {
            let name = attachment.network();
            let all = servers(manage).await?;
            let changed = self.server(manage, &all, &name, lan, network).await?;
            if let Some(machine) = machine {
                let there = all.iter().find(|server| server.name == name);
                let leases = there.map_or(&[][..], |there| &there.leases);
                let machine = Tenant {
                    settled: machine.settled && !changed,
                    ..machine
                };
                server::lease(manage, &name, leases, machine).await?;
            }
        }
        Ok(attachment)
    }

    /// What a machine's second interface is to be attached to; a host-only interface is there then.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it overlaps another one, both shown.
    pub(crate) async fn attachment(
        &self,
        manage: &Manage,
        lan: &Lan,
        network: &Network,
    ) -> Result<Attachment> {
        atomic::private_folder(&self.folder)?;
        let _work = hold::work_within(&self.folder, TURN).await?;
        self.attached(manage, lan, network).await
    }

    async fn attached(&self, manage: &Manage, lan: &Lan, network: &Network) -> Result<Attachment> {
        Ok(match lan {
            Lan::Internal { .. } => {
                Attachment::Internal(lan.internal_name(network).unwrap_or_default())
            }
            Lan::HostOnly { host, cidr, .. } => {
                Attachment::HostOnly(self.interface(manage, *host, *cidr, network).await?)
            }
        })
    }

    /// The DHCP server of a network is there, as forge wants it. Whether it had to be made or changed.
    async fn server(
        &self,
        manage: &Manage,
        all: &[Server],
        name: &str,
        lan: &Lan,
        network: &Network,
    ) -> Result<bool> {
        let mut note = self.read(network.id)?;
        let verb = match Step::of(all, wanted(name, lan, &note))? {
            Step::Nothing => return Ok(false),
            Step::Add => "add",
            Step::Modify => "modify",
        };
        note.dhcp = Some(name.to_owned());
        self.write(network.id, &note)?;
        server::serve(manage, verb, name, &Dhcp::of(lan.cidr())).await?;
        Ok(true)
    }

    /// Says, before anything is touched, whether a network of this range can be had.
    ///
    /// # Errors
    /// [`Kind::Conflict`] with both shown.
    pub(crate) async fn check(
        &self,
        manage: &Manage,
        version: Version,
        lan: &Lan,
        network: &Network,
    ) -> Result<()> {
        let note = self.read(network.id)?;
        let there = interfaces(manage).await?;
        let name = match lan {
            Lan::Internal { .. } => {
                apart(&there, lan.cidr())?;
                lan.internal_name(network)
            }
            Lan::HostOnly { host, cidr, .. } => {
                let fits = fitting(&there, *host, *cidr)?;
                if fits.is_none() {
                    allowed(*cidr, version)?;
                }
                fits.map(|there| Attachment::HostOnly(there.name.clone()).network())
            }
        };
        if name.is_none() || !note.made() {
            let own: Vec<&str> = there.iter().map(|one| one.name.as_str()).collect();
            routes::free(&routes::of_host()?, &own, lan.cidr()).map_err(|error| {
                error.hint("choose another range with `--virtualbox-intnet-cidr` or `--virtualbox-hostonly-cidr`; `ip route` lists those of this host")
            })?;
        }
        match name {
            Some(name) if lan.served() => {
                Step::of(&servers(manage).await?, wanted(&name, lan, &note)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The host-only interface with this address, made when there is none.
    async fn interface(
        &self,
        manage: &Manage,
        host: Ipv4Addr,
        cidr: Ipv4Net,
        network: &Network,
    ) -> Result<String> {
        let mut note = self.read(network.id)?;
        let all = interfaces(manage).await?;
        if let Some(there) = fitting(&all, host, cidr)? {
            return Ok(there.name.clone());
        }
        // One that an earlier call made and did not configure any more.
        let begun = note.interface.clone().filter(|_| note.address.is_none());
        let unfinished = begun.or_else(|| {
            let before = note.before.as_ref()?;
            let new = all
                .iter()
                .find(|interface| !before.contains(&interface.name))?;
            Some(new.name.clone())
        });
        let name = match unfinished.filter(|name| all.iter().any(|there| there.name == *name)) {
            Some(name) => name,
            None => {
                let before: Vec<String> = all.into_iter().map(|interface| interface.name).collect();
                note.before = Some(before.clone());
                self.write(network.id, &note)?;
                manage.call(&["hostonlyif", "create"]).await?;
                interfaces(manage)
                    .await?
                    .into_iter()
                    .map(|interface| interface.name)
                    .find(|name| !before.contains(name))
                    .ok_or_else(|| {
                        Error::new(
                            Kind::Failed,
                            "VirtualBox made a host-only interface, and lists none that is new",
                        )
                    })?
            }
        };
        note.interface = Some(name.clone());
        note.address = None;
        note.before = None;
        self.write(network.id, &note)?;
        let (given, mask) = (host.to_string(), cidr.netmask().to_string());
        manage
            .call(&[
                "hostonlyif",
                "ipconfig",
                &name,
                "--ip",
                &given,
                "--netmask",
                &mask,
            ])
            .await?;
        note.address = Some(host);
        self.write(network.id, &note)?;
        Ok(name)
    }

    /// Takes down what forge made for a network. Gone already: succeeds.
    ///
    /// # Errors
    /// What VirtualBox said.
    pub(crate) async fn release(&self, manage: &Manage, network: &Network) -> Result<()> {
        let Some(_work) = hold::work_within(&self.folder, TURN).await? else {
            return Ok(());
        };
        let note = self.read(network.id)?;
        // Somebody else's machines may have been given leases there meanwhile.
        let mut shared = false;
        if let Some(name) = &note.dhcp
            && let Some(server) = servers(manage)
                .await?
                .iter()
                .find(|server| server.name == *name)
        {
            shared = !server.leases.is_empty();
            if !shared {
                manage
                    .call(&["dhcpserver", "remove", "--network", name])
                    .await?;
            }
        }
        if let Some(name) = &note.interface
            && !shared
            && interfaces(manage).await?.iter().any(|there| {
                there.name == *name && (note.address.is_none() || there.address == note.address)
            })
        {
            manage.call(&["hostonlyif", "remove", name]).await?;
        }
        let file = self.note_file(network.id);
        atomic::gone(fs::remove_file(&file), &file)
    }
}

/// The server that a network is to have.
fn wanted<'a>(name: &'a str, lan: &Lan, note: &Note) -> Wanted<'a> {
    let interface = name.strip_prefix(HOST_ONLY_PREFIX);
    Wanted {
        name,
        cidr: lan.cidr(),
        host_only: matches!(lan, Lan::HostOnly { .. }),
        // A network of the store's own is nobody else's; with an interface that forge made VirtualBox may bring one.
        ours: note.dhcp.as_deref() == Some(name)
            || matches!(lan, Lan::Internal { name: None, .. })
            || (interface.is_some() && note.interface.as_deref() == interface),
    }
}

/// Refuses the range of an internal network that a host-only network has.
fn apart(all: &[Interface], cidr: Ipv4Net) -> Result<()> {
    for interface in all {
        if let Some(range) = interface.range()
            && routes::overlap(range, cidr)
        {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the network {cidr} of forge overlaps VirtualBox's host-only network `{}`, which is {range}",
                    interface.name
                ),
            )
            .hint("choose another range with `--virtualbox-intnet-cidr`"));
        }
    }
    Ok(())
}

/// Takes a machine's lease back. Gone already, with or without the server: succeeds.
///
/// # Errors
/// What VirtualBox said.
pub(crate) async fn unlease(manage: &Manage, attachment: &Attachment, claim: Claim) -> Result<()> {
    let name = attachment.network();
    if !servers(manage)
        .await?
        .iter()
        .any(|server| server.name == name)
    {
        return Ok(());
    }
    let claim = claim.to_string();
    let words = [
        "dhcpserver",
        "modify",
        "--network",
        &name,
        "--vm",
        &claim,
        "--nic",
        SECOND,
        "--remove-config",
    ];
    manage.call(&words).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
    }

    #[test]
    fn an_internal_network_is_apart_from_host_only_ones() {
        let interface = Interface {
            name: "vboxnet0".into(),
            address: Some(Ipv4Addr::new(192, 168, 56, 1)),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        };
        let all = std::slice::from_ref(&interface);
        apart(all, range("10.133.7.0/24")).expect("apart");
        let error = apart(all, range("192.168.0.0/16")).expect_err("overlaps");
        assert_eq!(
            error.message(),
            "the network 192.168.0.0/16 of forge overlaps VirtualBox's host-only network `vboxnet0`, which is 192.168.56.0/24"
        );
    }
}
