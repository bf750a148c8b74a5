//! `forge import`

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use forge::interrupt;
use forge::machine::{Forge, Record};
use forge::transfer::docker_machine::{self as docker_machine, Found, Keeper, Plan};
use forge_driver::{Error, Kind, Result};
use serde_json::{Value, json};

use super::ask;
use super::credentials::Passphrase;
use super::outcome::conclude;
use super::table::table;
use super::{Outcome, Session, report};

/// Take over machines that come from elsewhere
///
/// A file of `forge export` is read to its end before anything is written. Machines keep their identity and their
/// addresses between each other; where this host reaches those that come with a disk is decided anew, and their
/// certificates follow. Run it again when it was cut off.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Import {
    /// A file that `forge export` wrote
    #[arg(required = true)]
    file: Option<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
    #[command(subcommand)]
    from: Option<From>,
}

#[derive(Subcommand)]
enum From {
    DockerMachine(DockerMachine),
}

impl Import {
    /// Imports.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        match (self.from, self.file) {
            (Some(From::DockerMachine(command)), _) => command.run(session).await,
            (None, Some(file)) => file::from_file(session, &file, self.passphrase).await,
            (None, None) => Err(Error::new(Kind::Usage, "no file is named")),
        }
    }
}

/// Take over the machines of a store of docker-machine's, in which nothing is changed
///
/// Run it again at any time: what was imported stays as it is. docker-machine never checked host keys, so SSH is
/// refused until a key is vouched for: by `--host-key`, or by a yes at the terminal.
#[derive(Args)]
pub struct DockerMachine {
    /// The folder that holds docker-machine's `machines` and `certs` [default: ~/.docker/machine]
    path: Option<PathBuf>,
    /// The machines [default: all]
    names: Vec<String>,
    /// Trust the host key of a machine that has this fingerprint
    #[arg(long = "host-key", value_name = "NAME=SHA256:…")]
    host_keys: Vec<String>,
    /// Show what would be imported, and end with 2 when anything would
    #[arg(long)]
    dry_run: bool,
}

impl DockerMachine {
    async fn run(self, session: &Session) -> Result<Outcome> {
        let root = match self.path {
            Some(path) => super::absolute(&path)?,
            None => usual()?,
        };
        let vouched = vouched(&self.host_keys)?;
        let existing = session.existing()?;
        let found = docker_machine::look(&root, &self.names, existing.as_ref())?;
        let stray = vouched
            .keys()
            .find(|name| !found.iter().any(|found| &found.name == *name));
        if let Some(name) = stray {
            return Err(Error::new(
                Kind::Usage,
                format!("`--host-key` names machine `{name}`, which is not imported"),
            ));
        }
        if self.dry_run {
            return show(session, found);
        }
        import(session, &root, found, &vouched).await
    }
}

/// Where docker-machine keeps machines when nobody tells it.
fn usual() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(|home| PathBuf::from(home).join(".docker/machine"))
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                "there is no HOME to look for docker-machine's store in",
            )
            .hint("name the folder: `forge import docker-machine PATH`")
        })
}

/// The fingerprints that were given for each machine.
fn vouched(words: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut vouched: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for word in words {
        let parts = word
            .split_once('=')
            .filter(|(name, print)| !name.is_empty() && print.starts_with("SHA256:"));
        let Some((name, print)) = parts else {
            return Err(Error::new(
                Kind::Usage,
                format!("`{word}` is not `NAME=SHA256:…`"),
            )
            .hint("`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`, run at the machine, shows the fingerprint of its key"));
        };
        // OpenSSH leaves the padding out; others do not.
        let print = print.trim_end_matches('=').to_owned();
        vouched.entry(name.to_owned()).or_default().push(print);
    }
    Ok(vouched)
}

/// What would be done.
fn show(session: &Session, found: Vec<Found>) -> Result<Outcome> {
    let changes = found
        .iter()
        .any(|found| found.plan.as_ref().is_ok_and(Plan::changes));
    let described: Vec<Described> = found.iter().map(Described::of).collect();
    if session.json() {
        let machines: Vec<Value> = described.iter().map(Described::json).collect();
        println!("{}", Value::Array(machines));
    } else {
        let rows: Vec<Vec<String>> = described.iter().map(Described::cells).collect();
        print!("{}", table(&["NAME", "DRIVER", "ENGINE", "CHANGE"], &rows));
    }
    let failed = found
        .into_iter()
        .map(|found| (found.name, found.plan.map(drop)));
    match conclude(failed.collect())? {
        Outcome::Done if changes => Ok(Outcome::Code(2)),
        outcome => Ok(outcome),
    }
}

/// One line of what would be done.
struct Described {
    name: String,
    driver: String,
    engine: String,
    change: String,
}

impl Described {
    fn of(found: &Found) -> Self {
        let (driver, engine, change) = match &found.plan {
            Ok(Plan::New(foreign)) => {
                let (host, port) = &foreign.engine;
                let engine = if host.is_empty() {
                    String::new()
                } else {
                    format!("tcp://{host}:{port}")
                };
                (foreign.driver.clone(), engine, "import".to_owned())
            }
            Ok(Plan::Rest(foreign)) => (
                foreign.driver.clone(),
                String::new(),
                "keep what was left".to_owned(),
            ),
            Ok(Plan::There) => (
                String::new(),
                String::new(),
                "none: it was imported before".to_owned(),
            ),
            Err(error) => (
                String::new(),
                String::new(),
                format!("none: {}", error.line()),
            ),
        };
        Self {
            name: found.name.clone(),
            driver,
            engine,
            change,
        }
    }

    fn cells(&self) -> Vec<String> {
        [&self.name, &self.driver, &self.engine, &self.change]
            .into_iter()
            .cloned()
            .collect()
    }

    fn json(&self) -> Value {
        json!({"name": self.name, "driver": self.driver, "engine": self.engine, "change": self.change})
    }
}

/// Imports one machine after another; one that cannot be imported keeps no other from it.
async fn import(
    session: &Session,
    root: &Path,
    found: Vec<Found>,
    vouched: &BTreeMap<String, Vec<String>>,
) -> Result<Outcome> {
    let (forge, drawing) = session.worker("import")?;
    let mut keeper = Keeper::default();
    let mut done = Vec::new();
    for Found { name, plan } in found {
        let result = match plan {
            Ok(_) => {
                one(
                    &forge.of(&name),
                    root,
                    &name,
                    vouched.get(&name),
                    &mut keeper,
                )
                .await
            }
            Err(error) => Err(error),
        };
        let result =
            result.map_err(|error| error.context(format!("failed to import machine `{name}`")));
        done.push((name, result));
    }
    drawing.finish(forge).await;
    let forge = session.reader()?;
    let open = untrusted(&forge, &done);
    if session.json() {
        println!("{}", summary(&done, &open, &keeper));
    } else {
        tell_power(&forge, &done);
        tell_secrets(&forge, root, &keeper);
        let open = answered(&forge, open).await;
        tell(root, &open);
        interrupt::check()?;
    }
    conclude(done)
}

type Results = [(String, Result<docker_machine::Done>)];

async fn one(
    forge: &Forge,
    root: &Path,
    name: &str,
    vouched: Option<&Vec<String>>,
    keeper: &mut Keeper,
) -> Result<docker_machine::Done> {
    forge.events.step("importing", "", None).await;
    let mut done = docker_machine::take(forge, root, name, keeper).await?;
    for note in &done.notes {
        forge.events.warning(format!("{name}: {note}")).await;
    }
    let pinned = match vouched {
        Some(prints) => docker_machine::pin(forge, name, prints).await,
        None => Ok(false),
    };
    if done.changed || pinned.is_err() {
        forge.events.finished("imported", done.changed).await;
    }
    let pinned = pinned?;
    if pinned || !done.changed {
        let outcome = if pinned {
            "its host key is trusted now"
        } else {
            "imported"
        };
        forge.events.finished(outcome, pinned).await;
    }
    done.changed |= pinned;
    Ok(done)
}

/// The machines of which no host key is trusted, though they have SSH.
fn untrusted(forge: &Forge, done: &Results) -> Vec<String> {
    done.iter()
        .filter_map(|(name, _)| Record::find(&forge.store, name).ok().flatten())
        .filter(|record| {
            record.imported.is_some()
                && !record.config["ssh"].is_null()
                && record.ssh.accepted().is_empty()
        })
        .map(|record| record.name)
        .collect()
}

/// Asks at a terminal whether the keys that are shown are the machines' own. What is still open afterwards.
async fn answered(forge: &Forge, names: Vec<String>) -> Vec<String> {
    if !std::io::stdin().is_terminal() {
        return names;
    }
    let mut open = Vec::new();
    for name in names {
        // Whoever leaves has answered none of the rest.
        if interrupt::check().is_err() {
            open.push(name);
            continue;
        }
        // A machine that shows none now is asked for another day.
        let Ok(Some(shown)) = docker_machine::shown(forge, &name).await else {
            open.push(name);
            continue;
        };
        let _ = write!(
            std::io::stderr(),
            "{} shows the host key {}. `ssh-keygen -lf` of the key in its /etc/ssh has to show the same.\nTrust it? [y/N] ",
            shown.address,
            shown.fingerprint
        );
        let yes = ask::line().is_ok_and(|answer| answer.is_some_and(|line| ask::is_yes(&line)));
        let pinned = yes
            && match docker_machine::pin(forge, &name, &[shown.fingerprint]).await {
                Ok(_) => true,
                Err(error) => {
                    report::write(&error, None);
                    false
                }
            };
        if !pinned {
            open.push(name);
        }
    }
    open
}

/// Says whose power is not forge's to switch.
fn tell_power(forge: &Forge, done: &Results) {
    let new = done
        .iter()
        .filter(|(_, result)| result.as_ref().is_ok_and(|done| done.new))
        .filter_map(|(name, _)| Record::find(&forge.store, name).ok().flatten())
        .filter(|record| record.config["virtualbox"] == false);
    let drivers: BTreeSet<String> = new
        .map(|record| format!("`{}`", record.made_by()))
        .collect();
    if !drivers.is_empty() {
        let drivers: Vec<String> = drivers.into_iter().collect();
        report::note(&format!(
            "the power of these machines is switched where they were made, not by forge: those of {}",
            drivers.join(", ")
        ));
    }
}

/// Says where the secrets are.
fn tell_secrets(forge: &Forge, root: &Path, keeper: &Keeper) {
    if !keeper.kept().is_empty() {
        let kept = keeper.kept().iter();
        let kept: Vec<String> = kept.map(|(name, at)| format!("`{name}` ({at})")).collect();
        report::note(&format!("secrets are kept as {}", kept.join(", ")));
    }
    if let Some(why) = keeper.instead() {
        report::note(&format!(
            "{why}: they are in {}, sealed by the passphrase",
            forge.store.root().join(forge::credentials::FILE).display()
        ));
    }
    if let Some(why) = keeper.refused() {
        report::note(&format!(
            "warning: secrets stay where docker-machine kept them, in plain text: {why}\nhint: with a keyring, a terminal, or the passphrase in the file that FORGE_PASSPHRASE_FILE names, `forge import docker-machine {}` keeps them",
            root.display()
        ));
    }
}

/// So many machines are named; of more, only how many there are.
const NAMED: usize = 5;

/// Says how SSH comes to work.
fn tell(root: &Path, open: &[String]) {
    if let Some(name) = open.first() {
        let first = open.iter().take(NAMED).map(|name| format!("`{name}`"));
        let mut all = first.collect::<Vec<_>>().join(", ");
        if let more @ 1.. = open.len().saturating_sub(NAMED) {
            all.push_str(&format!(" and {more} more"));
        }
        report::note(&format!(
            "no host key is trusted yet, so SSH is refused: {}\nhint: `forge import docker-machine {} --host-key {name}=SHA256:…` trusts one; at the machine `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` shows which",
            all,
            root.display()
        ));
    }
}

fn summary(done: &Results, open: &[String], keeper: &Keeper) -> Value {
    json!({
        "event": "summary",
        "secrets": {
            "kept": keeper.kept().iter().map(|(name, at)| (name.clone(), at.to_string().into())).collect::<serde_json::Map<_, _>>(),
            "refused": keeper.refused(),
        },
        "changed": done.iter().filter(|(_, result)| result.as_ref().is_ok_and(|done| done.changed)).count(),
        "machines": done.iter().map(|(name, result)| json!({
            "name": name,
            "ok": result.is_ok(),
            "error": result.as_ref().err().map(Error::line),
            "notes": result.as_ref().map(|done| done.notes.as_slice()).unwrap_or_default(),
            "host_key": !open.contains(name),
        })).collect::<Vec<_>>(),
    })
}
