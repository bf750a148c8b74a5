//! Where this host sends what: a network for machines must not take a range from it.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Two ranges share an address.
#[must_use]
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A range that the host sends somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The range.
    pub to: Ipv4Net,
    /// Through which of its interfaces.
    pub interface: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the route of this host to {} through `{}`",
            self.to, self.interface
        )
    }
}

/// The host's routes, without the default ones, which every range overlaps. None are known outside Linux.
#[must_use]
pub fn of_host() -> Vec<Route> {
    fs::read_to_string("/proc/net/route")
        .map(|text| routes(&text))
        .unwrap_or_default()
}

/// Reads /proc/net/route: interface, destination, gateway, flags, …, mask in the eighth column;
/// numbers are hexadecimal, addresses in host byte order; bit 0 of the flags means "up".
fn routes(text: &str) -> Vec<Route> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| u32::from_str_radix(columns.get(index)?, 16).ok();
            let address =
                |index: usize| number(index).map(|number| Ipv4Addr::from(number.to_ne_bytes()));
            let to = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
            let up = number(3)? & 1 == 1;
            (up && to.prefix_len() > 0).then(|| Route {
                to,
                interface: columns[0].to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        tun0\t0000850A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        tun1\t0007850A\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[cfg(target_endian = "little")]
    #[test]
    fn routes_are_read_without_default_and_dead_ones() {
        let found = routes(TABLE);
        let names: Vec<String> = found
            .iter()
            .map(|route| format!("{} {}", route.interface, route.to))
            .collect();
        assert_eq!(names, ["eth0 192.0.2.0/24", "tun0 10.133.0.0/16"]);
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("cidr");
        assert!(overlap(net("10.0.0.0/8"), net("10.133.7.0/24")));
        assert!(overlap(net("10.133.7.0/24"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.133.6.0/24"), net("10.133.7.0/24")));
    }
}
