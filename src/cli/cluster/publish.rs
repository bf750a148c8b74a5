//! `forge cluster publish`

use clap::Args;
use forge::cluster::down::{in_order, locked};
use forge::cluster::record::ClusterRecord;
use forge::cluster::spec::ClusterName;
use forge::machine::{Forge, Record, publish as machine};
use forge_driver::{Forward, Result};

use super::super::{Outcome, Session, publish};

/// Reach ports of a cluster's services from this host, on every machine's own address
///
/// A port that is taken on one machine is published on none. Without ports, those that are published are
/// shown.
#[derive(Args)]
pub struct Publish {
    /// The cluster
    name: String,
    /// PORT, or HOSTPORT:PORT
    #[arg(value_name = "PORT")]
    ports: Vec<String>,
    /// Take these ports back instead
    #[arg(long, requires = "ports")]
    remove: bool,
}

impl Publish {
    /// Publishes on each machine, and prints where each port is reached.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let name: ClusterName = self.name.parse()?;
        publish::check(&self.ports, self.remove)?;
        let reader = session.reader()?;
        if self.ports.is_empty() {
            ClusterRecord::load(&reader.store, &name)?;
            let shown: Vec<_> = in_order(&reader, &name)?
                .into_iter()
                .map(|record| (record.name, record.published))
                .collect();
            publish::show(session, &shown);
            return Ok(Outcome::Done);
        }
        let (forge, drawing) = session.worker("cluster-publish")?;
        let done = self.change(&forge, &name).await;
        drawing.finish(forge).await;
        publish::show(session, &done?);
        Ok(Outcome::Done)
    }

    /// On all of the machines, or on none of them.
    async fn change(
        &self,
        forge: &Forge,
        name: &ClusterName,
    ) -> Result<Vec<(String, Vec<Forward>)>> {
        let _locks = locked(forge, name).await?;
        ClusterRecord::load(&forge.store, name)?;
        let mut done: Vec<(Record, Record)> = Vec::new();
        let mut shown = Vec::new();
        for before in in_order(forge, name)? {
            match publish::change_one(forge, &before, &self.ports, self.remove).await {
                Ok((now, forwards)) => {
                    shown.push((before.name.clone(), forwards));
                    done.push((before, now));
                }
                Err(error) => {
                    for (before, now) in done.iter().rev() {
                        // The first error is the one to report; `forge cluster publish NAME` shows the rest.
                        let _ = machine::restore(forge, now, &before.published).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(shown)
    }
}
