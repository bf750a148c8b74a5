//! The networks between machines: VirtualBox's DHCP servers, host-only interfaces, and each machine's fixed lease.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use forge_driver::{Claim, Error, Kind, Network, Result, atomic, hold, versioned};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::info::{blocks, value};
use crate::lan::{Dhcp, Lan, is_own_name};
use crate::manage::{Manage, garbled};

/// The format of the notes that is written.
const FORMAT: u32 = 1;

/// The second interface of every machine, as VBoxManage counts them.
pub(crate) const SECOND: &str = "2";

/// Ranges in which VirtualBox lets a user make host-only networks when its administrator allowed no others
/// (<https://docs.oracle.com/en/virtualization/virtualbox/7.2/user/networkingdetails.html>, "Host-Only Networking").
const HOST_ONLY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 56, 0), 21);

/// Where an administrator allows others.
const ALLOWED: &str = "/etc/vbox/networks.conf";

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
    /// A host-only interface is being made; these were there before.
    before: Option<Vec<String>>,
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

    /// Brings up what machines share: the host-only interface, the DHCP server.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it overlaps something else, both shown.
    pub(crate) async fn ensure(
        &self,
        manage: &Manage,
        lan: &Lan,
        network: &Network,
    ) -> Result<Attachment> {
        atomic::private_folder(&self.folder)?;
        let _work = hold::work(&self.folder).await?;
        let attachment = match lan {
            Lan::Internal { .. } => {
                Attachment::Internal(lan.internal_name(network).unwrap_or_default())
            }
            Lan::HostOnly { host, cidr, .. } => {
                Attachment::HostOnly(self.interface(manage, *host, *cidr, network).await?)
            }
        };
        if lan.served() {
            self.server(manage, &attachment, lan, network).await?;
        }
        Ok(attachment)
    }

    /// The DHCP server of a network is there, as forge wants it.
    async fn server(
        &self,
        manage: &Manage,
        attachment: &Attachment,
        lan: &Lan,
        network: &Network,
    ) -> Result<()> {
        let name = attachment.network();
        let wanted = Dhcp::of(lan.cidr());
        let mut note = self.read(network.id)?;
        let servers = servers(manage).await?;
        refuse_overlap(&servers, &name, lan.cidr())?;
        match servers.iter().find(|server| server.name == name) {
            Some(there) if there.dhcp == wanted && there.enabled => return Ok(()),
            // A call that was cut off, or refused half-way, left it unfinished; or VirtualBox made it by itself.
            Some(there) if note.dhcp.as_ref() == Some(&name) || there.unused() => {
                note.dhcp = Some(name.clone());
                self.write(network.id, &note)?;
                serve(manage, "modify", &name, &wanted).await?;
            }
            // On a host-only network another range of leases does no harm: forge's are fixed.
            Some(there)
                if matches!(attachment, Attachment::HostOnly(_))
                    && there.enabled
                    && there.dhcp.cidr() == Some(lan.cidr()) => {}
            Some(there) => return Err(differs(there, &wanted)),
            None => {
                note.dhcp = Some(name.clone());
                self.write(network.id, &note)?;
                serve(manage, "add", &name, &wanted).await?;
            }
        }
        Ok(())
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
        let unfinished = note.interface.clone().or_else(|| {
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
        note.before = None;
        self.write(network.id, &note)?;
        let (host, mask) = (host.to_string(), cidr.netmask().to_string());
        manage
            .call(&[
                "hostonlyif",
                "ipconfig",
                &name,
                "--ip",
                &host,
                "--netmask",
                &mask,
            ])
            .await?;
        Ok(name)
    }

    /// Takes down what forge made for a network. Gone already: succeeds.
    ///
    /// # Errors
    /// What VirtualBox said.
    pub(crate) async fn release(&self, manage: &Manage, network: &Network) -> Result<()> {
        let Some(_work) = hold::work(&self.folder).await? else {
            return Ok(());
        };
        let note = self.read(network.id)?;
        if let Some(name) = &note.dhcp
            && let Some(server) = servers(manage).await?.iter().find(|server| server.name == *name)
            // Somebody else's machines may have been given leases there meanwhile.
            && server.leases.is_empty()
        {
            manage
                .call(&["dhcpserver", "remove", "--network", name])
                .await?;
        }
        if let Some(name) = &note.interface
            && interfaces(manage)
                .await?
                .iter()
                .any(|there| there.name == *name)
        {
            manage.call(&["hostonlyif", "remove", name]).await?;
        }
        let file = self.note_file(network.id);
        atomic::gone(fs::remove_file(&file), &file)
    }
}

/// Says, before anything is touched, whether a network of this range can be had.
///
/// # Errors
/// [`Kind::Conflict`] with both shown.
pub(crate) async fn check(manage: &Manage, lan: &Lan, network: &Network) -> Result<()> {
    match lan {
        Lan::Internal { .. } => {
            let name = lan.internal_name(network).unwrap_or_default();
            let servers = servers(manage).await?;
            refuse_overlap(&servers, &name, lan.cidr())?;
            let wanted = Dhcp::of(lan.cidr());
            match servers.iter().find(|server| server.name == name) {
                Some(there) if !there.unused() && there.dhcp != wanted && !is_own_name(&name) => {
                    Err(differs(there, &wanted))
                }
                _ => Ok(()),
            }
        }
        Lan::HostOnly { host, cidr, .. } => {
            allowed(*cidr)?;
            fitting(&interfaces(manage).await?, *host, *cidr).map(drop)
        }
    }
}

/// Gives a machine its fixed lease.
///
/// # Errors
/// [`Kind::Conflict`] when the address is somebody else's.
pub(crate) async fn lease(
    manage: &Manage,
    attachment: &Attachment,
    claim: Claim,
    address: Ipv4Addr,
) -> Result<()> {
    let name = attachment.network();
    let servers = servers(manage).await?;
    let ours = format!("VM NIC: {claim} ");
    let other = servers
        .iter()
        .filter(|server| server.name == name)
        .flat_map(|server| &server.leases)
        .find(|lease| lease.address == address && !lease.whose.starts_with(&ours));
    if let Some(other) = other {
        return Err(Error::new(
            Kind::Conflict,
            format!("the address {address} on network `{name}` is given to {}", other.whose),
        )
        .hint(format!(
            "`VBoxManage list dhcpservers` shows it; choose another network, or take that lease back with `VBoxManage dhcpserver modify --network {name} … --remove-config`"
        )));
    }
    let (claim, address) = (claim.to_string(), address.to_string());
    let modify = ["dhcpserver", "modify", "--network", &name];
    manage
        .call(
            &[
                &modify[..],
                &["--vm", &claim, "--nic", SECOND, "--fixed-address", &address],
            ]
            .concat(),
        )
        .await?;
    // A server that runs has read its leases already; one that does not refuses to be restarted, and reads
    // them when it starts.
    let _ = manage
        .call(&["dhcpserver", "restart", "--network", &name])
        .await;
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

/// A DHCP server of VirtualBox.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    name: String,
    dhcp: Dhcp,
    enabled: bool,
    leases: Vec<Lease>,
}

impl Server {
    /// One that nobody has finished: VirtualBox leaves such a one when it refuses a range.
    fn unused(&self) -> bool {
        self.dhcp.server.is_unspecified() && self.leases.is_empty()
    }
}

/// A fixed lease.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    /// The machine or the hardware address, in VirtualBox's words.
    whose: String,
    address: Ipv4Addr,
}

async fn servers(manage: &Manage) -> Result<Vec<Server>> {
    let text = manage.call(&["list", "dhcpservers"]).await?;
    let found: Option<Vec<Server>> = blocks(&text, "NetworkName")
        .iter()
        .map(|block| server(block))
        .collect();
    match found {
        Some(found) if !found.is_empty() || text.trim().is_empty() => Ok(found),
        _ => Err(garbled(&["list", "dhcpservers"], &text)),
    }
}

fn server(block: &[(String, String)]) -> Option<Server> {
    let address = |key: &str| value(block, key)?.parse().ok();
    let mut leases = Vec::new();
    let mut whose = None;
    for (key, value) in block {
        match key.as_str() {
            "Individual Config" => whose = Some(value.clone()),
            "Fixed Address" => {
                if let (Some(whose), Ok(address)) = (whose.take(), value.parse()) {
                    leases.push(Lease { whose, address });
                }
            }
            _ => {}
        }
    }
    Some(Server {
        name: value(block, "NetworkName")?.to_owned(),
        dhcp: Dhcp {
            server: address("Dhcpd IP")?,
            mask: address("NetworkMask")?,
            lower: address("LowerIPAddress")?,
            upper: address("UpperIPAddress")?,
        },
        enabled: value(block, "Enabled")? == "Yes",
        leases,
    })
}

/// Makes (`add`) or changes (`modify`) a server.
async fn serve(manage: &Manage, verb: &str, name: &str, dhcp: &Dhcp) -> Result<()> {
    let [server, mask, lower, upper] =
        [dhcp.server, dhcp.mask, dhcp.lower, dhcp.upper].map(|address| address.to_string());
    let mut words = vec!["dhcpserver", verb, "--network", name];
    words.extend(["--server-ip", &server, "--netmask", &mask]);
    words.extend(["--lower-ip", &lower, "--upper-ip", &upper, "--enable"]);
    manage.call(&words).await.map(drop)
}

fn differs(there: &Server, wanted: &Dhcp) -> Error {
    let shown = |dhcp: &Dhcp| {
        format!(
            "{} (mask {}, leases {} to {})",
            dhcp.server, dhcp.mask, dhcp.lower, dhcp.upper
        )
    };
    let disabled = if there.enabled { "" } else { ", disabled" };
    Error::new(
        Kind::Conflict,
        format!(
            "the network `{}` of VirtualBox has another DHCP server than forge needs: {}{disabled} instead of {}",
            there.name,
            shown(&there.dhcp),
            shown(wanted)
        ),
    )
    .hint("choose another network with `--virtualbox-intnet`, or its range with `--virtualbox-intnet-cidr`")
}

/// Refuses a range that overlaps that of another network's server. Networks of forge's own, here or of another
/// store, are apart: no frame goes from one to the other.
fn refuse_overlap(servers: &[Server], name: &str, cidr: Ipv4Net) -> Result<()> {
    for server in servers {
        let Some(other) = server.dhcp.cidr() else {
            continue;
        };
        let apart = server.name == name
            || server.dhcp.server.is_unspecified()
            || (is_own_name(&server.name) && is_own_name(name));
        if !apart && (other.contains(&cidr) || cidr.contains(&other)) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the network {cidr} of forge overlaps VirtualBox's network `{}`, which is {other}",
                    server.name
                ),
            )
            .hint("choose another range with `--virtualbox-intnet-cidr`"));
        }
    }
    Ok(())
}

/// A host-only interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    address: Option<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
}

async fn interfaces(manage: &Manage) -> Result<Vec<Interface>> {
    let text = manage.call(&["list", "hostonlyifs"]).await?;
    let blocks = blocks(&text, "Name");
    if blocks.is_empty() && !text.trim().is_empty() {
        return Err(garbled(&["list", "hostonlyifs"], &text));
    }
    Ok(blocks
        .iter()
        .filter_map(|block| {
            Some(Interface {
                name: value(block, "Name")?.to_owned(),
                address: value(block, "IPAddress").and_then(|text| text.parse().ok()),
                mask: value(block, "NetworkMask").and_then(|text| text.parse().ok()),
            })
        })
        .collect())
}

/// The interface that has just this address; one that overlaps it otherwise is refused.
fn fitting(all: &[Interface], host: Ipv4Addr, cidr: Ipv4Net) -> Result<Option<&Interface>> {
    for interface in all {
        let (Some(address), Some(mask)) = (interface.address, interface.mask) else {
            continue;
        };
        let Ok(range) = Ipv4Net::with_netmask(address, mask) else {
            continue;
        };
        if address == host && range.trunc() == cidr {
            return Ok(Some(interface));
        }
        if range.contains(&cidr.network()) || cidr.contains(&range.network()) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the host-only network {cidr} with this host at {host} overlaps VirtualBox's `{}`, which is {range}",
                    interface.name
                ),
            )
            .hint("use that one, or choose another with `--virtualbox-hostonly-cidr`"));
        }
    }
    Ok(None)
}

/// Refuses a range in which VirtualBox would make no host-only network.
fn allowed(cidr: Ipv4Net) -> Result<()> {
    // Elsewhere VirtualBox has no such rule.
    if !cfg!(unix) {
        return Ok(());
    }
    permitted(cidr, fs::read_to_string(ALLOWED).ok().as_deref())
}

fn permitted(cidr: Ipv4Net, conf: Option<&str>) -> Result<()> {
    let ranges: Vec<Ipv4Net> = match conf {
        // One range, or several, after an asterisk on each line; IPv6 ones are none of ours.
        Some(text) => text
            .lines()
            .filter_map(|line| line.trim().strip_prefix('*'))
            .flat_map(str::split_whitespace)
            .filter_map(|range| range.parse().ok())
            .collect(),
        None => vec![HOST_ONLY],
    };
    if ranges.iter().any(|range| range.contains(&cidr)) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!("VirtualBox allows no host-only network {cidr} here"),
    )
    .hint(format!(
        "take one inside {HOST_ONLY}, or allow it with a line `* {cidr}` in `{ALLOWED}`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "NetworkName:    HostInterfaceNetworking-vboxnet0\nDhcpd IP:       192.168.56.100\n\
        LowerIPAddress: 192.168.56.101\nUpperIPAddress: 192.168.56.254\nNetworkMask:    255.255.255.0\n\
        Enabled:        Yes\nGlobal Configuration:\n    minLeaseTime:     default\n\
        \x20       1/legacy: 255.255.255.0\nGroups:               None\nIndividual Configs:   None\n\n\
        NetworkName:    forge\nDhcpd IP:       10.133.7.99\nLowerIPAddress: 10.133.7.100\n\
        UpperIPAddress: 10.133.7.200\nNetworkMask:    255.255.255.0\nEnabled:        Yes\n\
        Global Configuration:\n    minLeaseTime:     default\nGroups:               None\n\
        Individual Config:    VM NIC: 11111111-2222-4333-8444-555555555501 slot 1, MAC 08:00:27:aa:bb:02\n\
        \x20   Fixed Address:    10.133.7.101\n    minLeaseTime:     default\n";

    fn listed() -> Vec<Server> {
        blocks(LISTED, "NetworkName")
            .iter()
            .map(|block| server(block).expect("a server"))
            .collect()
    }

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
    }

    #[test]
    fn servers_and_leases_are_read() {
        let found = listed();
        assert_eq!(found.len(), 2);
        assert!(found[0].leases.is_empty() && found[0].enabled);
        assert_eq!(found[1].dhcp, Dhcp::of(range("10.133.7.0/24")));
        assert_eq!(found[1].leases.len(), 1);
        assert_eq!(found[1].leases[0].address, Ipv4Addr::new(10, 133, 7, 101));
        assert!(
            found[1].leases[0]
                .whose
                .starts_with("VM NIC: 11111111-2222-4333-8444-555555555501 ")
        );
        assert_eq!(server(&[("NetworkName".into(), "x".into())]), None);
    }

    #[test]
    fn an_overlap_is_refused_with_both_shown() {
        let servers = listed();
        refuse_overlap(&servers, "forge", range("10.133.7.0/24")).expect("the same one");
        refuse_overlap(&servers, "other", range("10.133.8.0/24")).expect("apart");
        let error =
            refuse_overlap(&servers, "other", range("10.133.0.0/16")).expect_err("overlaps");
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(
            error.message(),
            "the network 10.133.0.0/16 of forge overlaps VirtualBox's network `forge`, which is 10.133.7.0/24"
        );
        let mut own = servers;
        own[1].name = "forge-0123abcd".into();
        refuse_overlap(&own, "forge-89efabcd", range("10.133.7.0/24")).expect("another store's");
    }

    #[test]
    fn a_server_that_differs_is_shown_beside_what_is_needed() {
        let error = differs(&listed()[1], &Dhcp::of(range("10.9.0.0/24")));
        let line = error.line();
        assert!(
            line.contains("10.133.7.99") && line.contains("10.9.0.99"),
            "{line}"
        );
    }

    #[test]
    fn a_host_only_interface_fits_overlaps_or_is_apart() {
        let all = [Interface {
            name: "vboxnet0".into(),
            address: Some(Ipv4Addr::new(192, 168, 56, 1)),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        }];
        let host = Ipv4Addr::new(192, 168, 56, 1);
        let found = fitting(&all, host, range("192.168.56.0/24")).expect("fits");
        assert_eq!(found.map(|there| there.name.as_str()), Some("vboxnet0"));
        let host = Ipv4Addr::new(192, 168, 57, 1);
        assert_eq!(
            fitting(&all, host, range("192.168.57.0/24")).expect("apart"),
            None
        );
        let host = Ipv4Addr::new(192, 168, 56, 2);
        let error = fitting(&all, host, range("192.168.56.0/24")).expect_err("overlaps");
        assert!(error.message().contains("vboxnet0"), "{}", error.message());
    }

    #[test]
    fn host_only_ranges_are_those_that_virtualbox_allows() {
        permitted(range("192.168.56.0/24"), None).expect("the usual one");
        let error = permitted(range("192.168.99.0/24"), None).expect_err("not allowed");
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("192.168.56.0/21"))
        );
        let conf = "# mine\n* 192.168.99.0/24 10.0.0.0/8\n* 2001::/64\n";
        permitted(range("192.168.99.0/24"), Some(conf)).expect("allowed");
        permitted(range("192.168.56.0/24"), Some(conf)).expect_err("not any more");
    }
}
