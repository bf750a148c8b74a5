//! The network between machines, and the fixed lease of each.

use forge_driver::assets::Assets;
use forge_driver::{Error, Kind, Mac, Network, Nic, Result};
use ipnet::Ipv4Net;
use roxmltree::Document;
use std::net::Ipv4Addr;

use crate::domain::render;
use crate::virsh::Virsh;

/// What libvirt calls the network. Interfaces have names of at most 15 characters.
pub(crate) fn name(network: &Network) -> String {
    format!("forge-{}", &network.id.simple().to_string()[..8])
}

fn bridge(network: &Network) -> String {
    format!("fg-{}", &network.id.simple().to_string()[..8])
}

/// The network is defined and started, and starts with its host.
///
/// # Errors
/// [`Kind::Conflict`] when its range overlaps that of another network, with both shown.
pub(crate) async fn ensure(virsh: &Virsh, assets: &Assets, network: &Network) -> Result<()> {
    let id = network.id.to_string();
    if !virsh.lists(&["net-list", "--all", "--uuid"], &id).await? {
        check(virsh, network).await?;
        // The first address of a range is a router's by custom: no machine gets it.
        let gateway = Ipv4Addr::from(u32::from(network.cidr.network()) + 1);
        let document = render(
            assets,
            "templates/libvirt/network.xml.tera",
            serde_json::json!({
                "name": name(network),
                "id": id,
                "bridge": bridge(network),
                "gateway": gateway,
                "prefix": network.cidr.prefix_len(),
            }),
        )?;
        let defined = virsh.feed(&["net-define", "/dev/stdin"], &document).await;
        if defined.is_err() && !virsh.lists(&["net-list", "--all", "--uuid"], &id).await? {
            return defined.map(drop);
        }
        virsh.call(&["net-autostart", &id]).await?;
    }
    start(virsh, &id).await
}

/// Starts a network that is defined. Started already: succeeds.
async fn start(virsh: &Virsh, id: &str) -> Result<()> {
    if virsh.lists(&["net-list", "--uuid"], id).await? {
        return Ok(());
    }
    let started = virsh.call(&["net-start", id]).await;
    if started.is_err() && virsh.lists(&["net-list", "--uuid"], id).await? {
        // Another command was faster.
        return Ok(());
    }
    started.map(drop)
}

/// Refuses a range that overlaps that of another network of this daemon.
///
/// # Errors
/// [`Kind::Conflict`] with both shown.
pub(crate) async fn check(virsh: &Virsh, network: &Network) -> Result<()> {
    let all = virsh.call(&["net-list", "--all", "--uuid"]).await?;
    let commands: Vec<String> = all
        .lines()
        .map(str::trim)
        .filter(|id| !id.is_empty() && *id != network.id.to_string())
        .map(|id| format!("net-dumpxml {id}"))
        .collect();
    for text in virsh.batch(&commands).await? {
        overlap(&text, network.cidr)?;
    }
    Ok(())
}

fn overlap(description: &str, cidr: Ipv4Net) -> Result<()> {
    let Ok(document) = Document::parse(description) else {
        // Removed since it was listed.
        return Ok(());
    };
    let title = document
        .descendants()
        .find(|node| node.has_tag_name("name"))
        .and_then(|node| node.text())
        .unwrap_or_default()
        .to_owned();
    for range in ranges(&document) {
        if range.contains(&cidr.network()) || cidr.contains(&range.network()) {
            return Err(Error::new(
                Kind::Conflict,
                format!("the network {cidr} of forge overlaps libvirt's network `{title}`, which is {range}"),
            )
            .hint("choose another range with `--libvirt-network-cidr`"));
        }
    }
    Ok(())
}

/// The ranges of a network's description (<https://libvirt.org/formatnetwork.html#addressing>).
fn ranges(document: &Document<'_>) -> Vec<Ipv4Net> {
    document
        .descendants()
        .filter(|node| node.has_tag_name("ip"))
        .filter_map(|node| {
            let address: Ipv4Addr = node.attribute("address")?.parse().ok()?;
            let net = match (node.attribute("prefix"), node.attribute("netmask")) {
                (Some(prefix), _) => Ipv4Net::new(address, prefix.parse().ok()?).ok()?,
                (None, Some(mask)) => Ipv4Net::with_netmask(address, mask.parse().ok()?).ok()?,
                (None, None) => return None,
            };
            Some(net.trunc())
        })
        .collect()
}

/// The machine gets its address from the network's DHCP server. Already so: succeeds.
///
/// # Errors
/// [`Kind::Conflict`] when the address is somebody else's.
pub(crate) async fn lease(virsh: &Virsh, nic: &Nic) -> Result<()> {
    let id = nic.network.id.to_string();
    let text = virsh.call(&["net-dumpxml", &id]).await?;
    match taken(&text, nic.mac, nic.address) {
        Lease::Ours => return Ok(()),
        Lease::Foreign(entry) => {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the address {} on network `{}` is given to {entry}",
                    nic.address,
                    name(&nic.network)
                ),
            )
            .hint(format!(
                "`virsh net-edit {}` shows and removes that entry",
                name(&nic.network)
            )));
        }
        Lease::None => {}
    }
    update(virsh, "add", nic).await
}

/// Takes the lease back. Gone already: succeeds.
///
/// # Errors
/// What libvirt said.
pub(crate) async fn unlease(virsh: &Virsh, nic: &Nic) -> Result<()> {
    let id = nic.network.id.to_string();
    if !virsh.lists(&["net-list", "--all", "--uuid"], &id).await? {
        return Ok(());
    }
    let text = virsh.call(&["net-dumpxml", &id]).await?;
    match taken(&text, nic.mac, nic.address) {
        Lease::Ours => update(virsh, "delete", nic).await,
        Lease::Foreign(_) | Lease::None => Ok(()),
    }
}

async fn update(virsh: &Virsh, verb: &str, nic: &Nic) -> Result<()> {
    let id = nic.network.id.to_string();
    let entry = format!("<host mac='{}' ip='{}'/>", nic.mac, nic.address);
    let mut words = vec!["net-update", &id, verb, "ip-dhcp-host", &entry, "--config"];
    if virsh.lists(&["net-list", "--uuid"], &id).await? {
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

fn taken(description: &str, mac: Mac, address: Ipv4Addr) -> Lease {
    let Ok(document) = Document::parse(description) else {
        return Lease::None;
    };
    let (mac, address) = (mac.to_string(), address.to_string());
    for host in document
        .descendants()
        .filter(|node| node.has_tag_name("host"))
    {
        let theirs = host
            .attribute("mac")
            .unwrap_or_default()
            .to_ascii_lowercase();
        match (
            theirs == mac,
            host.attribute("ip") == Some(address.as_str()),
        ) {
            (true, true) => return Lease::Ours,
            (false, true) => return Lease::Foreign(theirs),
            _ => {}
        }
    }
    Lease::None
}

/// Stops and forgets the network. Gone already: succeeds.
///
/// # Errors
/// What libvirt said.
pub(crate) async fn release(virsh: &Virsh, network: &Network) -> Result<()> {
    let id = network.id.to_string();
    if virsh.lists(&["net-list", "--uuid"], &id).await? {
        virsh.call(&["net-destroy", &id]).await?;
    }
    if virsh.lists(&["net-list", "--all", "--uuid"], &id).await? {
        virsh.call(&["net-undefine", &id]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "<network><name>default</name><ip address='192.168.122.1' netmask='255.255.255.0'>\
        <dhcp><range start='192.168.122.2' end='192.168.122.254'/>\
        <host mac='52:54:00:AA:bb:01' ip='192.168.122.9'/></dhcp></ip></network>";

    #[test]
    fn an_overlap_is_refused_with_both_shown() {
        overlap(DEFAULT, "10.133.8.0/24".parse().expect("a range")).expect("apart");
        let error =
            overlap(DEFAULT, "192.168.0.0/16".parse().expect("a range")).expect_err("overlaps");
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(
            error.message(),
            "the network 192.168.0.0/16 of forge overlaps libvirt's network `default`, which is 192.168.122.0/24"
        );
        let v6 =
            "<network><name>x</name><ip family='ipv6' address='fd00::1' prefix='64'/></network>";
        overlap(v6, "10.0.0.0/8".parse().expect("a range")).expect("another family");
    }

    #[test]
    fn a_lease_is_ours_or_somebody_s() {
        let mac: Mac = "52:54:00:aa:bb:01".parse().expect("an address");
        let other: Mac = "52:54:00:aa:bb:02".parse().expect("an address");
        let ip = Ipv4Addr::new(192, 168, 122, 9);
        assert_eq!(taken(DEFAULT, mac, ip), Lease::Ours);
        assert_eq!(
            taken(DEFAULT, other, ip),
            Lease::Foreign("52:54:00:aa:bb:01".into())
        );
        assert_eq!(
            taken(DEFAULT, other, Ipv4Addr::new(192, 168, 122, 10)),
            Lease::None
        );
    }
}
