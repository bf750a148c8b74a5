//! `forge upgrade`

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use forge::machine::{Forge, engine, power};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::Result;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::adopt::passwords;
use super::create::conclude;
use super::power::summary;
use super::rm::distinct;
use super::where_is::{or_default, records};
use super::{Outcome, Session};

/// Bring the engines of machines to the newest version that their packages have
///
/// An engine restarts when there was a newer one; containers of machines outside a cluster keep running meanwhile, and
/// the engines of one cluster are done one after another.
#[derive(Args)]
pub struct Upgrade {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Upgrade {
    /// Upgrades them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let names = distinct(or_default(self.names));
        // Without a store there are no machines, and none is made.
        let sudo = passwords(&session.reader()?, &names, None).await?;
        let (mut forge, drawing) = session.worker("upgrade")?;
        forge.sudo = sudo;
        let done = all(&forge, &names).await;
        drawing.finish(forge).await;
        let done = done?;
        if session.json() {
            println!("{}", summary(&done));
        }
        conclude(
            done.into_iter()
                .map(|(name, result)| (name, result.map(|_| ())))
                .collect(),
        )
    }
}

async fn all(forge: &Forge, names: &[String]) -> Result<Vec<(String, Result<bool>)>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let records = records(&forge.store, names)?;
    records.iter().try_for_each(power::whole)?;
    let mut turns: BTreeMap<String, Arc<Mutex<()>>> = BTreeMap::new();
    let mut running = JoinSet::new();
    for record in records {
        let forge = forge.of(&record.name);
        let turn = record
            .member
            .as_ref()
            .map(|member| turns.entry(member.cluster.clone()).or_default().clone());
        running.spawn(async move {
            let _turn = match &turn {
                Some(turn) => Some(turn.lock().await),
                None => None,
            };
            let name = record.name.clone();
            let done = engine::upgrade(&forge, record)
                .await
                .map_err(|error| error.context(format!("failed to upgrade machine `{name}`")));
            (name, done)
        });
    }
    tasks::all(running).await
}
