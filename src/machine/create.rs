//! One loop creates a machine, and resumes it.
//!
//! ```text
//! wish → lock → check → Claimed → Launched → Reached → Ready
//! ```
//!
//! Each stage is saved when it is reached. The claim and all keys are on disk before the provider is
//! asked, so the same command after a kill anywhere goes on where it stopped, with no second VM.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use forge_driver::{Claim, Driver, Error, Kind, Mac, Network, Nic, Result, Spec, atomic};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::access::{self, Connection};
use super::adopt::{self, Adopting};
use super::seed::{self, FIRST_HOST_KEY};
use super::{
    Forge, Member, Record, SSH_KEY, SshAccess, Stage, first_contact, provision, reach, record,
};
use crate::engine_options::{EngineOptions, Install};
use crate::interrupt;
use crate::registry;
use crate::remote::{KeyPair, generate_key};
use crate::secret::Secret;
use crate::store::lock::{Guarded, acquire};
use crate::store::{self, addresses, write_file};

/// The user that forge makes on its machines.
const USER: &str = "forge";

/// What a user wishes of one machine.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The name.
    pub name: String,
    /// The driver.
    pub driver: &'static str,
    /// Its resolved configuration.
    pub config: Value,
    /// Where each value of it came from.
    pub origins: BTreeMap<String, String>,
    /// The id of the base image.
    pub image: String,
    /// Ports to publish: `PORT` or `HOSTPORT:PORT`.
    pub publish: Vec<String>,
    /// What the engine is to be told.
    pub engine: EngineOptions,
    /// What the engine's certificate is to carry besides the machine's own names.
    pub sans: Vec<String>,
    /// The place in a cluster.
    pub member: Option<Member>,
    /// What is known of a host that is there already.
    pub adopting: Option<Adopting>,
}

/// A machine that is up, the connection it was reached by, and how many things were changed on it.
pub struct Up {
    /// The record as saved.
    pub record: Record,
    /// The open connection.
    pub connection: Connection,
    /// Steps of playbooks that changed something, and stages that were gone through.
    pub changed: usize,
}

/// Puts a machine's claim on disk: the record, its keys, its addresses. A record that is there already
/// is returned as it is, so that the loop goes on with it. The caller holds the machine's lock.
///
/// # Errors
/// When the machine is on its way out, was begun with other options, or cannot be placed.
pub async fn claim(forge: &Forge, wish: &Wish) -> Result<Record> {
    record::check_name(&wish.name)?;
    if let Some(found) = Record::find(&forge.store, &wish.name)? {
        return same(found, wish);
    }
    let claimed = claim_new(forge, wish).await;
    if claimed.is_err() {
        // Keys without a record are nobody's. The first error is the one to report.
        let _ = store::forget(&forge.store.machine_dir(&wish.name), "machine.json");
    }
    claimed
}

async fn claim_new(forge: &Forge, wish: &Wish) -> Result<Record> {
    let driver = registry::open(forge, wish.driver, &wish.config)?;
    let folder = forge.store.machine_dir(&wish.name);
    atomic::private_folder(&folder)?;
    let ssh = match &wish.adopting {
        None => made_by_us(forge, wish)?,
        Some(adopting) => {
            if !adopting.access.user.is_empty() {
                own_key(forge, wish)?;
            }
            adopting.access.clone()
        }
    };
    let _lock = acquire(
        &forge.store,
        &Guarded::Addresses,
        forge.patience,
        &forge.events,
    )
    .await?;
    let mut taken = record::taken(&forge.store)?;
    let claim = Claim::random();
    let placement = addresses::allocate(&forge.store, claim, driver.wants(), &taken)?;
    taken
        .ports
        .extend(placement.forwards().iter().map(|forward| forward.host));
    let mut published = Vec::new();
    for words in &wish.publish {
        let forward = super::publish::forward(words, &placement, &taken)?;
        taken.ports.insert(forward.host);
        published.push(forward);
    }
    let record = Record {
        name: wish.name.clone(),
        claim,
        created: Timestamp::now(),
        driver: wish.driver.to_owned(),
        config: wish.config.clone(),
        origins: wish.origins.clone(),
        image: wish.image.clone(),
        stage: Stage::Claimed,
        leaving: false,
        placement,
        ssh,
        instance: wish.adopting.as_ref().map(Adopting::instance),
        tls: None,
        renewing: None,
        engine: wish.engine.clone(),
        engine_past: Vec::new(),
        sans: wish.sans.clone(),
        published,
        member: wish.member.clone(),
        adopted: wish.adopting.as_ref().and_then(|host| host.adopted.clone()),
        imported: None,
    };
    adopt::only_once(&forge.store, wish)?;
    record.save(&forge.store)?;
    Ok(record)
}

/// The keys of a machine that forge makes: its user's, and that of the first contact.
fn made_by_us(forge: &Forge, wish: &Wish) -> Result<SshAccess> {
    own_key(forge, wish)?;
    let first_host_key = generate_key("first contact")?;
    key_file(
        forge,
        wish,
        FIRST_HOST_KEY,
        first_host_key.private_openssh.expose(),
        0o600,
    )?;
    Ok(SshAccess {
        user: USER.to_owned(),
        key: SSH_KEY.to_owned(),
        first_host_key: Some(first_host_key.public_openssh.trim().to_owned()),
        own_host_key: None,
        accept: Vec::new(),
        authorities: Vec::new(),
    })
}

/// The key that forge logs in with.
fn own_key(forge: &Forge, wish: &Wish) -> Result<()> {
    let key = generate_key(&format!("forge {}", wish.name))?;
    key_file(forge, wish, SSH_KEY, key.private_openssh.expose(), 0o600)?;
    key_file(
        forge,
        wish,
        &format!("{SSH_KEY}.pub"),
        &key.public_openssh,
        0o644,
    )
}

fn key_file(forge: &Forge, wish: &Wish, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = forge.store.machine_dir(&wish.name).join(name);
    write_file(&path, format!("{}\n", text.trim_end()).as_bytes(), mode)
}

/// Refuses a machine that was begun with another driver.
///
/// # Errors
/// [`Kind::Exists`]
pub fn of_driver(found: &Record, driver: &str) -> Result<()> {
    if found.driver == driver {
        return Ok(());
    }
    let name = &found.name;
    Err(Error::new(
        Kind::Exists,
        format!(
            "machine `{name}` exists, of the driver `{}` and not `{driver}`",
            found.driver
        ),
    )
    .hint(if found.stage == Stage::Ready {
        format!("use another name, or remove it first: `forge rm {name}`")
    } else {
        format!(
            "{} goes on with it; `forge rm {name}` removes it",
            found.resumed_by()
        )
    }))
}

/// The record that is there, when it can serve the wish.
fn same(found: Record, wish: &Wish) -> Result<Record> {
    let name = &found.name;
    if found.leaving {
        return Err(Error::new(
            Kind::Conflict,
            format!("the removal of machine `{name}` has begun and did not end"),
        )
        .hint(format!(
            "`forge rm {name}` goes on with it; then create the machine again"
        )));
    }
    of_driver(&found, wish.driver)?;
    if found.member != wish.member {
        let place = found.member.as_ref().map_or_else(
            || "belongs to no cluster".to_owned(),
            |member| {
                format!(
                    "is a {} of cluster `{}` in zone {}",
                    member.role, member.cluster, member.zone
                )
            },
        );
        return Err(
            Error::new(Kind::Exists, format!("machine `{name}` exists and {place}")).hint(format!(
                "use another name, or remove it first: `forge rm {name}`"
            )),
        );
    }
    // What the user did not say does not matter: the recorded value stays.
    let mut others = wish
        .origins
        .iter()
        .filter(|(_, origin)| *origin != "default" && found.config != wish.config)
        .map(|(option, _)| option.as_str())
        .chain(other_engine(&found, wish));
    if let Some(option) = others.next().filter(|_| found.stage < Stage::Ready) {
        return Err(Error::new(
            Kind::Exists,
            format!("machine `{name}` was begun with other options than these (`--{option}` is one that was given)"),
        )
        .hint(format!(
            "run the earlier command again, or remove the machine first: `forge rm {name}`"
        )));
    }
    drop(others);
    Ok(found)
}

/// An option of the engine that was given and is another than the recorded one.
fn other_engine(found: &Record, wish: &Wish) -> Option<&'static str> {
    let (found_engine, engine) = (&found.engine, &wish.engine);
    let lists = [
        ("engine-opt", &found_engine.opts, &engine.opts),
        ("engine-env", &found_engine.env, &engine.env),
        ("engine-label", &found_engine.labels, &engine.labels),
        (
            "engine-insecure-registry",
            &found_engine.insecure_registries,
            &engine.insecure_registries,
        ),
        (
            "engine-registry-mirror",
            &found_engine.mirrors,
            &engine.mirrors,
        ),
        ("tls-san", &found.sans, &wish.sans),
    ];
    lists
        .into_iter()
        .find(|(_, found, wished)| !wished.is_empty() && found != wished)
        .map(|(option, _, _)| option)
        .or_else(|| {
            let wished = engine.storage_driver.is_some();
            (wished && engine.storage_driver != found_engine.storage_driver)
                .then_some("engine-storage-driver")
        })
        .or_else(|| {
            let wished = engine.install != Install::Distribution;
            (wished && engine.install != found_engine.install).then_some("engine-install-url")
        })
}

/// What can be said of this host and this driver before there is an image to make so many machines from.
///
/// # Errors
/// What the driver's pre-check says.
pub async fn check_host(
    forge: &Forge,
    driver: &str,
    config: &Value,
    machines: usize,
) -> Result<()> {
    let driver = registry::open(forge, driver, config)?;
    check_network(forge, &*driver, machines)?;
    driver.check(&[]).await
}

/// The network that so many machines more of this driver would be on, where it wants one.
fn check_network(forge: &Forge, driver: &dyn Driver, machines: usize) -> Result<Option<Network>> {
    let wants = driver.wants();
    let Some(cidr) = wants.network else {
        return Ok(None);
    };
    let taken = record::taken(&forge.store)?;
    let network = addresses::check_network(&forge.store, cidr, &taken)?;
    addresses::room(&network, &taken, machines, &wants.kept)?;
    Ok(Some(network))
}

/// What a driver wants to know before anything is touched: machines that are wished, placed nowhere.
///
/// # Errors
/// What the driver's pre-check says.
pub async fn check(forge: &Forge, wishes: &[Wish]) -> Result<()> {
    // One driver may make them at several hosts.
    let mut by_place: BTreeMap<(&str, String), Vec<&Wish>> = BTreeMap::new();
    for wish in wishes {
        by_place
            .entry((wish.driver, wish.config.to_string()))
            .or_default()
            .push(wish);
    }
    for ((id, _), wishes) in by_place {
        let Some(first) = wishes.first() else {
            continue;
        };
        let driver = registry::open(forge, id, &first.config)?;
        let network = check_network(forge, &*driver, wishes.len())?;
        let Err(error) = driver
            .check(&specs(forge, &wishes, network.as_ref())?)
            .await
        else {
            continue;
        };
        // Commands that begin at the same time on a fresh store each look at a network that is recorded nowhere
        // yet. One of them records it; from then on it is this store's own for the others, too.
        let now = check_network(forge, &*driver, wishes.len())?;
        if now == network || !recorded(forge, now.as_ref())? {
            return Err(error);
        }
        driver.check(&specs(forge, &wishes, now.as_ref())?).await?;
    }
    Ok(())
}

/// Whether this store has recorded the network.
fn recorded(forge: &Forge, network: Option<&Network>) -> Result<bool> {
    let known = addresses::networks(&forge.store)?;
    Ok(network.is_some_and(|network| known.contains(network)))
}

/// Machines that are wished, placed nowhere.
fn specs(forge: &Forge, wishes: &[&Wish], network: Option<&Network>) -> Result<Vec<Spec>> {
    wishes
        .iter()
        .map(|wish| {
            let claim = Claim::random();
            Ok(Spec {
                claim,
                name: wish.name.clone(),
                image: forge.images().base(&forge.images().find(&wish.image)?),
                seed: forge_driver::Seed {
                    user_data: String::new(),
                    meta_data: String::new(),
                    network_config: String::new(),
                },
                nic: network.map(|network| Nic {
                    address: network.cidr.addr(),
                    network: network.clone(),
                    mac: Mac::of(claim, 1),
                }),
                outer_mac: Mac::of(claim, 0),
                forwards: Vec::new(),
            })
        })
        .collect()
}

/// Brings a recorded machine up from whatever stage it is at, and makes it a container host. On a
/// machine that is ready everything is checked and what differs is mended. The caller holds the
/// machine's lock.
///
/// `peers` are the addresses that cluster traffic is accepted from; `open` is a connection that the
/// command has already.
///
/// # Errors
/// What failed, with the end of the machine's console when it did not boot.
pub async fn bring_up(
    forge: &Forge,
    record: Record,
    open: Option<Connection>,
    peers: &[IpAddr],
) -> Result<Up> {
    let name = record.name.clone();
    access::enterable(&record)?;
    climb(forge, record, open, peers)
        .await
        .map_err(|error| error.context(format!("failed to bring up machine `{name}`")))
}

async fn climb(
    forge: &Forge,
    mut record: Record,
    mut connection: Option<Connection>,
    peers: &[IpAddr],
) -> Result<Up> {
    let driver = forge.driver(&record)?;
    if driver.wants().adopts {
        return adopt::climb(forge, record, &*driver, connection, None).await;
    }
    let mut changed = 0;
    loop {
        interrupt::check()?;
        let next = match record.stage {
            Stage::Claimed => launch(forge, &*driver, &record).await?,
            Stage::Launched => {
                let open = match connection.take() {
                    Some(open) => open,
                    None => {
                        let (found, open) = reach::reach(forge, &*driver, &record).await?;
                        record = found;
                        open
                    }
                };
                let next = first_contact::settle(forge, &*driver, &record, &open).await?;
                connection = Some(open);
                next
            }
            Stage::Reached | Stage::Ready => break,
        };
        next.save(&forge.store)?;
        record = next;
        changed += 1;
    }
    let connection = match connection {
        Some(open) => open,
        None => {
            let (found, open) = reach::reach(forge, &*driver, &record).await?;
            record = found;
            open
        }
    };
    let done = provision::apply(forge, record, &connection, peers).await?;
    let connection = if done.regrouped {
        access::open(&*forge.access(&done.record)?, &done.record, forge.patience).await?
    } else {
        connection
    };
    Ok(Up {
        record: done.record,
        connection,
        changed: changed + done.changed,
    })
}

/// The VM, found by its claim or made.
async fn launch(forge: &Forge, driver: &dyn Driver, record: &Record) -> Result<Record> {
    forge
        .events
        .step("starting the virtual machine", "", None)
        .await;
    if let Some(nic) = &record.placement.nic {
        driver.ensure_shared(&nic.network).await?;
    }
    let spec = spec(forge, record)?;
    let instance = driver.create(&spec).await?;
    Ok(Record {
        stage: Stage::Launched,
        instance: Some(instance),
        ..record.clone()
    })
}

fn spec(forge: &Forge, record: &Record) -> Result<Spec> {
    let folder = forge.store.machine_dir(&record.name);
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).map_err(|error| {
            Error::new(
                Kind::Corrupt,
                format!(
                    "the file `{name}` of machine `{}` cannot be read",
                    record.name
                ),
            )
            .because(error)
            .hint(format!(
                "remove the machine and create it again: `forge rm -f {}`",
                record.name
            ))
        })
    };
    let first = KeyPair {
        private_openssh: Secret::new(read(FIRST_HOST_KEY)?),
        public_openssh: record.ssh.first_host_key.clone().unwrap_or_default(),
    };
    let images = forge.images();
    let image = images.find(&record.image)?;
    Ok(Spec {
        claim: record.claim,
        name: record.name.clone(),
        image: images.base(&image),
        seed: seed::render(
            &forge.assets,
            record,
            &read(&format!("{}.pub", record.ssh.key))?,
            &first,
        )?,
        nic: record.placement.nic.clone(),
        outer_mac: record.placement.outer_mac,
        forwards: record
            .placement
            .forwards()
            .into_iter()
            .chain(record.published.iter().copied())
            .collect(),
    })
}

/// A machine that is to be brought up, as far as its address: made and started when a server of its network is
/// to give it one. Where that was decided before, nothing is done.
///
/// # Errors
/// [`Kind::Timeout`] when it has none in time.
pub async fn locate(forge: &Forge, mut record: Record) -> Result<Record> {
    if record.placement.decided() || record.address().is_some() {
        return Ok(record);
    }
    let driver = forge.driver(&record)?;
    if record.stage == Stage::Claimed {
        record = launch(forge, &*driver, &record).await?;
        record.save(&forge.store)?;
    }
    let deadline = Instant::now() + forge.patience;
    reach::awake(forge, &*driver, &record).await?;
    reach::located(forge, &*driver, record, deadline).await
}
