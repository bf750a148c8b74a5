//! Addresses and ports: allocated under one lock, recorded in the machines' records, not used again
//! while others are free.
//!
//! What is taken is read from the records themselves; `networks/allocation.json` only remembers the
//! networks and how far the allocation has come, so that a freed address rests as long as possible:
//! a shell that still points at a removed machine must not reach a new one.

mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use forge_driver::{
    Claim, ENGINE_PORT, Error, Forward, Kind, Mac, Network, Nic, Result, SSH_PORT, routes,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Store, read_json, write_json};

pub use moving::{join, move_in, published_at};

/// All machines' loopback addresses lie here: a part of 127.0.0.0/8 that nothing else is known to use.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 133, 0, 0), 16);

/// At most this many candidates are tried for one address or port.
const TRIES: u32 = 2048;

/// Where one machine is reached, decided before any provider is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The host address that is this machine's alone; `None` where the host has no such addresses, or
    /// the driver does not forward ports.
    pub loopback: Option<Ipv4Addr>,
    /// Its place on the internal network.
    pub nic: Option<Nic>,
    /// The internal network leads out as well and gives out its addresses itself: there is no other interface.
    #[serde(default)]
    pub leased: bool,
    /// The internal network gives out its addresses itself, beside an interface that leads out.
    #[serde(default)]
    pub served: bool,
    /// The hardware address of the interface that leads out.
    pub outer_mac: Mac,
    /// SSH as forwarded by the host.
    pub ssh: Option<Forward>,
    /// The engine as forwarded by the host.
    pub engine: Option<Forward>,
}

impl Placement {
    /// Whether its addresses were decided before the provider was asked; otherwise the provider tells them.
    pub fn decided(&self) -> bool {
        self.nic.is_some() || self.ssh.is_some() || !self.leased
    }

    /// The forwards that every start needs.
    pub fn forwards(&self) -> Vec<Forward> {
        self.ssh.iter().chain(&self.engine).copied().collect()
    }
}

/// `networks/allocation.json`
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    /// The loopback address given last, as a number.
    loopback: u32,
    networks: Vec<Network>,
    /// By network id: the address given last, as a number.
    given: BTreeMap<Uuid, u32>,
}

impl Ledger {
    /// Forgets networks that no machine is on any more: their ranges are free again.
    fn drop_unused(&mut self, taken: &Taken) {
        if taken.unreadable {
            return;
        }
        self.networks
            .retain(|network| taken.networks.contains(&network.id));
        self.given.retain(|id, _| taken.networks.contains(id));
    }
}

fn ledger_path(store: &Store) -> PathBuf {
    store.root().join("networks").join("allocation.json")
}

/// What other records of the store hold.
#[derive(Debug, Default)]
pub struct Taken {
    /// Loopback addresses.
    pub loopback: BTreeSet<Ipv4Addr>,
    /// Addresses on internal networks.
    pub internal: BTreeSet<Ipv4Addr>,
    /// Host ports.
    pub ports: BTreeSet<SocketAddr>,
    /// Networks that machines are on.
    pub networks: BTreeSet<Uuid>,
    /// There are records that cannot be read: what they hold is not known.
    pub unreadable: bool,
}

impl Taken {
    /// Adds what one machine holds.
    pub fn add(&mut self, placement: &Placement, published: &[Forward]) {
        self.loopback.extend(placement.loopback);
        let nic = placement.nic.as_ref();
        self.internal.extend(nic.map(|nic| nic.address));
        self.networks.extend(nic.map(|nic| nic.network.id));
        let forwards = placement.forwards();
        let all = forwards.iter().chain(published);
        self.ports.extend(all.map(|forward| forward.host));
    }
}

/// Allocates the place of one machine. The caller holds the lock of the addresses and writes the
/// machine's record before it lets go.
///
/// # Errors
/// When a range is exhausted, the network overlaps another one, or no port can be bound.
pub fn allocate(
    store: &Store,
    claim: Claim,
    wants: forge_driver::Wants,
    taken: &Taken,
) -> Result<Placement> {
    let path = ledger_path(store);
    let mut ledger: Ledger = read_json(&path)?.unwrap_or_default();
    let nic = match wants.network {
        Some(cidr) => {
            let network = network(&mut ledger, cidr, store.id(), taken)?;
            let address = internal(&mut ledger, &network, &taken.internal, &wants.kept)?;
            Some(Nic {
                network,
                address,
                mac: Mac::of(claim, 1),
            })
        }
        None => None,
    };
    let (loopback, ssh, engine) = if wants.forwards {
        let (host, ssh, engine) = forwarded(&mut ledger, store.id(), taken)?;
        (host, Some(ssh), Some(engine))
    } else {
        (None, None, None)
    };
    write_json(&path, &ledger)?;
    Ok(Placement {
        loopback,
        nic,
        leased: wants.leased,
        served: wants.served,
        outer_mac: Mac::of(claim, 0),
        ssh,
        engine,
    })
}

/// The network of this store with exactly this range, recorded anew when there is none.
///
/// Networks that nobody is on give way to another range, never to their own: somebody may be on the way there.
fn network(ledger: &mut Ledger, cidr: Ipv4Net, owner: Uuid, taken: &Taken) -> Result<Network> {
    let cidr = cidr.trunc();
    if let Some(known) = ledger.networks.iter().find(|network| network.cidr == cidr) {
        return Ok(known.clone());
    }
    ledger.drop_unused(taken);
    overlap(cidr, ledger.networks.iter().map(|network| network.cidr))?;
    let network = Network {
        id: Uuid::new_v4(),
        cidr,
        owner,
    };
    ledger.networks.push(network.clone());
    Ok(network)
}

/// Refuses a range that overlaps another network of this store.
fn overlap(cidr: Ipv4Net, known: impl IntoIterator<Item = Ipv4Net>) -> Result<()> {
    for other in known {
        if other != cidr && routes::overlap(other, cidr) {
            return Err(
                overlaps(cidr, other).hint(format!("use {other} itself, or a range outside it"))
            );
        }
    }
    Ok(())
}

fn overlaps(cidr: Ipv4Net, known: Ipv4Net) -> Error {
    Error::new(
        Kind::Precheck,
        format!("the network {cidr} overlaps the network {known} of this store"),
    )
}

/// The networks that this store has recorded.
///
/// # Errors
/// When the record cannot be read.
pub fn networks(store: &Store) -> Result<Vec<Network>> {
    Ok(read_json::<Ledger>(&ledger_path(store))?
        .unwrap_or_default()
        .networks)
}

/// The network that a machine of this range would be placed on, without placing it: the one that is
/// recorded, or a new one that is recorded nowhere.
///
/// # Errors
/// When the range overlaps another network of this store.
pub fn check_network(store: &Store, cidr: Ipv4Net, taken: &Taken) -> Result<Network> {
    let mut ledger: Ledger = read_json(&ledger_path(store))?.unwrap_or_default();
    network(&mut ledger, cidr, store.id(), taken)
}

/// How many machines a range has addresses for: neither its own address, nor that of all, nor the first one,
/// which is a router's by custom.
#[must_use]
pub fn capacity(cidr: Ipv4Net) -> usize {
    2_usize
        .pow(32 - u32::from(cidr.prefix_len()))
        .saturating_sub(3)
}

/// Makes sure that the network has addresses for so many machines more, besides those that are `kept` for others.
///
/// # Errors
/// [`Kind::Precheck`] with how many there are.
pub fn room(network: &Network, taken: &Taken, machines: usize, kept: &[Ipv4Addr]) -> Result<()> {
    let first = Ipv4Addr::from(u32::from(network.cidr.network()) + 1);
    let kept = kept.iter().filter(|address| **address != first).count();
    let all = capacity(network.cidr).saturating_sub(kept);
    let used = taken
        .internal
        .iter()
        .filter(|address| network.cidr.contains(*address))
        .count();
    if used + machines <= all {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "the network {} has {} free addresses, and {machines} are needed",
            network.cidr,
            all.saturating_sub(used)
        ),
    )
    .hint("choose a larger range, or make fewer machines"))
}

/// The next free address of `network`, counting up from .101 and coming round.
fn internal(
    ledger: &mut Ledger,
    network: &Network,
    taken: &BTreeSet<Ipv4Addr>,
    kept: &[Ipv4Addr],
) -> Result<Ipv4Addr> {
    let first = u32::from(network.cidr.network()) + 1;
    let last = u32::from(network.cidr.broadcast()).saturating_sub(1);
    let start = ledger.given.get(&network.id).map_or_else(
        || {
            let usual = u32::from(network.cidr.network()) + 101;
            if usual <= last { usual } else { first }
        },
        |given| given + 1,
    );
    let count = last.saturating_sub(first).saturating_add(1);
    for offset in 0..count.min(65_536) {
        let candidate = first + (start - first + offset) % count;
        let address = Ipv4Addr::from(candidate);
        // The first address of a range is the one that people give to routers.
        if candidate != first && !taken.contains(&address) && !kept.contains(&address) {
            ledger.given.insert(network.id, candidate);
            return Ok(address);
        }
    }
    Err(Error::new(
        Kind::Conflict,
        format!("the network {} has no free address left", network.cidr),
    )
    .hint("remove machines, or use a larger range"))
}

#[cfg(target_os = "linux")]
fn forwarded(
    ledger: &mut Ledger,
    store: Uuid,
    taken: &Taken,
) -> Result<(Option<Ipv4Addr>, Forward, Forward)> {
    let base = u32::from(LOOPBACK.network());
    let size = u32::from(LOOPBACK.broadcast()) - base;
    // Each store starts at a place of its own, so that two stores of one host seldom meet.
    let next = if ledger.loopback == 0 {
        let own = u32::from(store.as_bytes()[15]) % 254 + 1;
        base + own * 256 + 101
    } else {
        ledger.loopback + 1
    };
    for number in (next..).take(TRIES as usize) {
        let address = Ipv4Addr::from(base + (number - base) % size);
        let [.., last] = address.octets();
        if last == 0 || last == 255 || taken.loopback.contains(&address) {
            continue;
        }
        let engine = SocketAddr::from((address, ENGINE_PORT));
        if bindable(engine) != Bind::Free {
            continue;
        }
        let host = port_for(address, SSH_PORT, taken)?;
        ledger.loopback = u32::from(address);
        return Ok((
            Some(address),
            Forward {
                guest: SSH_PORT,
                host,
            },
            Forward {
                guest: ENGINE_PORT,
                host: engine,
            },
        ));
    }
    Err(Error::new(
        Kind::Conflict,
        format!("no free loopback address was found in {LOOPBACK}"),
    )
    .hint("other programs hold port 2376 on all of them: see `ss -ltn`"))
}

#[cfg(not(target_os = "linux"))]
fn forwarded(
    _ledger: &mut Ledger,
    _store: Uuid,
    taken: &Taken,
) -> Result<(Option<Ipv4Addr>, Forward, Forward)> {
    // Only 127.0.0.1 is configured there: the ports differ instead, and are recorded.
    let ssh = free_port(Ipv4Addr::LOCALHOST, 2200, taken)?;
    let engine = free_port(Ipv4Addr::LOCALHOST, 23_760, taken)?;
    Ok((
        None,
        Forward {
            guest: SSH_PORT,
            host: ssh,
        },
        Forward {
            guest: ENGINE_PORT,
            host: engine,
        },
    ))
}

/// The port on `address` that stands for `guest`: its own number where the user may bind it, else a
/// recorded one (22 → 2222, 80 → 8080, others + 8000).
///
/// # Errors
/// [`Kind::Conflict`] when a port the user asked for by its own number is taken.
pub fn port_for(address: Ipv4Addr, guest: u16, taken: &Taken) -> Result<SocketAddr> {
    let own = SocketAddr::from((address, guest));
    if !taken.ports.contains(&own) && bindable(own) == Bind::Free {
        return Ok(own);
    }
    free_port(address, substitute(guest), taken)
}

/// The port that stands in for one below 1024.
pub fn substitute(guest: u16) -> u16 {
    match guest {
        22 => 2222,
        80 => 8080,
        443 => 8443,
        other => other.saturating_add(8000),
    }
}

fn free_port(address: Ipv4Addr, from: u16, taken: &Taken) -> Result<SocketAddr> {
    for port in (from..=u16::MAX).take(TRIES as usize) {
        let candidate = SocketAddr::from((address, port));
        if !taken.ports.contains(&candidate) && bindable(candidate) == Bind::Free {
            return Ok(candidate);
        }
    }
    Err(Error::new(
        Kind::Conflict,
        format!("no free port was found on {address} from {from} on"),
    ))
}

/// Whether this user can listen at an address now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Yes.
    Free,
    /// Something listens there.
    Taken,
    /// The user may not (ports below 1024), or the host has no such address.
    Forbidden,
}

/// Tries to listen at `address` for a moment.
pub fn bindable(address: SocketAddr) -> Bind {
    match TcpListener::bind(address) {
        Ok(_) => Bind::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => Bind::Taken,
        Err(_) => Bind::Forbidden,
    }
}

/// Reads the words of `--publish`, `PORT` or `HOSTPORT:PORT`: the host's port, if any, and the machine's.
///
/// # Errors
/// [`Kind::Usage`] for words that are not ports.
pub fn ports(words: &str) -> Result<(Option<u16>, u16)> {
    let invalid = || {
        Error::new(Kind::Usage, format!("`{words}` is not a port to publish"))
            .hint("write PORT, or HOSTPORT:PORT; ports are 1 to 65535")
    };
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(invalid)
    };
    Ok(match words.split_once(':') {
        Some((wished, guest)) => (Some(port(wished)?), port(guest)?),
        None => (None, port(words)?),
    })
}

/// Resolves the words of `--publish`: see [`ports`].
///
/// # Errors
/// [`Kind::Usage`] for words that are not ports, [`Kind::Conflict`] when a port asked for by number
/// cannot be bound.
pub fn publish(words: &str, host: IpAddr, taken: &Taken, unprivileged: bool) -> Result<Forward> {
    let (wished, guest) = ports(words)?;
    if let Some(wished) = wished {
        return Ok(Forward {
            guest,
            host: SocketAddr::new(host, wished),
        });
    }
    let own = SocketAddr::new(host, guest);
    let address = match (bindable(own), host) {
        (Bind::Forbidden, IpAddr::V4(host)) if unprivileged || guest < 1024 => {
            free_port(host, substitute(guest), taken)?
        }
        // Taken: the driver's error names the owner.
        _ => own,
    };
    Ok(Forward {
        guest,
        host: address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_driver::Wants;

    fn wants() -> Wants {
        Wants {
            forwards: true,
            network: Some("10.133.7.0/24".parse().expect("cidr")),
            ..Wants::default()
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        (folder, store)
    }

    #[test]
    fn a_freed_address_rests_while_others_are_free() {
        let (_folder, store) = store();
        let mut seen = BTreeSet::new();
        for round in 0..300 {
            // Nothing is taken: each machine is removed before the next one comes.
            let place =
                allocate(&store, Claim::random(), wants(), &Taken::default()).expect("room");
            let loopback = place.loopback.expect("linux");
            assert!(
                seen.insert(loopback),
                "{loopback} was given again in round {round}"
            );
            assert!(LOOPBACK.contains(&loopback));
            let nic = place.nic.expect("network");
            assert!(nic.network.cidr.contains(&nic.address));
        }
    }

    #[test]
    fn two_machines_never_share_an_address() {
        let (_folder, store) = store();
        let mut taken = Taken::default();
        for _ in 0..253 {
            let nic = allocate(&store, Claim::random(), wants(), &taken)
                .expect("room")
                .nic
                .expect("nic");
            assert!(taken.internal.insert(nic.address), "{} twice", nic.address);
            taken.networks.insert(nic.network.id);
        }
        let error = allocate(&store, Claim::random(), wants(), &taken).expect_err("full");
        assert!(error.message().contains("no free address"), "{error}");
    }

    #[test]
    fn the_first_machine_gets_the_first_usual_address() {
        let (_folder, store) = store();
        let nic = allocate(&store, Claim::random(), wants(), &Taken::default())
            .expect("room")
            .nic
            .expect("nic");
        assert_eq!(nic.address, Ipv4Addr::new(10, 133, 7, 101));
    }

    #[test]
    fn addresses_that_are_kept_for_others_are_given_to_nobody() {
        let (_folder, store) = store();
        let kept = vec![Ipv4Addr::new(10, 133, 7, 1), Ipv4Addr::new(10, 133, 7, 101)];
        let wants = || Wants {
            kept: kept.clone(),
            ..wants()
        };
        let mut taken = Taken::default();
        let mut network = None;
        for _ in 0..252 {
            let nic = allocate(&store, Claim::random(), wants(), &taken)
                .expect("room")
                .nic
                .expect("nic");
            assert!(!kept.contains(&nic.address));
            taken.internal.insert(nic.address);
            taken.networks.insert(nic.network.id);
            network = Some(nic.network);
        }
        allocate(&store, Claim::random(), wants(), &taken).expect_err("full");
        let network = network.expect("made");
        room(&network, &Taken::default(), 252, &kept).expect("just enough");
        room(&network, &Taken::default(), 253, &kept).expect_err("one too many");
    }

    #[test]
    fn an_overlapping_network_is_refused_with_both_shown() {
        let (_folder, store) = store();
        let made = allocate(&store, Claim::random(), wants(), &Taken::default()).expect("room");
        let mut taken = Taken::default();
        taken.networks.extend(made.nic.map(|nic| nic.network.id));
        let check =
            |cidr: &str, taken: &Taken| check_network(&store, cidr.parse().expect("cidr"), taken);
        let error = check("10.133.0.0/16", &taken).expect_err("overlap");
        assert!(
            error.message().contains("10.133.0.0/16") && error.message().contains("10.133.7.0/24")
        );
        check("10.133.7.0/24", &taken).expect("our own");
        check("10.140.0.0/24", &taken).expect("apart");
        check("10.133.0.0/16", &Taken::default()).expect("no machine is on the other any more");
        let unknown = Taken {
            unreadable: true,
            ..Taken::default()
        };
        check("10.133.0.0/16", &unknown).expect_err("a record that cannot be read may be on it");
    }

    #[test]
    fn an_address_whose_engine_port_is_taken_is_passed_over() {
        let (_folder, store) = store();
        let first = allocate(&store, Claim::random(), wants(), &Taken::default()).expect("room");
        let first = u32::from(first.loopback.expect("linux"));
        let blocked = Ipv4Addr::from(first + 1);
        let _listener = TcpListener::bind((blocked, ENGINE_PORT)).expect("free");
        let second = allocate(&store, Claim::random(), wants(), &Taken::default()).expect("room");
        assert_ne!(second.loopback, Some(blocked));
    }

    #[test]
    fn words_that_are_not_ports_are_refused() {
        for words in ["", "0", "65536", "x", "1:", ":1", "1:2:3", "-1"] {
            let error = publish(
                words,
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                &Taken::default(),
                true,
            )
            .expect_err(words);
            assert_eq!(error.kind(), Kind::Usage, "{words}");
        }
    }

    #[test]
    fn a_wished_host_port_is_kept() {
        let forward = publish(
            "18080:80",
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            &Taken::default(),
            true,
        )
        .expect("ports");
        assert_eq!((forward.host.port(), forward.guest), (18080, 80));
    }

    #[test]
    fn ports_below_1024_have_well_known_substitutes() {
        assert_eq!([22, 80, 443, 53].map(substitute), [2222, 8080, 8443, 8053]);
    }
}
