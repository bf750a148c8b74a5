//! `forge cluster down`

use clap::Args;
use forge::cluster::down;
use forge::cluster::record::{ClusterRecord, members};
use forge::cluster::spec::ClusterName;
use forge_driver::{Kind, Result};
use serde_json::json;

use super::super::ask::confirm;
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
    /// Do not ask, succeed for a cluster that does not exist, and remove also one whose record is damaged
    #[arg(short, long)]
    force: bool,
}

impl Down {
    /// Asks, then removes.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let name = self.named.parse()?;
        if self.force && session.existing()?.is_none() {
            return Ok(nothing(session, &name));
        }
        let reader = session.reader()?;
        match ClusterRecord::load(&reader.store, &name) {
            Err(error) if self.force && error.kind() == Kind::NotFound => {
                return Ok(nothing(session, &name));
            }
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
        tell(session, &name, done?);
        Ok(Outcome::Done)
    }
}

/// There is no such cluster, and that is as good.
fn nothing(session: &Session, name: &ClusterName) -> Outcome {
    if session.json() {
        tell(session, name, 0);
    }
    Outcome::Done
}

fn tell(session: &Session, name: &ClusterName, removed: usize) {
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
}
