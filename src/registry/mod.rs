//! Drivers, as the command line sees them: found, picked, opened, observed. [`all`] is the one list of them.

mod entries;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use clap::{ArgMatches, Command};
use forge_driver::{
    Claim, Driver, DriverHome, Error, Fact, Finding, Forward, Instance, Kind, Network, Observation,
    Power, Result, Spec, Token, Wants,
};
use futures_util::future::{BoxFuture, join_all};
use ipnet::Ipv4Net;
use serde_json::Value;
use tokio::time::timeout;

use crate::credentials::{DriverToken, TokenOption};
use crate::event::Events;
use crate::fault;
use crate::machine::access::Access;
use crate::machine::imported;
use crate::machine::{Forge, Record};
use crate::store::Store;

pub use entries::all;
use entries::options_lost;

/// The hidden command that is the switch between machines; its argument is the folder of its sockets.
pub const SWITCH_COMMAND: &str = "__switch";

/// A resolved configuration: what is recorded, and where each value came from.
pub type Resolved = (Value, BTreeMap<String, String>);

/// Where a driver makes the machines of one zone.
#[derive(Clone, Debug)]
pub struct Site {
    /// The host, as its user names it.
    pub at: String,
    /// The configuration of a machine there: it alone is recorded with the machine.
    pub config: Value,
    /// The range between the machines there.
    pub network: Option<Ipv4Net>,
    /// The host alone knows whether other hosts reach machines there.
    pub asked: bool,
}

/// What of a machine can go to another store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Travel {
    /// What is remembered of it: it stays where it is, and both stores reach it there.
    Records,
    /// Its disk as well, which lies in the store.
    Disk,
    /// Nothing, and why.
    Never(&'static str),
}

/// One driver, as the command line sees it.
pub struct Entry {
    /// Its name.
    pub id: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Adds its options to a command.
    pub augment: fn(Command) -> Command,
    /// Changes the defaults of its options, on a command that has them, to those that docker-machine had.
    pub as_docker_machine: fn(Command) -> Command,
    /// The options that are taken for old scripts and change nothing: their ids, the names that users know, and why.
    pub without_effect: &'static [(&'static str, &'static str, &'static str)],
    /// Resolves the options of a parsed command.
    pub resolve: fn(&ArgMatches) -> Result<Resolved>,
    /// Where its token is looked for, where it needs one.
    pub token: Option<TokenOption>,
    /// The configuration when nothing was said.
    pub default: fn() -> Result<Value>,
    /// The range between machines of this configuration.
    pub network: fn(&Value) -> Result<Option<Ipv4Net>>,
    /// The hosts that a configuration names, one for each zone; one alone is every zone's. None where it names
    /// none: machines are made on this host.
    pub sites: fn(&Value) -> Result<Vec<Site>>,
    /// What of a machine of this configuration can go to another store.
    pub travel: fn(&Value) -> Result<Travel>,
    /// The way to its machines.
    pub access: fn(&Store) -> Arc<dyn Access>,
    /// Its machines are there before forge, and stay.
    pub adopts: bool,
    /// Opens it with a recorded configuration.
    pub open: fn(&Value, DriverHome) -> Result<Arc<dyn Driver>>,
    /// A quick look at whether machines can be made with it here: what speaks for it, or what is missing.
    pub ready: fn() -> std::result::Result<&'static str, String>,
    /// What it finds out about this host, for machines of this configuration.
    pub findings: for<'a> fn(&'a Forge, &'a Value) -> BoxFuture<'a, Result<Vec<Finding>>>,
}

/// The name of a driver that goes by several: docker-machine's plugin for KVM made machines of libvirt's.
fn name(id: &str) -> &str {
    if id == KVM { "libvirt" } else { id }
}

/// The other name.
const KVM: &str = "kvm";

/// The driver of this name.
///
/// # Errors
/// [`Kind::Usage`] with the names there are.
pub fn find(id: &str) -> Result<&'static Entry> {
    all()
        .iter()
        .find(|entry| entry.id == name(id))
        .ok_or_else(|| {
            let known: Vec<String> = all()
                .iter()
                // No machine is made with it.
                .filter(|entry| entry.id != imported::ID)
                .map(|entry| format!("`{}`", entry.id))
                .collect();
            Error::new(Kind::Usage, format!("there is no driver `{id}`"))
                .hint(format!("the drivers are {}", known.join(", ")))
                .fact(Fact::NoDriver(id.to_owned()))
        })
}

/// A driver that nobody named, and why it is the one.
pub struct Pick {
    /// The driver.
    pub entry: &'static Entry,
    /// Why, in a few words.
    pub why: String,
}

/// The driver for a command that names none: the one whose option the words hold, else `preferred` or the first that
/// machines can be made with here.
pub fn pick(words: &[OsString], preferred: Option<&str>) -> Pick {
    let options = words
        .iter()
        .map_while(|word| word.to_str().filter(|word| *word != "--"));
    for word in options {
        let of = |id: &str| {
            word.strip_prefix("--")
                .and_then(|rest| rest.strip_prefix(id))
                .is_some_and(|rest| rest.starts_with('-'))
        };
        let named = all()
            .iter()
            .find(|entry| of(entry.id) || (of(KVM) && name(KVM) == entry.id));
        if let Some(entry) = named {
            let flag = word.split('=').next().unwrap_or(word);
            return Pick {
                entry,
                why: format!("`{flag}` is its option"),
            };
        }
    }
    let preferred = all().iter().find(|entry| Some(entry.id) == preferred);
    if let Some(entry) = preferred
        && let Ok(why) = (entry.ready)()
    {
        let why = why.to_owned();
        return Pick { entry, why };
    }
    best(all(), |entry| (entry.ready)())
}

/// The first that is ready, and what the ones before it lack.
fn best(
    entries: &'static [Entry],
    ready: impl Fn(&Entry) -> std::result::Result<&'static str, String>,
) -> Pick {
    let mut lacking = Vec::new();
    for entry in entries {
        match ready(entry) {
            Ok(there) => {
                lacking.push(there.to_owned());
                return Pick {
                    entry,
                    why: lacking.join(", "),
                };
            }
            Err(missing) => lacking.push(missing),
        }
    }
    Pick {
        entry: &entries[0],
        why: "no driver has what it needs here, and `forge doctor --fix` can install what this one does".to_owned(),
    }
}

/// Opens the driver `id` on the store with a recorded configuration. Every call is a span and, in test
/// builds, a point at which the process can abort.
///
/// # Errors
/// When the driver is unknown or does not understand the configuration.
pub fn open(forge: &Forge, id: &str, config: &Value) -> Result<Arc<dyn Driver>> {
    let entry = known(id)?;
    let home = home(forge, id)?;
    let inner = (entry.open)(config, home)?;
    Ok(Arc::new(Observed {
        inner,
        events: forge.events.clone(),
        patience: forge.patience,
    }))
}

/// The way to the machines of driver `id`.
///
/// # Errors
/// When this forge has no such driver.
pub fn access(id: &str, store: &Store) -> Result<Arc<dyn Access>> {
    Ok((known(id)?.access)(store))
}

fn known(id: &str) -> Result<&'static Entry> {
    all().iter().find(|entry| entry.id == id).ok_or_else(|| {
        Error::new(
            Kind::Invalid,
            format!("the driver `{id}` of the record is not in this forge"),
        )
        .hint("another version of forge made this machine")
    })
}

/// Where the driver `id` keeps what is its own.
///
/// # Errors
/// When a folder cannot be made, or somebody else's lies in its place.
pub fn home(forge: &Forge, id: &str) -> Result<DriverHome> {
    let store = &forge.store;
    let entry = known(id)?;
    let token = entry.token.map_or_else(Token::default, |option| {
        let credentials = forge.credentials.clone();
        Token::of(Arc::new(DriverToken::new(credentials, entry.id, option)))
    });
    let dir = store.driver_dir(id);
    forge_driver::atomic::private_folder(&dir)?;
    Ok(DriverHome {
        dir,
        store: store.root().to_owned(),
        owner: store.id(),
        runtime: runtime(store)?,
        assets: forge.assets.clone(),
        token,
    })
}

/// A short folder for sockets, which have 107 bytes for their path: `/tmp/forge-UID/ID`. It is not
/// below XDG_RUNTIME_DIR: that one goes when the last session of the user ends, and machines stay.
fn runtime(store: &Store) -> Result<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let (top, own) = runtime_of(store, me);
    private(&top, me)?;
    private(&own, me)?;
    Ok(own)
}

/// The user's folder for sockets, and the store's in it.
fn runtime_of(store: &Store, me: u32) -> (PathBuf, PathBuf) {
    let top = PathBuf::from(format!("/tmp/forge-{me}"));
    let own = top.join(&store.id().simple().to_string()[..8]);
    (top, own)
}

/// Removes the folder for sockets of a store that goes itself, and in which nothing runs.
pub fn leave_runtime(store: &Store) {
    let (_, own) = runtime_of(store, rustix::process::geteuid().as_raw());
    // What is left is an empty folder below /tmp at worst.
    let _ = fs::remove_dir_all(own);
}

/// Makes `folder`, or accepts the one that is there when it is ours alone: anybody may have put
/// something into /tmp under that name.
fn private(folder: &Path, me: u32) -> Result<()> {
    let explain = |why: &str| {
        Error::new(
            Kind::Refused,
            format!("`{}` cannot be used for sockets", folder.display()),
        )
        .because(why.to_owned())
    };
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(explain(&error.to_string())),
    }
    let found = fs::symlink_metadata(folder).map_err(|error| explain(&error.to_string()))?;
    if found.is_dir() && found.uid() == me && found.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(
            explain("it is not a folder of yours that is closed to others")
                .hint("remove it, or ask its owner to"),
        )
    }
}

/// A driver whose calls are seen.
struct Observed {
    inner: Arc<dyn Driver>,
    events: Events,
    patience: Duration,
}

impl Observed {
    async fn call<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let span = format!("driver.{name}");
        fault::point(&format!("before {span}"));
        let start = Instant::now();
        let done = work.await;
        self.events.span(&span, start.elapsed()).await;
        fault::point(&format!("after {span}"));
        done
    }
}

#[async_trait]
impl Driver for Observed {
    fn id(&self) -> &'static str {
        self.inner.id()
    }

    fn wants(&self) -> Wants {
        self.inner.wants()
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        self.call("check", self.inner.check(specs)).await
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        // Polled while waiting, and changes nothing: no point of interruption.
        let seen = timeout(self.patience, self.inner.observe(claims)).await;
        seen.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Timeout,
                format!(
                    "driver `{}` had no answer within {} s",
                    self.inner.id(),
                    self.patience.as_secs()
                ),
            ))
        })
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        self.inner.list().await
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        self.call("create", self.inner.create(spec)).await
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        self.call("set_power", self.inner.set_power(claim, power))
            .await
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        self.call("forward", self.inner.forward(claim, forwards))
            .await
    }

    async fn blank_seed(&self, claim: Claim) -> Result<()> {
        self.call("blank_seed", self.inner.blank_seed(claim)).await
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        self.call("destroy", self.inner.destroy(claim)).await
    }

    async fn pack(&self, claim: Claim) -> Result<PathBuf> {
        self.call("pack", self.inner.pack(claim)).await
    }

    async fn unpack(&self, spec: &Spec) -> Result<Instance> {
        self.call("unpack", self.inner.unpack(spec)).await
    }

    async fn ensure_shared(&self, network: &Network) -> Result<()> {
        self.call("ensure_shared", self.inner.ensure_shared(network))
            .await
    }

    async fn release_shared(&self, network: &Network) -> Result<()> {
        self.call("release_shared", self.inner.release_shared(network))
            .await
    }

    fn console(&self, claim: Claim) -> Option<PathBuf> {
        self.inner.console(claim)
    }

    async fn read_console(&self, claim: Claim) -> Result<Option<Vec<u8>>> {
        self.inner.read_console(claim).await
    }
}

/// What one driver found out about this host, for `forge doctor`.
#[derive(Debug)]
pub struct Found {
    /// The driver.
    pub driver: &'static str,
    /// Machines of this store need it, or it is the one that is taken when none is named.
    pub needed: bool,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// What is missing for which driver, for `forge doctor`. Those in `wished` count as needed. Each is asked with what the
/// environment says of it, and at every host that has machines of this store.
///
/// # Errors
/// When the store cannot be used.
pub async fn findings(forge: &Forge, wished: &[&str]) -> Result<Vec<Found>> {
    let records: Vec<Record> = Record::all(&forge.store)?
        .into_iter()
        .filter_map(|(_, record)| record.ok())
        .collect();
    let taken = pick(&[], None).entry;
    let asked = all().iter().map(|entry| examined(forge, entry, &records));
    let asked = join_all(asked).await;
    all()
        .iter()
        .zip(asked)
        .map(|(entry, findings)| {
            Ok(Found {
                driver: entry.id,
                needed: wished.contains(&entry.id)
                    || records.iter().any(|record| record.driver == entry.id)
                    || (wished.is_empty() && entry.id == taken.id),
                findings: findings?,
            })
        })
        .collect()
}

/// What one driver says, for each configuration that is looked at.
async fn examined(forge: &Forge, entry: &Entry, records: &[Record]) -> Result<Vec<Finding>> {
    let mut told = Vec::new();
    let mut configs = Vec::new();
    match by_environment(entry) {
        Ok(config) => configs.push(config),
        // Without a host there is nothing to look at.
        Err(_) if entry.adopts => {}
        Err(error) => told.push(unusable("options in the environment", &error)),
    }
    let recorded = records.iter().filter(|record| record.driver == entry.id);
    configs.extend(recorded.map(|record| record.config.clone()));
    let mut seen = BTreeSet::new();
    for config in configs {
        let mut hosts = match (entry.sites)(&config) {
            Ok(hosts) => hosts,
            Err(error) => {
                told.push(unusable("the configuration of a machine", &error));
                continue;
            }
        };
        if hosts.is_empty() {
            hosts.push(Site {
                at: String::new(),
                network: None,
                config,
                asked: false,
            });
        }
        for host in hosts {
            if seen.insert(host.at) {
                told.extend((entry.findings)(forge, &host.config).await?);
            }
        }
    }
    // What is the same at every host is said once.
    let mut once: Vec<Finding> = Vec::new();
    for finding in told {
        if !once.contains(&finding) {
            once.push(finding);
        }
    }
    Ok(once)
}

fn unusable(what: &str, error: &Error) -> Finding {
    Finding {
        what: what.to_owned(),
        ok: false,
        detail: error.line(),
        packages: Vec::new(),
    }
}

/// The configuration of a command line that has no options of this driver: what the environment says, else the
/// defaults.
fn by_environment(entry: &Entry) -> Result<Value> {
    let matches = (entry.augment)(Command::new("forge"))
        .try_get_matches_from(["forge"])
        .map_err(options_lost)?;
    Ok((entry.resolve)(&matches)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_driver_is_refused_with_the_known_ones() {
        let error = find("vmware").err().expect("unknown");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.deepest_hint().expect("a hint").contains("`qemu`"));
    }

    #[test]
    fn an_option_chooses_its_driver_and_says_so() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
        let picked = pick(
            &words("forge create --virtualbox-memory=2048 n1"),
            Some("qemu"),
        );
        assert_eq!(picked.entry.id, "virtualbox");
        assert_eq!(picked.why, "`--virtualbox-memory` is its option");
        let behind = pick(&words("forge create n1 -- --virtualbox-memory 1"), None);
        assert_eq!(behind.why, best(all(), |entry| (entry.ready)()).why);
    }

    #[test]
    fn the_first_driver_that_is_ready_is_taken_and_the_others_are_told() {
        let picked = best(all(), |entry| match entry.id {
            "virtualbox" => Ok("VirtualBox is installed"),
            id => Err(format!("`{id}` is missing")),
        });
        assert_eq!(picked.entry.id, "virtualbox");
        assert_eq!(
            picked.why,
            "`qemu` is missing, `libvirt` is missing, VirtualBox is installed"
        );
        let none = best(all(), |_| Err(String::new()));
        assert_eq!(none.entry.id, "qemu");
        assert!(none.why.contains("forge doctor --fix"));
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_used_for_sockets() {
        let folder = tempfile::tempdir().expect("folder");
        let me = rustix::process::geteuid().as_raw();
        let own = folder.path().join("own");
        private(&own, me).expect("made");
        private(&own, me).expect("found");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&own, &link).expect("link");
        assert_eq!(
            private(&link, me).expect_err("a link").kind(),
            Kind::Refused
        );
        assert_eq!(
            private(&own, me + 1).expect_err("not mine").kind(),
            Kind::Refused
        );
    }
}
