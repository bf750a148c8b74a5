//! The ranges of several daemons, which hosts have to tell apart.

use forge_driver::routes::overlap;
use forge_driver::{DriverHome, Error, Kind, Result};
use tokio::task::JoinSet;

use crate::network::{self, Choice, Titled};
use crate::options::Config;
use crate::virsh::Virsh;

/// What one daemon's networks are.
struct Site {
    config: Config,
    /// The ranges that machines of the zone are in, with the name of their network.
    machines: Vec<Titled>,
    /// Those of all networks that are up, to which the host itself leads.
    all: Vec<Titled>,
}

/// No range of machines in one zone is one that the host of another zone leads to by itself: a packet between the
/// two would stay on the wrong host.
///
/// # Errors
/// [`Kind::Precheck`] with both shown. A daemon that cannot be reached is left out.
pub(crate) async fn check(config: &Config, home: &DriverHome) -> Result<()> {
    if matches!(config.network, Choice::Bridge(_)) {
        // One network for all hosts.
        return Ok(());
    }
    let mut asking = JoinSet::new();
    for (index, config) in config.sites().into_iter().enumerate() {
        let virsh = Virsh::new(&config, home);
        asking.spawn(async move { (index, ask(config, &virsh).await) });
    }
    let mut sites = Vec::new();
    while let Some(answer) = asking.join_next().await {
        let (index, site) = answer.map_err(|error| {
            Error::new(Kind::Failed, "a question to one of the daemons broke off").because(error)
        })?;
        match site {
            Ok(site) => sites.push((index, site)),
            // Machines elsewhere can be made all the same; who makes some there asks that daemon.
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {}
            Err(error) => return Err(error),
        }
    }
    sites.sort_by_key(|(index, _)| *index);
    compare(&sites)
}

async fn ask(config: Config, virsh: &Virsh) -> Result<Site> {
    let all = network::active(virsh).await?;
    let machines = match &config.network {
        // It may be stopped still.
        Choice::Named(name) => network::of(virsh, name).await?,
        _ => vec![Titled {
            name: config.network.to_string(),
            range: config.network_cidr,
        }],
    };
    Ok(Site {
        config,
        machines,
        all,
    })
}

/// Each with the number of its zone, from 0.
fn compare(sites: &[(usize, Site)]) -> Result<()> {
    for (index, site) in sites {
        for (other_index, other) in sites {
            // What forge makes at another daemon has a range of its own, or is of an earlier cluster.
            let theirs = other.machines.iter().chain(&other.all);
            if index == other_index {
                continue;
            }
            for (ours, theirs) in
                theirs.flat_map(|theirs| site.machines.iter().map(move |ours| (ours, theirs)))
            {
                if overlap(ours.range, theirs.range) {
                    return Err(conflict(
                        (*index, site, ours),
                        (*other_index, other, theirs),
                    ));
                }
            }
        }
    }
    Ok(())
}

fn conflict(ours: (usize, &Site, &Titled), theirs: (usize, &Site, &Titled)) -> Error {
    let said = |(index, site, titled): (usize, &Site, &Titled)| {
        format!(
            "the network `{}` of zone `z{}` at `{}` is {}",
            titled.name,
            index + 1,
            site.config.uri,
            titled.range
        )
    };
    let hint = match &ours.1.config.network {
        Choice::Named(name) => format!(
            "give the network `{name}` of one host another range (`virsh net-edit {name}`, `net-destroy`, `net-start`), or use `--libvirt-network routed`, which gives each zone its own"
        ),
        _ => "choose other ranges with `--libvirt-network-cidr`: the first zone takes it, the second the one after it, and so on".to_owned(),
    };
    Error::new(
        Kind::Precheck,
        format!("{}, and {}: they overlap", said(ours), said(theirs)),
    )
    .because("the hosts could not tell whose machines are meant")
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(uri: &str, network: &str, machines: &str, others: &[&str]) -> Site {
        let titled = |name: &str, range: &str| Titled {
            name: name.to_owned(),
            range: range.parse().expect("a range"),
        };
        Site {
            config: Config {
                uri: uri.parse().expect("a daemon"),
                network: network.parse().expect("a network"),
                ..Config::default()
            },
            machines: vec![titled(network, machines)],
            all: others.iter().map(|range| titled("other", range)).collect(),
        }
    }

    fn numbered(sites: [Site; 2]) -> Vec<(usize, Site)> {
        sites.into_iter().enumerate().collect()
    }

    #[test]
    fn ranges_of_two_hosts_are_told_apart() {
        let (one, two) = ("qemu:///system", "qemu+ssh://h/system");
        let fine = [
            site(one, "lan", "10.1.0.0/24", &["192.168.122.0/24"]),
            site(two, "lan", "10.2.0.0/24", &["192.168.122.0/24"]),
        ];
        compare(&numbered(fine)).expect("apart");
        let same = [
            site(one, "lan", "10.1.0.0/16", &[]),
            site(two, "lan", "10.1.7.0/24", &[]),
        ];
        let error = compare(&numbered(same)).expect_err("overlap");
        assert_eq!(
            error.message(),
            "the network `lan` of zone `z1` at `qemu:///system` is 10.1.0.0/16, and the network `lan` of zone `z2` at `qemu+ssh://h/system` is 10.1.7.0/24: they overlap"
        );
        assert!(
            error
                .deepest_hint()
                .expect("a hint")
                .contains("net-edit lan")
        );
        let shadowed = [
            site(one, "routed", "192.168.122.0/24", &[]),
            site(two, "routed", "192.168.123.0/24", &["192.168.122.0/24"]),
        ];
        let error = compare(&numbered(shadowed)).expect_err("shadowed");
        assert!(error.message().contains("`other` of zone `z2`"));
        assert!(
            error
                .deepest_hint()
                .expect("a hint")
                .contains("--libvirt-network-cidr")
        );
    }
}
