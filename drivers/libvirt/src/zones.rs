//! Several daemons, each a zone of a cluster.

use std::net::Ipv4Addr;

use forge_driver::{Error, Kind, Result, options};
use ipnet::Ipv4Net;

use crate::network::Choice;
use crate::options::Config;
use crate::uri::Uri;

const FLAG: &str = "--libvirt-uri";

/// The daemons in the order of their zones: `z1=URI`, `z2=URI` … in any order, or plain in that order.
///
/// # Errors
/// [`Kind::Usage`] for what is no daemon, and for zones that are not `z1`, `z2` … once each.
pub(crate) fn uris(given: &[String]) -> Result<Vec<Uri>> {
    let usage = |message: String| {
        Error::new(Kind::Usage, message)
            .hint("name every zone once, from `z1` on (`--libvirt-uri z1=URI --libvirt-uri z2=URI`), or none")
    };
    let mut places: Vec<Option<Uri>> = vec![None; given.len()];
    for (index, text) in given.iter().enumerate() {
        let (index, uri) = match text.split_once('=').filter(|(zone, _)| !zone.contains(':')) {
            None => (index, text.as_str()),
            Some((zone, uri)) => {
                let number = zone
                    .strip_prefix('z')
                    .filter(|digits| !digits.starts_with(['0', '+']))
                    .and_then(|digits| digits.parse::<usize>().ok())
                    .filter(|number| *number <= given.len());
                match number {
                    Some(number) => (number - 1, uri),
                    None => {
                        return Err(usage(format!(
                            "`{FLAG} {}`: `{}` is not one of {} zones",
                            text.escape_debug(),
                            zone.escape_debug(),
                            given.len()
                        )));
                    }
                }
            }
        };
        let uri: Uri = uri.parse()?;
        if places.contains(&Some(uri.clone())) {
            return Err(usage(format!("`{FLAG} {uri}` is given twice")));
        }
        if places[index].replace(uri).is_some() {
            return Err(usage(format!(
                "`{FLAG}`: zone `z{}` is given twice",
                index + 1
            )));
        }
    }
    Ok(places.into_iter().flatten().collect())
}

/// The range of the zone `index`, counted from 0: ranges follow each other.
fn range(first: Ipv4Net, index: usize) -> Option<Ipv4Net> {
    let size = 1_u64 << (32 - u32::from(first.prefix_len()));
    let start = u64::from(u32::from(first.network())) + size * u64::try_from(index).ok()?;
    Ipv4Net::new(
        Ipv4Addr::from(u32::try_from(start).ok()?),
        first.prefix_len(),
    )
    .ok()
}

/// What the machines of each zone are made with.
pub(crate) fn sites(config: &Config) -> Vec<Config> {
    if config.zones.is_empty() {
        return vec![config.clone()];
    }
    let site = |(index, uri): (usize, &Uri)| Config {
        uri: uri.clone(),
        zones: Vec::new(),
        network_cidr: range(config.network_cidr, index).unwrap_or(config.network_cidr),
        ..config.clone()
    };
    config.zones.iter().enumerate().map(site).collect()
}

/// Refuses daemons and a network that do not go together.
///
/// # Errors
/// [`Kind::Usage`] with what would.
pub(crate) fn check(config: &Config) -> Result<()> {
    let sites = sites(config);
    let remedy = "`--libvirt-network routed` gives each zone a range of its own, which the hosts need routes for; `--libvirt-network bridge:NAME` uses a bridge of the hosts that joins them";
    if sites.len() > 1 && config.network == Choice::Forge {
        return Err(Error::new(
            Kind::Usage,
            "machines of several libvirts cannot reach each other through the NAT of each",
        )
        .because("a connection from one network of the kind `forge` into another has no way in")
        .hint(remedy));
    }
    for site in sites {
        if site.uri.over_ssh() && config.network == Choice::Forge {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "machines behind the NAT of the host of `{}` cannot be reached from here",
                    site.uri
                ),
            )
            .hint(remedy));
        }
        if site.uri.session() && config.network.needs_rights() {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "`--libvirt-network {}` cannot be had at `{}`",
                    config.network, site.uri
                ),
            )
            .because("a session daemon runs with a user's rights, and making a network takes more")
            .hint("use `/system` in place of `/session`, or `--libvirt-network bridge:NAME` with a bridge that `/etc/qemu/bridge.conf` of that host allows"));
        }
    }
    if config.zones.len() < 2 {
        return Ok(());
    }
    for index in 0..config.zones.len() {
        let Some(range) = range(config.network_cidr, index) else {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "`--libvirt-network-cidr {}`: there is no range for zone `z{}` after it",
                    config.network_cidr,
                    index + 1
                ),
            ));
        };
        options::private_range("--libvirt-network-cidr", range)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "qemu:///system";
    const TWO: &str = "qemu+ssh://host2/system";

    fn named(words: &[&str]) -> Result<Vec<String>> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(uris(&words)?.iter().map(Uri::to_string).collect())
    }

    #[test]
    fn zones_are_named_or_counted() {
        assert_eq!(named(&[]).expect("none"), [""; 0]);
        assert_eq!(named(&[ONE, TWO]).expect("in order"), [ONE, TWO]);
        let turned = [format!("z2={ONE}"), format!("z1={TWO}")];
        assert_eq!(named(&[&turned[0], &turned[1]]).expect("named"), [TWO, ONE]);
        assert_eq!(named(&[&format!("z1={ONE}")]).expect("one"), [ONE]);
    }

    #[test]
    fn zones_that_are_not_all_there_are_refused() {
        let (z1, z2, z3) = (
            format!("z1={ONE}"),
            format!("z2={TWO}"),
            format!("z3={TWO}"),
        );
        for words in [
            vec![ONE, ONE],
            vec![z1.as_str(), ONE],
            vec![&z1, &z1],
            vec![&z1, &z3],
            vec![TWO, &z1],
            vec![&z2],
            vec!["rack=qemu:///system"],
            vec!["z0=qemu:///system"],
            vec!["=qemu:///system"],
        ] {
            let error = named(&words).expect_err("refused");
            assert_eq!(error.kind(), Kind::Usage, "{words:?}");
        }
    }

    fn config(network: Choice) -> Config {
        Config {
            zones: vec![
                ONE.parse().expect("a daemon"),
                TWO.parse().expect("a daemon"),
            ],
            network,
            ..Config::default()
        }
    }

    #[test]
    fn each_zone_has_a_range_of_its_own() {
        let config = config(Choice::Routed);
        check(&config).expect("routed");
        let sites = sites(&config);
        let told: Vec<(String, String)> = sites
            .iter()
            .map(|site| (site.uri.to_string(), site.network_cidr.to_string()))
            .collect();
        assert_eq!(
            told,
            [
                (ONE.to_owned(), "10.133.8.0/24".to_owned()),
                (TWO.to_owned(), "10.133.9.0/24".to_owned())
            ]
        );
        assert!(sites.iter().all(|site| site.zones.is_empty()));
        let last = Config {
            network_cidr: "192.168.255.0/24".parse().expect("a range"),
            ..config
        };
        assert_eq!(check(&last).expect_err("public").kind(), Kind::Usage);
    }

    #[test]
    fn nat_on_both_sides_is_refused_with_the_remedy() {
        let error = check(&config(Choice::Forge)).expect_err("no way in");
        assert!(error.deepest_hint().expect("a hint").contains("routed"));
        assert_eq!(sites(&Config::default()), [Config::default()]);
    }

    #[test]
    fn nat_on_another_host_is_refused_with_the_remedy() {
        let far = Config {
            uri: TWO.parse().expect("a daemon"),
            ..Config::default()
        };
        let error = check(&far).expect_err("no way in");
        assert!(error.message().contains(TWO), "{}", error.message());
        check(&Config {
            network: Choice::Routed,
            ..far
        })
        .expect("routed");
    }

    #[test]
    fn a_session_daemon_makes_no_network() {
        let session = Config {
            uri: "qemu:///session".parse().expect("a daemon"),
            ..Config::default()
        };
        let error = check(&session).expect_err("no rights");
        assert!(error.deepest_hint().expect("a hint").contains("bridge:"));
    }
}
