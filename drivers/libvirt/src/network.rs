//! The networks that machines are on.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use forge_driver::assets::Assets;
use forge_driver::{Error, Kind, Network, Result, routes};
use ipnet::Ipv4Net;
use roxmltree::Document;
use serde::{Deserialize, Serialize};

use crate::domain::render;
use crate::virsh::Virsh;

/// The network that machines are put on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Choice {
    /// One that forge makes; NAT leads out of it, and nothing but its host into it.
    #[default]
    Forge,
    /// One that forge makes; what has a route to it reaches its machines.
    Routed,
    /// One that somebody else defined at this libvirt.
    Named(String),
    /// A bridge of the host.
    Bridge(String),
}

impl Choice {
    /// Whether forge makes it, and its range is known before.
    #[must_use]
    pub fn own(&self) -> bool {
        matches!(self, Self::Forge | Self::Routed)
    }

    /// Whether a daemon without rights on the host's networks cannot give it.
    pub(crate) fn needs_rights(&self) -> bool {
        !matches!(self, Self::Bridge(_))
    }

    /// How packets leave it (<https://libvirt.org/formatnetwork.html#connectivity>).
    fn mode(&self) -> &'static str {
        match self {
            Self::Routed => "route",
            _ => "nat",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forge => f.write_str("forge"),
            Self::Routed => f.write_str("routed"),
            Self::Named(name) => f.write_str(name),
            Self::Bridge(name) => write!(f, "bridge:{name}"),
        }
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |name: &str| {
            !name.is_empty()
                && !name.starts_with(['-', '.'])
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match (text, text.strip_prefix("bridge:")) {
            ("forge", _) => Ok(Self::Forge),
            ("routed", _) => Ok(Self::Routed),
            // Interfaces have names of at most 15 characters.
            (_, Some(name)) if plain(name) && name.len() <= 15 => Ok(Self::Bridge(name.to_owned())),
            (name, None) if plain(name) => Ok(Self::Named(name.to_owned())),
            _ => Err(Error::new(
                Kind::Usage,
                format!("`--libvirt-network {}` is not a network", text.escape_debug()),
            )
            .hint("it is `forge`, `routed`, the name of a network of that libvirt (`virsh net-list --all`), or `bridge:NAME` for a bridge of its host")),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.line())
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

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
pub(crate) async fn ensure(
    virsh: &Virsh,
    assets: &Assets,
    network: &Network,
    choice: &Choice,
) -> Result<()> {
    let id = network.id.to_string();
    let settled = ["net-list", "--all", "--autostart", "--uuid"];
    if virsh.lists(&settled, &id).await? {
        return start(virsh, "--uuid", &id).await;
    }
    // A command that was killed may have defined it and no more. One that somebody undefined while it was up is
    // defined again, or it could not start with its host.
    let defined = ["net-list", "--all", "--persistent", "--uuid"];
    if !virsh.lists(&defined, &id).await? {
        check(virsh, network, choice).await?;
        // The first address of a range is a router's by custom: no machine gets it.
        let gateway = Ipv4Addr::from(u32::from(network.cidr.network()) + 1);
        let document = render(
            assets,
            "templates/libvirt/network.xml.tera",
            serde_json::json!({
                "name": name(network),
                "id": id,
                "mode": choice.mode(),
                "bridge": bridge(network),
                "gateway": gateway,
                "prefix": network.cidr.prefix_len(),
            }),
        )?;
        let done = virsh.feed(&["net-define", "/dev/stdin"], &document).await;
        if done.is_err() && !virsh.lists(&defined, &id).await? {
            return done.map(drop);
        }
    }
    virsh.call(&["net-autostart", &id]).await?;
    start(virsh, "--uuid", &id).await
}

/// Starts a network that is defined, by its UUID or its name as `by` has it. Started already: succeeds.
pub(crate) async fn start(virsh: &Virsh, by: &str, id: &str) -> Result<()> {
    if virsh.lists(&["net-list", by], id).await? {
        return Ok(());
    }
    let started = virsh.call(&["net-start", id]).await;
    if started.is_err() && virsh.lists(&["net-list", by], id).await? {
        // Another command was faster.
        return Ok(());
    }
    started.map(drop)
}

/// Refuses a range that overlaps that of another network of this daemon or a route of this host, and a network of forge's that is there
/// and of another kind.
///
/// # Errors
/// [`Kind::Conflict`] with both shown.
pub(crate) async fn check(virsh: &Virsh, network: &Network, choice: &Choice) -> Result<()> {
    let own = network.id.to_string();
    let all = virsh.call(&["net-list", "--all", "--uuid"]).await?;
    let ids: Vec<&str> = all
        .lines()
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .collect();
    let commands: Vec<String> = ids.iter().map(|id| format!("net-dumpxml {id}")).collect();
    let mut there = false;
    for (id, text) in ids.iter().zip(virsh.batch(&commands).await?) {
        if *id == own {
            there = true;
            same_kind(&text, network, choice)?;
        } else {
            overlap(&text, network.cidr)?;
        }
    }
    // Once it is there, its own route is among the host's; those of another host are not known here.
    if there || virsh.uri().over_ssh() {
        return Ok(());
    }
    routes::free(&routes::of_host()?, &[], network.cidr).map_err(|error| {
        error.hint("choose another range with `--libvirt-network-cidr`; `ip route` lists those of this host")
    })
}

fn same_kind(description: &str, network: &Network, choice: &Choice) -> Result<()> {
    let Ok(document) = Document::parse(description) else {
        return Ok(());
    };
    let mode = mode(&document);
    if mode == choice.mode() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!(
            "the network {} of forge is there with `{mode}`, and machines are on it; `--libvirt-network {choice}` is `{}`",
            network.cidr,
            choice.mode()
        ),
    )
    .hint("choose another range with `--libvirt-network-cidr`"))
}

/// How packets leave a network: `isolated` when they do not.
pub(crate) fn mode(document: &Document<'_>) -> String {
    document
        .root_element()
        .children()
        .find(|node| node.has_tag_name("forward"))
        .map_or("isolated", |node| node.attribute("mode").unwrap_or("nat"))
        .to_owned()
}

fn overlap(description: &str, cidr: Ipv4Net) -> Result<()> {
    for Titled { name, range } in titled(description) {
        if routes::overlap(range, cidr) {
            return Err(Error::new(
                Kind::Conflict,
                format!("the network {cidr} of forge overlaps libvirt's network `{name}`, which is {range}"),
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

/// A range, and the name of the network that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Titled {
    pub(crate) name: String,
    pub(crate) range: Ipv4Net,
}

/// The ranges of all networks of a daemon that are up.
///
/// # Errors
/// When it cannot be asked.
pub(crate) async fn active(virsh: &Virsh) -> Result<Vec<Titled>> {
    let all = virsh.call(&["net-list", "--uuid"]).await?;
    let commands: Vec<String> = all
        .lines()
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(|id| format!("net-dumpxml {id}"))
        .collect();
    let texts = virsh.batch(&commands).await?;
    Ok(texts.iter().flat_map(|text| titled(text)).collect())
}

/// The ranges of one network, also while it is stopped; none when it is not there.
///
/// # Errors
/// When the daemon cannot be asked.
pub(crate) async fn of(virsh: &Virsh, name: &str) -> Result<Vec<Titled>> {
    let texts = virsh.batch(&[format!("net-dumpxml {name}")]).await?;
    Ok(texts.iter().flat_map(|text| titled(text)).collect())
}

fn titled(description: &str) -> Vec<Titled> {
    let Ok(document) = Document::parse(description) else {
        // Removed since it was listed.
        return Vec::new();
    };
    let name = title(&document);
    let named = |range| Titled {
        name: name.clone(),
        range,
    };
    ranges(&document).into_iter().map(named).collect()
}

fn title(document: &Document<'_>) -> String {
    document
        .descendants()
        .find(|node| node.has_tag_name("name"))
        .and_then(|node| node.text())
        .unwrap_or_default()
        .to_owned()
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
    fn networks_have_names() {
        for (text, choice) in [
            ("forge", Choice::Forge),
            ("routed", Choice::Routed),
            ("default", Choice::Named("default".into())),
            ("bridge:br0", Choice::Bridge("br0".into())),
        ] {
            let parsed: Choice = text.parse().expect(text);
            assert_eq!(parsed, choice);
            assert_eq!(parsed.to_string(), text);
        }
        for text in [
            "",
            "a b",
            "-x",
            "bridge:",
            "bridge:-x",
            "bridge:0123456789abcdef",
            "a'b",
            "x:y",
        ] {
            let error = text.parse::<Choice>().expect_err(text);
            assert_eq!(error.kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn a_network_of_forge_s_keeps_its_kind() {
        let network = Network {
            id: uuid::Uuid::new_v4(),
            cidr: "10.0.0.0/24".parse().expect("a range"),
            owner: uuid::Uuid::new_v4(),
        };
        let routed = "<network><name>n</name><forward mode='route'/></network>";
        same_kind(routed, &network, &Choice::Routed).expect("the same");
        let error = same_kind(routed, &network, &Choice::Forge).expect_err("another");
        assert_eq!(error.kind(), Kind::Conflict);
        let kind = |text: &str| mode(&Document::parse(text).expect("XML"));
        assert_eq!(kind("<network><forward/></network>"), "nat");
        assert_eq!(kind("<network/>"), "isolated");
    }
}
