//! `forge cluster down`

use clap::Args;
use forge::cluster::down;
use forge::cluster::record::{ClusterRecord, members};
use forge_driver::{Kind, Result};
use serde_json::json;

use super::super::rm::confirm;
use super::super::{Outcome, Session, report};
use super::Named;

/// Remove a cluster with all of its machines and their disks
#[derive(Args)]
pub struct Down {
    #[command(flatten)]
    named: Named,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Do not ask, and remove also a cluster whose record is damaged
    #[arg(short, long)]
    force: bool,
}

impl Down {
    /// Asks, then removes.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let name = self.named.parse()?;
        let reader = session.reader()?;
        match ClusterRecord::load(&reader.store, &name) {
            Err(error) if self.force && error.kind() == Kind::Corrupt => {}
            record => drop(record?),
        }
        if !self.yes && !self.force {
            let count = members(&reader.store, &name)?.len();
            confirm(&format!(
                "Remove cluster `{name}`, its {count} machines and all data on their disks?"
            ))?;
        }
        let (forge, drawing) = session.worker("cluster-down")?;
        let done = down::down(&forge, &name, self.force).await;
        drawing.finish(forge).await;
        let removed = done?;
        if session.json() {
            println!(
                "{}",
                json!({"event": "summary", "cluster": name, "changed": removed})
            );
        } else {
            report::note(&format!(
                "cluster `{name}` is gone: {removed} machines removed"
            ));
        }
        Ok(Outcome::Done)
    }
}
