//! Where this host sends what: a network for machines must not take a range from it.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::{Context, Error, Kind, Result};

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

/// The host's routes, without the default ones, which every range overlaps. A system without the kernel's table (not
/// Linux) has an empty answer.
///
/// # Errors
/// When the table cannot be read or understood.
pub fn of_host() -> Result<Vec<Route>> {
    let path = Path::new("/proc/net/route");
    match fs::read_to_string(path) {
        Ok(text) => routes(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
        }
    }
}

/// Refuses a range that the host sends somewhere else than through its `own` interfaces.
///
/// # Errors
/// [`Kind::Conflict`] with both shown.
pub fn free(routes: &[Route], own: &[&str], cidr: Ipv4Net) -> Result<()> {
    let elsewhere = |route: &&Route| {
        overlap(route.to, cidr) && !own.iter().any(|interface| *interface == route.interface)
    };
    match routes.iter().find(elsewhere) {
        None => Ok(()),
        Some(route) => Err(Error::new(
            Kind::Conflict,
            format!("the network {cidr} of forge overlaps {route}"),
        )),
    }
}

/// The routes in the text of `/proc/net/route`, without default ones and those that are down.
///
/// The columns are `Iface Destination Gateway Flags RefCnt Use Metric Mask …`; addresses are the
/// hexadecimal text of a 32-bit word that holds the bytes in network order
/// (Linux, net/ipv4/fib_trie.c, `fib_route_seq_show`), so their order depends on the processor; bit 0 of the
/// flags means "up".
fn routes(text: &str) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    for line in text.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let (route, up) = route(line).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("`{}` is not a line of a routing table", line.trim()),
            )
        })?;
        if up && route.to.prefix_len() > 0 {
            found.push(route);
        }
    }
    Ok(found)
}

fn route(line: &str) -> Option<(Route, bool)> {
    let mut columns = line.split_ascii_whitespace();
    let interface = columns.next()?.to_owned();
    let destination = address(columns.next()?)?;
    let flags = u32::from_str_radix(columns.nth(1)?, 16).ok()?;
    let mask = address(columns.nth(3)?)?;
    let to = Ipv4Net::with_netmask(destination, mask).ok()?.trunc();
    Some((Route { to, interface }, flags & 1 == 1))
}

fn address(hexadecimal: &str) -> Option<Ipv4Addr> {
    (hexadecimal.len() == 8)
        .then(|| u32::from_str_radix(hexadecimal, 16).ok())
        .flatten()
        .map(|word| Ipv4Addr::from(word.to_ne_bytes()))
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
        let found = routes(TABLE).expect("a table");
        let names: Vec<String> = found
            .iter()
            .map(|route| format!("{} {}", route.interface, route.to))
            .collect();
        assert_eq!(names, ["eth0 192.0.2.0/24", "tun0 10.133.0.0/16"]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn routes_of_every_length_are_read() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000000\t0100000A\t0003\t0\t0\t0\t00000080\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
vpn0\t0A0A080A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";
        let found: Vec<String> = routes(text)
            .expect("read")
            .iter()
            .map(|route| route.to.to_string())
            .collect();
        assert_eq!(
            found,
            ["0.0.0.0/1", "10.0.0.0/24", "172.17.0.0/16", "10.8.10.10/32"]
        );
    }

    #[test]
    fn a_malformed_table_is_refused() {
        assert_eq!(routes("").expect("empty"), []);
        for line in [
            "eth0",
            "eth0\tzz\t0\t0\t0\t0\t0\t0",
            "eth0\t0000000A\t0\t1\t0\t0\t0\tFF00FF00",
        ] {
            let error = routes(&format!("Iface\n{line}\n")).expect_err(line);
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_range_that_the_host_sends_elsewhere_is_refused_with_both_shown() {
        let route = |to: &str, interface: &str| Route {
            to: to.parse().expect("cidr"),
            interface: interface.to_owned(),
        };
        let known = [
            route("10.133.0.0/16", "tun0"),
            route("192.168.56.0/24", "vboxnet0"),
        ];
        let free = |own: &[&str], cidr: &str| free(&known, own, cidr.parse().expect("cidr"));
        let error = free(&[], "10.133.7.0/24").expect_err("overlaps");
        assert_eq!(
            error.message(),
            "the network 10.133.7.0/24 of forge overlaps the route of this host to 10.133.0.0/16 through `tun0`"
        );
        free(&["vboxnet0"], "192.168.56.0/24").expect("the interface's own");
        free(&[], "192.168.56.0/24").expect_err("somebody's");
        free(&[], "10.134.0.0/16").expect("free");
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("cidr");
        assert!(overlap(net("10.0.0.0/8"), net("10.133.7.0/24")));
        assert!(overlap(net("10.133.7.0/24"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.133.6.0/24"), net("10.133.7.0/24")));
    }
}
