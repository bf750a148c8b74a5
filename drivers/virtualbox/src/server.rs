//! VirtualBox's DHCP servers: which there are, what has to be done about them, and the fixed leases of machines.

use std::net::Ipv4Addr;

use forge_driver::{Claim, Error, Kind, Result, routes};
use ipnet::Ipv4Net;

use crate::info::{blocks, value};
use crate::lan::{Dhcp, is_own_name};
use crate::manage::{Manage, garbled};
use crate::network::SECOND;

/// A DHCP server of VirtualBox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) name: String,
    dhcp: Dhcp,
    enabled: bool,
    pub(crate) leases: Vec<Lease>,
}

impl Server {
    /// One that nobody has finished: VirtualBox leaves such a one when it refuses a range.
    fn unused(&self) -> bool {
        self.dhcp.server.is_unspecified() && self.leases.is_empty()
    }
}

/// A fixed lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The machine or the hardware address, in VirtualBox's words.
    whose: String,
    address: Ipv4Addr,
}

/// All DHCP servers of this user's VirtualBox.
///
/// # Errors
/// When VirtualBox cannot be asked, or says nonsense.
pub(crate) async fn servers(manage: &Manage) -> Result<Vec<Server>> {
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
///
/// # Errors
/// What VirtualBox said.
pub(crate) async fn serve(manage: &Manage, verb: &str, name: &str, dhcp: &Dhcp) -> Result<()> {
    let [server, mask, lower, upper] =
        [dhcp.server, dhcp.mask, dhcp.lower, dhcp.upper].map(|address| address.to_string());
    let mut words = vec!["dhcpserver", verb, "--network", name];
    words.extend(["--server-ip", &server, "--netmask", &mask]);
    words.extend(["--lower-ip", &lower, "--upper-ip", &upper, "--enable"]);
    manage.call(&words).await.map(drop)
}

/// The server that a network is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The name of the network.
    pub(crate) name: &'a str,
    /// Its range.
    pub(crate) cidr: Ipv4Net,
    /// This host is on it.
    pub(crate) host_only: bool,
    /// Forge made the server, or that which it serves.
    pub(crate) ours: bool,
}

/// What has to be done for a network to have its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Nothing,
    /// There is none.
    Add,
    /// One is there that forge may change.
    Modify,
}

impl Step {
    /// Decides it by what is there. The pre-check and the making both ask here, so that they agree.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when another server is there, or another network overlaps, both shown.
    pub(crate) fn of(servers: &[Server], wanted: Wanted<'_>) -> Result<Self> {
        refuse_overlap(servers, wanted.name, wanted.cidr)?;
        let dhcp = Dhcp::of(wanted.cidr);
        let Some(there) = servers.iter().find(|server| server.name == wanted.name) else {
            return Ok(Self::Add);
        };
        // On a host-only network another range of leases does no harm: forge's are fixed.
        let serves =
            there.dhcp == dhcp || (wanted.host_only && there.dhcp.cidr() == Some(wanted.cidr));
        if serves && there.enabled {
            return Ok(Self::Nothing);
        }
        // A call that was cut off, or refused half-way, left it unfinished; or VirtualBox made it by itself.
        if wanted.ours || there.unused() {
            return Ok(Self::Modify);
        }
        Err(differs(there, &dhcp, wanted.host_only))
    }
}

fn differs(there: &Server, wanted: &Dhcp, host_only: bool) -> Error {
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
    .hint(if host_only {
        "`--virtualbox-hostonly-no-dhcp` does without it; or choose another network with `--virtualbox-hostonly-cidr`"
    } else {
        "choose another network with `--virtualbox-intnet`, or its range with `--virtualbox-intnet-cidr`"
    })
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
        if !apart && routes::overlap(other, cidr) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the network {cidr} of forge overlaps VirtualBox's network `{}`, which is {other}",
                    server.name
                ),
            )
            .hint(format!(
                "choose another range with `--virtualbox-intnet-cidr` or `--virtualbox-hostonly-cidr`; or, when nobody needs that one: `VBoxManage dhcpserver remove --network {}`",
                server.name
            )));
        }
    }
    Ok(())
}

/// A machine that is to have a fixed lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    /// Who.
    pub(crate) claim: Claim,
    /// Where.
    pub(crate) address: Ipv4Addr,
    /// It was given its lease, and the server was told: only what somebody took away since is given again.
    pub(crate) settled: bool,
}

/// Gives a machine its fixed lease.
///
/// # Errors
/// [`Kind::Conflict`] when the address is somebody else's.
pub(crate) async fn lease(
    manage: &Manage,
    name: &str,
    given: &[Lease],
    machine: Tenant,
) -> Result<()> {
    let Tenant {
        claim,
        address,
        settled,
    } = machine;
    let ours = format!("VM NIC: {claim} ");
    let (mine, others): (Vec<&Lease>, Vec<&Lease>) = given
        .iter()
        .filter(|lease| lease.address == address)
        .partition(|lease| lease.whose.starts_with(&ours));
    let other = others.first();
    if let Some(other) = other {
        return Err(Error::new(
            Kind::Conflict,
            format!("the address {address} on network `{name}` is given to {}", other.whose),
        )
        .hint(format!(
            "`VBoxManage list dhcpservers` shows it; choose another network, or take that lease back with `VBoxManage dhcpserver modify --network {name} … --remove-config`"
        )));
    }
    if settled && !mine.is_empty() {
        return Ok(());
    }
    let (claim, address) = (claim.to_string(), address.to_string());
    let modify = ["dhcpserver", "modify", "--network", name];
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
        .call(&["dhcpserver", "restart", "--network", name])
        .await;
    Ok(())
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
    fn a_server_is_kept_changed_or_refused_and_disabled_is_no_server() {
        let mut servers = listed();
        let wanted = |name, cidr: &str| Wanted {
            name,
            cidr: range(cidr),
            host_only: false,
            ours: false,
        };
        let forge = wanted("forge", "10.133.7.0/24");
        assert_eq!(Step::of(&servers, forge).expect("equal"), Step::Nothing);
        let absent = Step::of(&servers, wanted("new", "10.9.0.0/24"));
        assert_eq!(absent.expect("none"), Step::Add);
        servers[1].enabled = false;
        let error = Step::of(&servers, forge).expect_err("disabled");
        assert!(
            error.message().contains(", disabled instead of"),
            "{}",
            error.line()
        );
        let ours = Wanted {
            ours: true,
            ..forge
        };
        assert_eq!(Step::of(&servers, ours).expect("ours"), Step::Modify);
        let error = Step::of(&servers, wanted("forge", "10.9.0.0/24")).expect_err("another");
        let line = error.line();
        assert!(
            line.contains("10.133.7.99") && line.contains("10.9.0.99"),
            "{line}"
        );
        // On a host-only network the leases of others may be where they like, in the same range.
        let host_only = Wanted {
            host_only: true,
            ..wanted("HostInterfaceNetworking-vboxnet0", "192.168.56.0/24")
        };
        assert_eq!(Step::of(&servers, host_only).expect("equal"), Step::Nothing);
        servers[0].enabled = false;
        let error = Step::of(&servers, host_only).expect_err("disabled");
        let hint = error.deepest_hint().unwrap_or_default();
        assert!(hint.contains("--virtualbox-hostonly-no-dhcp"), "{hint}");
    }
}
