//! `forge cluster start`, `stop`, `restart`

use clap::Args;
use forge::cluster::down;
use forge::machine::Forge;
use forge_driver::Result;
use serde_json::json;

use super::super::{Outcome, Session, report};
use super::Named;

/// Start all machines of a cluster and wait until its quorum is back
#[derive(Args)]
pub struct Start {
    #[command(flatten)]
    named: Named,
}

/// Shut all machines of a cluster down: workers first
#[derive(Args)]
pub struct Stop {
    #[command(flatten)]
    named: Named,
}

/// Stop and start all machines of a cluster
#[derive(Args)]
pub struct Restart {
    #[command(flatten)]
    named: Named,
}

impl Start {
    /// Starts.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "cluster-start", &self.named, false, true).await
    }
}

impl Stop {
    /// Stops.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "cluster-stop", &self.named, true, false).await
    }
}

impl Restart {
    /// Stops and starts.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "cluster-restart", &self.named, true, true).await
    }
}

async fn change(
    session: &Session,
    command: &str,
    named: &Named,
    off: bool,
    on: bool,
) -> Result<Outcome> {
    let name = named.parse()?;
    session.reader()?;
    let (forge, drawing) = session.worker(command)?;
    let done = turn(&forge, &name, off, on).await;
    drawing.finish(forge).await;
    let changed = done?;
    if session.json() {
        println!(
            "{}",
            json!({"event": "summary", "cluster": name, "changed": changed})
        );
    } else {
        report::note(&format!(
            "cluster `{name}` is {}{}",
            if on { "whole, its quorum holds" } else { "off" },
            if changed == 0 {
                " (nothing to change)"
            } else {
                ""
            }
        ));
    }
    Ok(Outcome::Done)
}

async fn turn(
    forge: &Forge,
    name: &forge::cluster::spec::ClusterName,
    off: bool,
    on: bool,
) -> Result<usize> {
    let mut changed = 0;
    if off {
        changed += down::stop(forge, name).await?;
    }
    if on {
        changed += down::start(forge, name).await?.0;
    }
    Ok(changed)
}
