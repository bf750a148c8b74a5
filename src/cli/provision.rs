//! `forge provision`

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use forge::engine::settings;
use forge::engine_options::EngineOptions;
use forge::machine::{Forge, Record, create, power};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::Result;
use tokio::sync::Mutex;

use super::names::{distinct, or_default, records};
use super::outcome::{Done, FAN_OUT, finish};
use super::sudo::passwords;
use super::{Outcome, Session, engine};

/// Check machines against what forge makes of them, and mend what differs
#[derive(Args)]
pub struct Provision {
    /// The machines [default: default]
    names: Vec<String>,
    #[command(flatten)]
    engine: engine::Options,
    /// Take back what earlier commands told the engine; what is given here besides stays
    #[arg(long, help_heading = "Engine")]
    engine_reset: bool,
}

/// What is changed of each machine's wishes.
struct Change {
    engine: EngineOptions,
    sans: Vec<String>,
    reset: bool,
}

impl Change {
    /// The record with what is wished now, and whether that is anything else than before.
    fn applied(&self, mut record: Record) -> Result<(Record, bool)> {
        let before = if self.reset {
            EngineOptions {
                install: record.engine.install.clone(),
                ..EngineOptions::default()
            }
        } else {
            record.engine.clone()
        };
        let wished = before.with(&self.engine);
        settings::check(&wished)?;
        let new: Vec<String> = self
            .sans
            .iter()
            .filter(|name| !record.sans.contains(name))
            .cloned()
            .collect();
        let changes = wished != record.engine || !new.is_empty();
        if changes {
            record.wish(wished);
            record.sans.extend(new);
        }
        Ok((record, changes))
    }
}

impl Provision {
    /// Provisions them all at once.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let (engine, sans) = self.engine.said(matches).wished()?;
        let change = Change {
            engine,
            sans,
            reset: self.engine_reset,
        };
        let names = distinct(or_default(self.names));
        // Without a store there are no machines, and none is made.
        let sudo = passwords(&session.reader()?, &names, None).await?;
        let (mut forge, drawing) = session.worker("provision")?;
        forge.sudo = sudo;
        let done = all(&forge, &names, &change).await;
        drawing.finish(forge).await;
        let done = done?;
        finish(session, done)
    }
}

async fn all(forge: &Forge, names: &[String], change: &Change) -> Result<Done<usize>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let records = records(&forge.store, names)?;
    records.iter().try_for_each(power::whole)?;
    // What one machine refuses is wished of none.
    let wished = records.into_iter().map(|record| change.applied(record));
    let wished = wished.collect::<Result<Vec<_>>>()?;
    for (record, _) in wished.iter().filter(|(_, changes)| *changes) {
        record.save(&forge.store)?;
    }
    // The engines of one cluster need each other: they are told something new one after another.
    let mut turns: BTreeMap<String, Arc<Mutex<()>>> = BTreeMap::new();
    let mut running = tokio::task::JoinSet::new();
    let room = tasks::Room::of(FAN_OUT);
    for (record, _) in wished {
        let forge = forge.of(&record.name);
        let room = room.clone();
        let turn = record
            .member
            .as_ref()
            .filter(|_| !record.engine_past.is_empty())
            .map(|member| turns.entry(member.cluster.clone()).or_default().clone());
        running.spawn(async move {
            let _turn = match &turn {
                Some(turn) => Some(turn.lock().await),
                None => None,
            };
            let _room = room.turn().await;
            let name = record.name.clone();
            (name, one(&forge, record).await)
        });
    }
    tasks::all(running).await
}

async fn one(forge: &Forge, record: Record) -> Result<usize> {
    let peers = forge::cluster::record::peers(&forge.store, &record)?;
    let up = create::bring_up(forge, record, None, &peers).await?;
    Ok(up.changed)
}
