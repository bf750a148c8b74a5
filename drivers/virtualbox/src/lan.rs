//! What the second interface of a machine is on, and how addresses are given there.

use std::net::Ipv4Addr;

use forge_driver::{Error, Kind, Network, Result, options, routes};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The range of an internal network when none is said.
pub(crate) const INTERNAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 133, 7, 0), 24);

/// What every machine has behind its first interface, the same for all of them
/// (<https://docs.oracle.com/en/virtualization/virtualbox/7.2/user/networkingdetails.html>): no machine is reached
/// there from outside, so it never becomes an address of a cluster.
const NAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// What the second interface is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Lan {
    /// A network between machines, which this host is not on.
    Internal {
        /// Its name; `None` for one of the store's own.
        name: Option<String>,
        /// Its range.
        cidr: Ipv4Net,
    },
    /// A network that this host is on as well.
    HostOnly {
        /// The address of this host.
        host: Ipv4Addr,
        /// Its range.
        cidr: Ipv4Net,
        /// VirtualBox's DHCP server gives addresses; else the seed does.
        dhcp: bool,
    },
}

/// What VirtualBox's DHCP server of a network is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dhcp {
    /// The server's own address.
    pub(crate) server: Ipv4Addr,
    /// The mask of the range.
    pub(crate) mask: Ipv4Addr,
    /// The first address for machines that forge does not know.
    pub(crate) lower: Ipv4Addr,
    /// The last one.
    pub(crate) upper: Ipv4Addr,
}

impl Lan {
    /// A host-only network, from the host's address there and the prefix. The range alone means its first
    /// address, which docker-machine took as well.
    pub(crate) fn host_only(given: Ipv4Net, dhcp: bool) -> Self {
        let host = if given.addr() == given.network() {
            Ipv4Addr::from(u32::from(given.network()).saturating_add(1))
        } else {
            given.addr()
        };
        Self::HostOnly {
            host,
            cidr: given.trunc(),
            dhcp,
        }
    }

    /// Its range.
    pub(crate) fn cidr(&self) -> Ipv4Net {
        match self {
            Self::Internal { cidr, .. } | Self::HostOnly { cidr, .. } => *cidr,
        }
    }

    /// Machines get their addresses from VirtualBox's DHCP server.
    pub(crate) fn served(&self) -> bool {
        match self {
            Self::Internal { .. } => true,
            Self::HostOnly { dhcp, .. } => *dhcp,
        }
    }

    /// The addresses of the range that no machine may have.
    pub(crate) fn kept(&self) -> Vec<Ipv4Addr> {
        let mut kept = vec![Dhcp::of(self.cidr()).server];
        if let Self::HostOnly { host, cidr, .. } = self {
            // On its first host-only network VirtualBox runs a server at .100 by itself.
            let server = Ipv4Addr::from(u32::from(cidr.network()).saturating_add(100));
            kept.extend([*host, server]);
        }
        kept
    }

    /// The name of the internal network, when it is one.
    pub(crate) fn internal_name(&self, network: &Network) -> Option<String> {
        match self {
            Self::Internal {
                name: Some(name), ..
            } => Some(name.clone()),
            Self::Internal { name: None, .. } => Some(own_name(network)),
            Self::HostOnly { .. } => None,
        }
    }

    /// Refuses what cannot be a network between machines, whatever the host.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the option.
    pub(crate) fn sane(&self) -> Result<()> {
        let usage = |message: String| Err(Error::new(Kind::Usage, message));
        let flag = match self {
            Self::Internal { name, cidr } => {
                options::private_range("--virtualbox-intnet-cidr", *cidr)?;
                if let Some(name) = name
                    && (name.is_empty()
                        || name.len() > 64
                        || name.starts_with('-')
                        || !name
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
                {
                    return usage(format!(
                        "`--virtualbox-intnet {name}` is not a name: letters, digits, `-`, `_` and `.`, at most 64"
                    ));
                }
                "--virtualbox-intnet-cidr"
            }
            Self::HostOnly { host, cidr, .. } => {
                let flag = "--virtualbox-hostonly-cidr";
                options::private_range(flag, *cidr)?;
                if *host == cidr.broadcast() {
                    return usage(format!(
                        "`{flag} {host}/{}` is an address that no host can have",
                        cidr.prefix_len()
                    ));
                }
                flag
            }
        };
        let cidr = self.cidr();
        if routes::overlap(cidr, NAT) {
            return usage(format!(
                "`{flag} {cidr}` overlaps {NAT}, through which every machine of this driver reaches the outside"
            ));
        }
        Ok(())
    }
}

/// What an internal network of a store's own is called: other stores have others, so no machine of theirs is on it.
fn own_name(network: &Network) -> String {
    format!("forge-{}", &network.id.simple().to_string()[..8])
}

/// Whether a name is one that [`own_name`] gives.
pub(crate) fn is_own_name(name: &str) -> bool {
    name.strip_prefix("forge-")
        .is_some_and(|id| id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Dhcp {
    /// The server of a range: at .99, with .100 to .200 for machines that forge does not know; in ranges too small
    /// for that at the end, with all between the first address and its own.
    pub(crate) fn of(cidr: Ipv4Net) -> Self {
        let base = u32::from(cidr.network());
        let last = u32::from(cidr.broadcast()).saturating_sub(1);
        let (server, lower, upper) = if cidr.prefix_len() <= 24 {
            (base + 99, base + 100, base + 200)
        } else {
            (last, base + 2, last - 1)
        };
        Self {
            server: server.into(),
            mask: cidr.netmask(),
            lower: lower.into(),
            upper: upper.into(),
        }
    }

    /// The range that it serves.
    pub(crate) fn cidr(&self) -> Option<Ipv4Net> {
        Some(Ipv4Net::with_netmask(self.server, self.mask).ok()?.trunc())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
    }

    #[test]
    fn the_server_has_a_place_in_every_range() {
        let usual = Dhcp::of(INTERNAL);
        assert_eq!(usual.server, Ipv4Addr::new(10, 133, 7, 99));
        assert_eq!(usual.lower, Ipv4Addr::new(10, 133, 7, 100));
        assert_eq!(usual.upper, Ipv4Addr::new(10, 133, 7, 200));
        assert_eq!(usual.cidr(), Some(INTERNAL));
        for prefix in 8..=29 {
            let cidr = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), prefix).expect("a range");
            let dhcp = Dhcp::of(cidr);
            assert_eq!(dhcp.cidr(), Some(cidr));
            assert!(
                dhcp.lower <= dhcp.upper && cidr.contains(&dhcp.upper),
                "{cidr}"
            );
            assert!(!(dhcp.lower..=dhcp.upper).contains(&dhcp.server), "{cidr}");
            assert_ne!(dhcp.server, cidr.broadcast());
        }
    }

    #[test]
    fn the_host_has_the_first_address_unless_it_is_said() {
        for (given, host) in [("192.168.56.0/24", 1), ("192.168.56.7/24", 7)] {
            let lan = Lan::host_only(range(given), true);
            assert_eq!(
                lan,
                Lan::HostOnly {
                    host: Ipv4Addr::new(192, 168, 56, host),
                    cidr: range("192.168.56.0/24"),
                    dhcp: true,
                }
            );
            assert_eq!(lan.kept().len(), 3);
        }
    }

    #[test]
    fn two_stores_have_two_networks_unless_one_is_named() {
        let network = |id| Network {
            id,
            cidr: INTERNAL,
            owner: Uuid::new_v4(),
        };
        let (one, two) = (network(Uuid::new_v4()), network(Uuid::new_v4()));
        let own = Lan::Internal {
            name: None,
            cidr: INTERNAL,
        };
        let name = own.internal_name(&one).expect("internal");
        assert_ne!(Some(&name), own.internal_name(&two).as_ref());
        assert!(is_own_name(&name));
        let named = Lan::Internal {
            name: Some("forge".into()),
            cidr: INTERNAL,
        };
        assert_eq!(named.internal_name(&one), named.internal_name(&two));
        assert!(!is_own_name("forge") && !is_own_name("forge-server1"));
    }
}
