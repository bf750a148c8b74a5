//! `forge provision`

use clap::Args;
use forge::machine::{Forge, create, power};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::{Error, Result};
use serde_json::json;

use super::adopt::passwords;
use super::create::conclude;
use super::rm::distinct;
use super::where_is::{or_default, records};
use super::{Outcome, Session};

/// Check machines against what forge makes of them, and mend what differs
#[derive(Args)]
pub struct Provision {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Provision {
    /// Provisions them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let names = distinct(or_default(self.names));
        // Without a store there are no machines, and none is made.
        let sudo = passwords(&session.reader()?, &names, None)?;
        let (mut forge, drawing) = session.worker("provision")?;
        forge.sudo = sudo;
        let done = all(&forge, &names).await;
        drawing.finish(forge).await;
        let done = done?;
        if session.json() {
            let summary = json!({
                "event": "summary",
                "changed": done.iter().map(|(_, changed)| changed.as_ref().map_or(0, |changed| *changed)).sum::<usize>(),
                "machines": done.iter().map(|(name, result)| json!({
                    "name": name, "ok": result.is_ok(), "error": result.as_ref().err().map(Error::line),
                })).collect::<Vec<_>>(),
            });
            println!("{summary}");
        }
        conclude(
            done.into_iter()
                .map(|(name, result)| (name, result.map(|_| ())))
                .collect(),
        )
    }
}

async fn all(forge: &Forge, names: &[String]) -> Result<Vec<(String, Result<usize>)>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let records = records(&forge.store, names)?;
    records.iter().try_for_each(power::whole)?;
    let mut running = tokio::task::JoinSet::new();
    for record in records {
        let forge = forge.of(&record.name);
        running.spawn(async move {
            let name = record.name.clone();
            let peers = forge::cluster::record::peers(&forge.store, &record);
            let done = match peers {
                Ok(peers) => create::bring_up(&forge, record, None, &peers)
                    .await
                    .map(|up| up.changed),
                Err(error) => Err(error),
            };
            (name, done)
        });
    }
    tasks::all(running).await
}
