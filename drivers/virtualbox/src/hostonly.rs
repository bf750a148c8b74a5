//! Host-only interfaces: which there are, and in which ranges VirtualBox makes them.

use std::fs;
use std::net::Ipv4Addr;

use forge_driver::routes;
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;

use crate::info::{blocks, value};
use crate::manage::{Manage, Version, garbled};

/// The first version that makes host-only networks in certain ranges only, on all hosts but Windows
/// (<https://www.virtualbox.org/wiki/Changelog-6.1#v28>).
const LIMITED: Version = Version(6, 1, 28);

/// Ranges in which VirtualBox lets a user make host-only networks when its administrator allowed no others
/// (<https://docs.oracle.com/en/virtualization/virtualbox/7.2/user/networkingdetails.html>, "Host-Only Networking").
const HOST_ONLY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 56, 0), 21);

/// Where an administrator allows others.
const ALLOWED: &str = "/etc/vbox/networks.conf";

/// A host-only interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) mask: Option<Ipv4Addr>,
}

impl Interface {
    /// The range that it is on, when it has an address.
    pub(crate) fn range(&self) -> Option<Ipv4Net> {
        let range = Ipv4Net::with_netmask(self.address?, self.mask?).ok()?;
        (!range.addr().is_unspecified()).then(|| range.trunc())
    }
}

/// All host-only interfaces of this host.
///
/// # Errors
/// When VirtualBox cannot be asked, or says nonsense.
pub(crate) async fn interfaces(manage: &Manage) -> Result<Vec<Interface>> {
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

/// The interface that has just this address.
///
/// # Errors
/// [`Kind::Conflict`] when one overlaps it otherwise, both shown.
pub(crate) fn fitting(
    all: &[Interface],
    host: Ipv4Addr,
    cidr: Ipv4Net,
) -> Result<Option<&Interface>> {
    for interface in all {
        let Some(range) = interface.range() else {
            continue;
        };
        if interface.address == Some(host) && range == cidr {
            return Ok(Some(interface));
        }
        if routes::overlap(range, cidr) {
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
///
/// # Errors
/// [`Kind::Conflict`] with what is allowed.
pub(crate) fn allowed(cidr: Ipv4Net, version: Version) -> Result<()> {
    // On Windows and before that version there is no such rule.
    if !cfg!(unix) || version < LIMITED {
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

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
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
