//! `forge use`

use clap::Args;
use forge::context::{self, Docker};
use forge::machine::{Forge, Record, power};
use forge::store::lock::acquire_machines;
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::led::direct;
use super::{DEFAULT_MACHINE, Outcome, Session, report};

/// Lead `docker` to a machine for good: make a context for it, and choose that
///
/// The context is written where docker looks for it, $DOCKER_CONFIG or ~/.docker. It follows when the machine's certificates or
/// address change, and goes with the machine. For one shell alone: `eval $(forge env --context NAME)`.
#[derive(Args)]
pub struct Use {
    /// The machine [default: default]
    #[arg(conflicts_with = "none")]
    name: Option<String>,
    /// Choose no context: docker then talks to this host
    #[arg(long)]
    none: bool,
}

impl Use {
    /// Writes the context and chooses it.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let docker = docker()?;
        if self.none {
            docker.choose(None)?;
            tell(session, None);
            return Ok(Outcome::Done);
        }
        let name = self.name.unwrap_or_else(|| DEFAULT_MACHINE.to_owned());
        let context = made(session, &docker, &name, "use").await?;
        docker.choose(Some(&context))?;
        tell(session, Some(&context));
        Ok(Outcome::Done)
    }
}

/// docker's folder.
///
/// # Errors
/// When there is no home to look for it in.
pub fn docker() -> Result<Docker> {
    Docker::of_user().ok_or_else(|| {
        Error::new(
            Kind::Usage,
            "there is no HOME to look for docker's configuration in",
        )
        .hint("set DOCKER_CONFIG")
    })
}

/// Makes the context of a machine, or brings it up to date, for `command`. Its name.
///
/// # Errors
/// When the machine is not there or not finished, or the context cannot be written.
pub async fn made(
    session: &Session,
    docker: &Docker,
    machine: &str,
    command: &str,
) -> Result<String> {
    Record::load(&session.reader()?.store, machine)?;
    let (forge, drawing) = session.worker(command)?;
    let done = write(&forge, docker, machine).await;
    drawing.finish(forge).await;
    done.map(|()| context::name(machine))
}

async fn write(forge: &Forge, docker: &Docker, machine: &str) -> Result<()> {
    let names = [machine.to_owned()];
    let _locks = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
    let record = Record::load(&forge.store, machine)?;
    power::whole(&record)?;
    direct(&record)?;
    docker.write(&forge.store, &record).map(drop)
}

/// Says which context is chosen, and what keeps docker from going by it.
fn tell(session: &Session, context: Option<&str>) {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let stronger = ["DOCKER_HOST", "DOCKER_CONTEXT"].into_iter().find(set);
    if session.json() {
        println!("{}", json!({"context": context, "overridden_by": stronger}));
    } else {
        match context {
            Some(context) => report::note(&format!("docker's context is `{context}` now")),
            None => report::note("docker has no context now: it talks to this host"),
        }
    }
    if let Some(name) = stronger {
        let unset = if name == "DOCKER_HOST" {
            "`eval $(forge env -u)` takes it away"
        } else {
            "`unset DOCKER_CONTEXT` takes it away"
        };
        report::note(&format!(
            "warning: {name} is set and counts before any chosen context: {unset}"
        ));
    }
}
