//! `forge cluster publish`

use clap::Args;
use forge::cluster::down::in_order;
use forge::cluster::record::ClusterRecord;
use forge_driver::Result;

use super::super::{Outcome, Session, publish};

/// Reach ports of a cluster's services from this host, on every machine's own address
#[derive(Args)]
pub struct Publish {
    /// The cluster
    name: String,
    /// PORT, or HOSTPORT:PORT
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// Take these ports back instead
    #[arg(long)]
    remove: bool,
}

impl Publish {
    /// Publishes on each machine, and prints where each port is reached.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        session.reader()?;
        let (forge, drawing) = session.worker("cluster-publish")?;
        let done = async {
            let name = self.name.parse()?;
            ClusterRecord::load(&forge.store, &name)?;
            let mut shown = Vec::new();
            for record in in_order(&forge, &name)? {
                let forwards =
                    publish::change(&forge, &record.name, &self.ports, self.remove).await?;
                shown.push((record.name, forwards));
            }
            Ok(shown)
        }
        .await;
        drawing.finish(forge).await;
        publish::show(session, &done?);
        Ok(Outcome::Done)
    }
}
