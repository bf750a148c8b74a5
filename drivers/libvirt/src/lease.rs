//! The fixed lease of each machine on a network whose DHCP server is libvirt's.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use forge_driver::{Error, Kind, Mac, Nic, Result};
use roxmltree::Document;

use crate::network;
use crate::virsh::Virsh;

/// Others may take addresses at the same time: so often another one is tried.
const TRIES: usize = 20;

/// The machine gets its address from the DHCP server of forge's network. Already so: succeeds.
///
/// # Errors
/// [`Kind::Conflict`] when the address is somebody else's.
pub(crate) async fn give(virsh: &Virsh, nic: &Nic) -> Result<()> {
    let id = nic.network.id.to_string();
    let text = virsh.call(&["net-dumpxml", &id]).await?;
    let name = network::name(&nic.network);
    match taken(&text, nic.mac, nic.address) {
        Lease::Ours => Ok(()),
        Lease::Foreign(entry) => Err(Error::new(
            Kind::Conflict,
            format!(
                "the address {} on network `{name}` is given to {entry}",
                nic.address
            ),
        )
        .hint(format!(
            "`virsh net-edit {name}` shows and removes that entry"
        ))),
        Lease::None => update(virsh, "add", &id, nic.mac, nic.address).await,
    }
}

/// Takes the lease back. Gone already: succeeds.
///
/// # Errors
/// What libvirt said.
pub(crate) async fn take(virsh: &Virsh, nic: &Nic) -> Result<()> {
    let id = nic.network.id.to_string();
    if !virsh.lists(&["net-list", "--all", "--uuid"], &id).await? {
        return Ok(());
    }
    let text = virsh.call(&["net-dumpxml", &id]).await?;
    match taken(&text, nic.mac, nic.address) {
        Lease::Ours => update(virsh, "delete", &id, nic.mac, nic.address).await,
        Lease::Foreign(_) | Lease::None => Ok(()),
    }
}

/// A free address of the named network, given to the machine from now on; `None` where another server than
/// libvirt's gives out addresses. Given already: the same one.
///
/// # Errors
/// [`Kind::Conflict`] when none is free.
pub(crate) async fn choose(virsh: &Virsh, network: &str, mac: Mac) -> Result<Option<Ipv4Addr>> {
    let mut refused = None;
    for _ in 0..TRIES {
        let text = virsh.call(&["net-dumpxml", network]).await?;
        if let Some(address) = given(&text, mac) {
            return Ok(Some(address));
        }
        let current = virsh.call(&["net-dhcp-leases", network]).await?;
        let free = match free(&text, &current, mac) {
            Room::NoServer => return Ok(None),
            Room::Full => break,
            Room::Free(address) => address,
        };
        match update(virsh, "add", network, mac, free).await {
            Ok(()) => return Ok(Some(free)),
            // Another machine was given it in this moment.
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| {
        Error::new(
            Kind::Conflict,
            format!("libvirt's network `{network}` has no free address left"),
        )
        .hint("remove machines, or use another network with `--libvirt-network`")
    }))
}

/// The machine has the address that [`choose`] gave it. Already so: succeeds.
///
/// # Errors
/// What libvirt said, when it is somebody else's by now.
pub(crate) async fn keep(virsh: &Virsh, network: &str, mac: Mac, address: Ipv4Addr) -> Result<()> {
    let text = virsh.call(&["net-dumpxml", network]).await?;
    if given(&text, mac) == Some(address) {
        return Ok(());
    }
    update(virsh, "add", network, mac, address).await
}

/// Takes back what [`choose`] gave. Gone already: succeeds.
///
/// # Errors
/// What libvirt said.
pub(crate) async fn leave(virsh: &Virsh, network: &str, mac: Mac) -> Result<()> {
    if !virsh
        .lists(&["net-list", "--all", "--name"], network)
        .await?
    {
        return Ok(());
    }
    let text = virsh.call(&["net-dumpxml", network]).await?;
    match given(&text, mac) {
        Some(address) => update(virsh, "delete", network, mac, address).await,
        None => Ok(()),
    }
}

async fn update(virsh: &Virsh, verb: &str, id: &str, mac: Mac, address: Ipv4Addr) -> Result<()> {
    let entry = format!("<host mac='{mac}' ip='{address}'/>");
    let mut words = vec!["net-update", id, verb, "ip-dhcp-host", &entry, "--config"];
    let active = virsh.call(&["net-info", id]).await?;
    if crate::virsh::field(&active, "Active") == Some("yes") {
        words.push("--live");
    }
    virsh.call(&words).await.map(drop)
}

#[derive(Debug, PartialEq, Eq)]
enum Lease {
    None,
    Ours,
    Foreign(String),
}

/// The fixed leases of a description: hardware address in lower case, address.
fn entries(description: &str) -> Vec<(String, String)> {
    let Ok(document) = Document::parse(description) else {
        return Vec::new();
    };
    document
        .descendants()
        .filter(|node| node.has_tag_name("host"))
        .map(|host| {
            let text = |name: &str| host.attribute(name).unwrap_or_default().to_owned();
            (text("mac").to_ascii_lowercase(), text("ip"))
        })
        .collect()
}

fn taken(description: &str, mac: Mac, address: Ipv4Addr) -> Lease {
    let (mac, address) = (mac.to_string(), address.to_string());
    let found = entries(description)
        .into_iter()
        .find(|(_, ip)| *ip == address);
    match found {
        None => Lease::None,
        Some((theirs, _)) if theirs == mac => Lease::Ours,
        Some((theirs, _)) => Lease::Foreign(theirs),
    }
}

fn given(description: &str, mac: Mac) -> Option<Ipv4Addr> {
    let mac = mac.to_string();
    entries(description)
        .into_iter()
        .find(|(theirs, _)| *theirs == mac)
        .and_then(|(_, address)| address.parse().ok())
}

#[derive(Debug, PartialEq, Eq)]
enum Room {
    NoServer,
    Full,
    Free(Ipv4Addr),
}

/// An address of the server's range that nobody has a lease for, fixed or current. Each machine looks from a
/// place of its own on, so that those made at the same time seldom meet.
fn free(description: &str, current: &str, mac: Mac) -> Room {
    let Ok(document) = Document::parse(description) else {
        return Room::NoServer;
    };
    let ranges: Vec<(u32, u32)> = document
        .descendants()
        .filter(|node| node.has_tag_name("range"))
        .filter_map(|node| {
            let end = |name: &str| node.attribute(name)?.parse::<Ipv4Addr>().ok();
            Some((u32::from(end("start")?), u32::from(end("end")?)))
        })
        .filter(|(start, end)| start <= end)
        .collect();
    let Some((start, end)) = ranges.first().copied() else {
        return Room::NoServer;
    };
    let mut used: BTreeSet<Ipv4Addr> = entries(description)
        .iter()
        .filter_map(|(_, address)| address.parse().ok())
        .collect();
    used.extend(current.split_whitespace().filter_map(|word| {
        let (address, _) = word.split_once('/')?;
        address.parse::<Ipv4Addr>().ok()
    }));
    let count = (end - start).saturating_add(1).min(65_536);
    let own = mac.to_string().bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    (0..count)
        .map(|offset| Ipv4Addr::from(start + (own % count + offset) % count))
        .find(|address| !used.contains(address))
        .map_or(Room::Full, Room::Free)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "<network><name>default</name><ip address='192.168.122.1' netmask='255.255.255.0'>\
        <dhcp><range start='192.168.122.8' end='192.168.122.10'/>\
        <host mac='52:54:00:AA:bb:01' ip='192.168.122.9'/></dhcp></ip></network>";

    fn mac(text: &str) -> Mac {
        text.parse().expect("an address")
    }

    #[test]
    fn a_lease_is_ours_or_somebody_s() {
        let (ours, other) = (mac("52:54:00:aa:bb:01"), mac("52:54:00:aa:bb:02"));
        let ip = Ipv4Addr::new(192, 168, 122, 9);
        assert_eq!(taken(DEFAULT, ours, ip), Lease::Ours);
        assert_eq!(given(DEFAULT, ours), Some(ip));
        assert_eq!(given(DEFAULT, other), None);
        assert_eq!(
            taken(DEFAULT, other, ip),
            Lease::Foreign("52:54:00:aa:bb:01".into())
        );
        assert_eq!(
            taken(DEFAULT, other, Ipv4Addr::new(192, 168, 122, 10)),
            Lease::None
        );
    }

    #[test]
    fn an_address_that_is_given_or_leased_is_not_free() {
        let other = mac("52:54:00:aa:bb:02");
        let leased = " 2026-01-01 10:00:00   52:54:00:99:99:99   ipv4   192.168.122.8/24   h   -\n";
        assert_eq!(
            free(DEFAULT, leased, other),
            Room::Free(Ipv4Addr::new(192, 168, 122, 10))
        );
        let both = format!("{leased} x 192.168.122.10/24");
        assert_eq!(free(DEFAULT, &both, other), Room::Full);
        assert_eq!(
            free("<network><bridge name='br0'/></network>", "", other),
            Room::NoServer
        );
    }
}
