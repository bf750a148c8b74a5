//! `forge upgrade`

use clap::Args;
use forge::cluster;
use forge::machine::{Forge, Record, engine, power};
use forge_driver::Result;

use super::names::{distinct, or_default, records};
use super::outcome::finish;
use super::sudo::passwords;
use super::turns::{self, Clusters, Done, side_by_side};
use super::{Outcome, Session};

/// Bring the engines of machines to the newest version that their packages have
///
/// An engine restarts when there was a newer one; containers of machines outside a cluster keep running meanwhile. The
/// engines of a cluster restart one after another: workers, managers, the one that leads last; each node is drained first
/// where its tasks have somewhere to go. The same command goes on with what was cut off.
#[derive(Args)]
pub struct Upgrade {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Upgrade {
    /// Upgrades them.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let names = distinct(or_default(self.names));
        // Without a store there are no machines, and none is made.
        let sudo = passwords(&session.reader()?, &names, None).await?;
        let (mut forge, drawing) = session.worker("upgrade")?;
        forge.sudo = sudo;
        let done = all(&forge, &names).await;
        drawing.finish(forge).await;
        let done = done?;
        finish(session, done)
    }
}

async fn all(forge: &Forge, names: &[String]) -> Result<Done> {
    let mut alone = Vec::new();
    let mut clusters = Clusters::new();
    for record in records(&forge.store, names)? {
        power::whole(&record)?;
        match &record.member {
            Some(member) => {
                let members = clusters.entry(member.cluster.parse()?).or_default();
                members.insert(record.name);
            }
            None => alone.push(record.name),
        }
    }
    let mut done = side_by_side(forge, &alone, one).await?;
    for (cluster, members) in clusters {
        let upgraded = cluster::renew::upgrade(forge, &cluster, &members).await;
        let failed = format!("failed to upgrade the engines of cluster `{cluster}`");
        turns::add(&mut done, upgraded, members, &failed);
    }
    Ok(done)
}

async fn one(forge: Forge, name: String) -> Result<bool> {
    let record = Record::load(&forge.store, &name)?;
    engine::upgrade(&forge, record)
        .await
        .map_err(|error| error.context(format!("failed to upgrade machine `{name}`")))
}
