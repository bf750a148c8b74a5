//! The address range of a swarm's overlay networks: chosen before any machine exists, because it can
//! never be changed later.

use std::net::Ipv4Addr;

use forge_driver::routes::{self, Route, overlap};
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;

/// The private ranges (RFC 1918) that a swarm's networks are taken from: the first that overlaps
/// nothing.
///
/// The engine's own default, 10.0.0.0/8, contains the machines' network and most others. These leave
/// out what is commonly taken: 10.0.0.0/12 (networks at home and at work, user-mode NAT), 10.42.0.0/15,
/// 10.96.0.0/12 and 10.244.0.0/16 (Kubernetes), 10.128.0.0/12 (the machines' own network),
/// 172.17.0.0/16 up to 172.27.0.0/16 (the engine's bridges) and 192.168.0.0/17. Each network of a
/// swarm takes a /24, so that a /12 holds 4096 of them and the last range 128.
pub const CANDIDATES: [Ipv4Net; 6] = [
    net([10, 208, 0, 0], 12),
    net([10, 176, 0, 0], 12),
    net([10, 64, 0, 0], 12),
    net([10, 16, 0, 0], 12),
    net([172, 28, 0, 0], 14),
    net([192, 168, 128, 0], 17),
];

/// [`CANDIDATES`] as `forge cluster up --help` shows them.
pub const HELP: &str = "\
Take the swarm's overlay networks from this range; each takes a /24 of it. Without it, the first of
10.208.0.0/12, 10.176.0.0/12, 10.64.0.0/12, 10.16.0.0/12, 172.28.0.0/14, 192.168.128.0/17
that overlaps no network of this host or of the machines. It can never be changed later";

/// The size of each network that is taken out of the pool.
pub const NETWORK_PREFIX: u8 = 24;

/// Networks that every machine has besides the internal one: user-mode NAT
/// (<https://wiki.qemu.org/Documentation/Networking>, 10.0.2.0/24) and the engine's default bridge.
pub const GUEST_NETWORKS: [Ipv4Net; 2] = [net([10, 0, 2, 0], 24), net([172, 17, 0, 0], 16)];

/// Routes shorter than this are ways out to everywhere, not networks: 0.0.0.0/0, and the halves
/// 0.0.0.0/1 and 128.0.0.0/1 that VPN clients set in its place.
const SHORTEST_NETWORK: u8 = 8;

const fn net(address: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = address;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The first of [`CANDIDATES`] that overlaps none of `taken`.
///
/// # Errors
/// [`Kind::Precheck`] when each one overlaps something, all pairs shown.
pub fn choose(taken: &[Ipv4Net]) -> Result<Ipv4Net> {
    let mut pairs = Vec::new();
    for candidate in CANDIDATES {
        match taken.iter().find(|&&other| overlap(candidate, other)) {
            None => return Ok(candidate),
            Some(other) => pairs.push(format!("`{candidate}` overlaps `{other}`")),
        }
    }
    Err(Error::new(
        Kind::Precheck,
        "no private range is free for the swarm's networks",
    )
    .because(pairs.join(", "))
    .hint("`ip route` lists this host's networks; name a free range with `--address-pool`"))
}

/// `wished`, found to be a private range large enough and free.
///
/// # Errors
/// [`Kind::Usage`] when it is not a private range of at least a /24, [`Kind::Precheck`] when it
/// overlaps one of `taken`, both shown.
pub fn check(wished: Ipv4Net, taken: &[Ipv4Net]) -> Result<Ipv4Net> {
    let private = [
        net([10, 0, 0, 0], 8),
        net([172, 16, 0, 0], 12),
        net([192, 168, 0, 0], 16),
    ];
    if wished.prefix_len() > NETWORK_PREFIX || !private.iter().any(|range| range.contains(&wished))
    {
        return Err(Error::new(
            Kind::Usage,
            format!("`{wished}` cannot hold the swarm's networks"),
        )
        .because("it is not a private range of at least a /24")
        .hint(format!("try `--address-pool {}`", CANDIDATES[0])));
    }
    let wished = wished.trunc();
    if let Some(other) = taken.iter().find(|&&other| overlap(wished, other)) {
        return Err(Error::new(
            Kind::Precheck,
            format!("the address pool `{wished}` overlaps `{other}`"),
        )
        .because("services would answer from addresses that lead elsewhere")
        .hint("leave out `--address-pool`, or name a range that is free"));
    }
    Ok(wished)
}

/// The first network of `pool`: where `ingress` goes when the engine put it elsewhere.
#[must_use]
pub fn ingress(pool: Ipv4Net) -> Ipv4Net {
    Ipv4Net::new(pool.network(), pool.prefix_len().max(NETWORK_PREFIX)).unwrap_or(pool)
}

/// The networks that this host has routes to, sorted, without ways out to everywhere.
///
/// # Errors
/// As [`routes::of_host`].
pub fn host_networks() -> Result<Vec<Ipv4Net>> {
    Ok(networks(&routes::of_host()?))
}

fn networks(routes: &[Route]) -> Vec<Ipv4Net> {
    let mut networks: Vec<Ipv4Net> = routes
        .iter()
        .map(|route| route.to)
        .filter(|network| network.prefix_len() >= SHORTEST_NETWORK)
        .collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    #[test]
    fn the_candidates_are_apart_from_each_other_and_from_what_machines_have() {
        for (index, &candidate) in CANDIDATES.iter().enumerate() {
            assert_eq!(candidate, candidate.trunc());
            assert!(candidate.addr().is_private());
            assert!(
                HELP.contains(&candidate.to_string()),
                "{candidate} is not in the help"
            );
            for &other in GUEST_NETWORKS
                .iter()
                .chain(&CANDIDATES[..index])
                .chain(&nets(&["10.133.7.0/24"]))
            {
                assert!(!overlap(candidate, other), "{candidate} {other}");
            }
        }
    }

    #[test]
    fn the_first_free_candidate_is_chosen() {
        assert_eq!(choose(&[]).expect("free"), CANDIDATES[0]);
        let usual = nets(&[
            "10.133.7.0/24",
            "10.0.2.0/24",
            "172.17.0.0/16",
            "192.168.1.0/24",
        ]);
        assert_eq!(choose(&usual).expect("free"), CANDIDATES[0]);
        // Overlap counts in both directions.
        assert_eq!(
            choose(&nets(&["10.210.3.0/24"])).expect("free"),
            CANDIDATES[1]
        );
        assert_eq!(choose(&nets(&["10.0.0.0/8"])).expect("free"), CANDIDATES[4]);
    }

    #[test]
    fn nothing_free_is_refused_with_every_pair() {
        let error =
            choose(&nets(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])).expect_err("none");
        assert_eq!(error.kind(), Kind::Precheck);
        let cause = &error.causes()[0];
        assert!(
            cause.contains("`10.16.0.0/12` overlaps `10.0.0.0/8`"),
            "{cause}"
        );
        assert!(
            cause.contains("`192.168.128.0/17` overlaps `192.168.0.0/16`"),
            "{cause}"
        );
    }

    #[test]
    fn a_wished_pool_is_checked() {
        let taken = nets(&["10.133.7.0/24"]);
        let check = |text: &str| check(text.parse().expect("a network"), &taken);
        assert_eq!(
            check("10.20.30.0/16").expect("free").to_string(),
            "10.20.0.0/16"
        );
        assert_eq!(
            check("10.0.0.0/8").expect_err("overlap").kind(),
            Kind::Precheck
        );
        assert_eq!(
            check("10.133.0.0/16").expect_err("overlap").message(),
            "the address pool `10.133.0.0/16` overlaps `10.133.7.0/24`"
        );
        for text in ["8.0.0.0/8", "10.20.30.0/25", "0.0.0.0/0", "100.64.0.0/10"] {
            assert_eq!(check(text).expect_err(text).kind(), Kind::Usage);
        }
    }

    #[test]
    fn ingress_is_the_first_network_of_the_pool() {
        assert_eq!(ingress(CANDIDATES[0]).to_string(), "10.208.0.0/24");
        assert_eq!(
            ingress("10.9.8.0/24".parse().expect("a network")).to_string(),
            "10.9.8.0/24"
        );
    }

    #[test]
    fn ways_out_to_everywhere_are_no_networks() {
        let route = |to: Ipv4Net| Route {
            to,
            interface: "eth0".to_owned(),
        };
        let all = nets(&[
            "172.17.0.0/16",
            "128.0.0.0/1",
            "10.0.0.0/24",
            "172.17.0.0/16",
        ]);
        let routes: Vec<Route> = all.into_iter().map(route).collect();
        assert_eq!(networks(&routes), nets(&["10.0.0.0/24", "172.17.0.0/16"]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_hosts_table_is_read() {
        for network in host_networks().expect("read") {
            assert!(network.prefix_len() >= SHORTEST_NETWORK);
        }
    }
}
