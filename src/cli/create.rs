//! `forge create`

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use forge::engine_options::EngineOptions;
use forge::machine::create::{self, Wish};
use forge::machine::{Forge, Record, Stage, publish};
use forge::registry;
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::{Error, Fact, Kind, Result};

use super::adopt::Manner;
use super::names::check_names;
use super::outcome::{Done, FAN_OUT, finish};
use super::persona::{self, Persona};
use super::{DEFAULT_MACHINE, Outcome, Session, adopt, engine, image, report};

/// Create machines: virtual machines with a container engine that is reached over TLS
///
/// Machines that a killed or failed `create` left unfinished are gone on with.
#[derive(Args)]
pub struct Create {
    /// Names of the machines [default: default]
    names: Vec<String>,
    #[command(flatten)]
    choice: Choice,
    /// Show what adopting a host changes on it, and change nothing; exit code 2 says that something would change
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before an engine that listens at its port already is taken over
    #[arg(short, long)]
    yes: bool,
    /// Publish this port of each machine on its address: PORT, or HOSTPORT:PORT
    #[arg(long = "publish", short = 'p', value_name = "PORT")]
    publish: Vec<String>,
    #[command(flatten)]
    engine: engine::Options,
    #[command(flatten)]
    source: engine::Source,
}

/// What is wished of each machine besides its driver's options.
pub struct Wished {
    /// Ports to publish.
    pub publish: Vec<String>,
    /// What the engine is to be told.
    pub engine: EngineOptions,
    /// What its certificate is to carry besides the machine's own names.
    pub sans: Vec<String>,
}

/// What `create` and `cluster up` choose alike.
#[derive(Args)]
pub struct Choice {
    /// Make them with this driver; its options are shown by `--driver NAME --help` [default: the first of qemu, libvirt and virtualbox that works here]
    #[arg(
        long,
        short,
        value_name = "NAME",
        env = "FORGE_DRIVER",
        hide_env_values = true
    )]
    driver: Option<String>,
    /// Start from this base image; `forge image ls` shows them [default: the built one, built when missing]
    #[arg(long, value_name = "NAME", env = "FORGE_IMAGE", hide_env_values = true)]
    image: Option<String>,
}

/// A choice, resolved.
pub struct Chosen {
    /// The driver.
    pub driver: &'static registry::Entry,
    /// Its configuration, and where each value came from.
    pub resolved: registry::Resolved,
    /// The base image asked for.
    pub image: Option<String>,
    /// Why it is this driver, when nobody named one.
    pub why: Option<String>,
}

impl Choice {
    /// The driver that was asked for. An empty variable asks for none.
    pub fn named(&self) -> Option<&str> {
        self.driver.as_deref().filter(|id| !id.is_empty())
    }

    /// Finds the driver and resolves its options.
    ///
    /// # Errors
    /// When there is no such driver, or an option makes no sense.
    pub fn resolve(&self, session: &Session, matches: &ArgMatches) -> Result<Chosen> {
        let (driver, why) = match (self.named(), &session.picked) {
            (Some(id), _) => (registry::find(id)?, None),
            (None, Some(picked)) => (picked.entry, Some(picked.why.clone())),
            (None, None) => return Err(Error::new(Kind::Usage, "no driver is named")),
        };
        for (id, flag, why) in driver.without_effect {
            let source = matches.value_source(id);
            if source.is_some_and(|source| source != ValueSource::DefaultValue) {
                report::note(&format!("warning: `{flag}` has no effect: {why}"));
            }
        }
        Ok(Chosen {
            driver,
            resolved: session.defaults.told((driver.resolve)(matches)?, driver),
            image: self.image.clone(),
            why,
        })
    }
}

impl Chosen {
    /// Says which driver it is and why, when nobody named one and another may be expected.
    pub fn tell(&self, session: &Session) {
        let expected =
            session.persona() == Persona::DockerMachine && self.driver.id == persona::DRIVER;
        if let Some(why) = &self.why
            && !session.json()
            && !expected
        {
            report::note(&format!(
                "driver: {} ({why}; `--driver` chooses another)",
                self.driver.id
            ));
        }
    }

    /// The wish for one machine.
    pub fn wish(&self, name: &str, image: &str, wished: &Wished) -> Wish {
        Wish {
            name: name.to_owned(),
            driver: self.driver.id,
            config: self.resolved.0.clone(),
            origins: self.resolved.1.clone(),
            image: image.to_owned(),
            publish: wished.publish.clone(),
            engine: wished.engine.clone(),
            sans: wished.sans.clone(),
            member: None,
            adopting: None,
        }
    }
}

impl Create {
    /// Creates the machines, all at once.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let names = names(session.persona(), self.names)?;
        check_names(&names)?;
        publish::check(&self.publish)?;
        let chosen = self.choice.resolve(session, matches)?;
        let hosts = (chosen.driver.sites)(&chosen.resolved.0)?;
        if hosts.len() > 1 {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "{} hosts are named, and a machine is made at one",
                    hosts.len()
                ),
            )
            .hint("several hosts are the zones of a cluster: `forge cluster up`"));
        }
        chosen.tell(session);
        let (engine, sans) = self.engine.with_variables().wished()?;
        let wished = Wished {
            publish: self.publish,
            engine: EngineOptions {
                install: self.source.wished(matches)?,
                ..engine
            },
            sans,
        };
        if chosen.driver.adopts {
            let manner = Manner {
                dry_run: self.dry_run,
                yes: self.yes,
            };
            return adopt::create(session, chosen, matches, &names, &wished, manner).await;
        }
        if self.dry_run {
            return Err(Error::new(
                Kind::Usage,
                "`--dry-run` is for hosts that are adopted: a machine that forge makes changes nothing that is there",
            ));
        }
        let (forge, drawing) = session.worker("create")?;
        let done = create_all(session, &forge, &chosen, &names, &wished).await;
        drawing.finish(forge).await;
        concluded(session, done?)
    }
}

/// Says what came of each machine, and how the command ended.
///
/// # Errors
/// When any machine failed.
pub fn concluded(session: &Session, done: Done<usize>) -> Result<Outcome> {
    for (name, _) in done.iter().filter(|(_, created)| created.is_ok()) {
        session.say(&persona::created(name));
    }
    finish(session, done)
}

/// The machines to be made: `default` where none is named. docker-machine made one, and asked for its name.
fn names(persona: Persona, mut names: Vec<String>) -> Result<Vec<String>> {
    if persona == Persona::DockerMachine && names.len() > 1 {
        return Err(Error::new(Kind::Usage, "one machine is made at a time")
            .fact(Fact::ExtraNames(names.split_off(1))));
    }
    if !names.is_empty() {
        return Ok(names);
    }
    match persona {
        Persona::Forge => Ok(vec![DEFAULT_MACHINE.to_owned()]),
        Persona::DockerMachine => {
            Err(Error::new(Kind::Usage, "no machine is named").fact(Fact::NoName))
        }
    }
}

async fn create_all(
    session: &Session,
    forge: &Forge,
    chosen: &Chosen,
    names: &[String],
    wished: &Wished,
) -> Result<Done<usize>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let mut fresh = Vec::new();
    let mut ready = Vec::new();
    for name in names {
        match Record::find(&forge.store, name)? {
            Some(found) if found.stage == Stage::Ready && !found.leaving => {
                ready.push(name.clone());
            }
            Some(found) if found.leaving => {}
            // Refused before anything is built for it.
            Some(found) => create::of_driver(&found, chosen.driver.id)?,
            None => fresh.push(name.clone()),
        }
    }
    // All records are written before the first machine is brought up: where all are there and some are not
    // ready, this command was cut off and goes on.
    let cut_off = fresh.is_empty() && ready.len() < names.len();
    if let Some(name) = ready.first()
        && !cut_off
    {
        return Err(
            Error::new(Kind::Exists, format!("machine `{name}` already exists"))
                .hint("`forge ls` shows the machines; use another name")
                .fact(Fact::Exists(name.clone())),
        );
    }
    if !fresh.is_empty() {
        session.say("Running pre-create checks...");
        create::check_host(forge, chosen.driver.id, &chosen.resolved.0, fresh.len()).await?;
    }
    let image = image::for_machines(forge, chosen.image.as_deref()).await?;
    let wishes: Vec<Wish> = fresh
        .iter()
        .map(|name| chosen.wish(name, &image, wished))
        .collect();
    create::check(forge, &wishes).await?;
    let mut records = Vec::new();
    for name in names.iter().filter(|name| !ready.contains(name)) {
        records.push(create::claim(forge, &chosen.wish(name, &image, wished)).await?);
    }
    let mut running = tokio::task::JoinSet::new();
    let room = tasks::Room::of(FAN_OUT);
    for record in records {
        let forge = forge.of(&record.name);
        let room = room.clone();
        running.spawn(async move {
            let _turn = room.turn().await;
            let name = record.name.clone();
            let done = create::bring_up(&forge, record, None, &[])
                .await
                .map(|up| up.changed);
            (name, done)
        });
    }
    tasks::all(running).await
}
