//! `forge start`, `stop`, `restart`, `kill`

use std::sync::Arc;

use clap::Args;
use forge::machine::{Forge, adopt, power};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::{Error, Fact, Kind, Result, State};

use super::names::{distinct, or_default, records};
use super::outcome::{Done, FAN_OUT, finish};
use super::persona::{self, Persona};
use super::sudo::passwords;
use super::{Outcome, Session};

/// Start machines and wait until their engines answer
#[derive(Args)]
pub struct Start {
    /// The machines [default: default]
    names: Vec<String>,
}

/// Shut machines down cleanly
#[derive(Args)]
pub struct Stop {
    /// The machines [default: default]
    names: Vec<String>,
}

/// Shut machines down cleanly and start them again
#[derive(Args)]
pub struct Restart {
    /// The machines [default: default]
    names: Vec<String>,
}

/// Switch machines off at once, as if the plug were pulled
#[derive(Args)]
pub struct Kill {
    /// The machines [default: default]
    names: Vec<String>,
}

/// What to do with each machine.
#[derive(Clone, Copy)]
pub enum Change {
    /// On.
    Start,
    /// Off, cleanly.
    Stop,
    /// Off, cleanly, and on.
    Restart,
    /// Off, at once.
    Kill,
}

impl Start {
    /// Starts them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "start", Change::Start, or_default(self.names)).await
    }
}

impl Stop {
    /// Stops them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "stop", Change::Stop, or_default(self.names)).await
    }
}

impl Restart {
    /// Restarts them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "restart", Change::Restart, or_default(self.names)).await
    }
}

impl Kill {
    /// Kills them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        change(session, "kill", Change::Kill, or_default(self.names)).await
    }
}

async fn change(
    session: &Session,
    command: &str,
    change: Change,
    names: Vec<String>,
) -> Result<Outcome> {
    // Without a store there are no machines, and none is made.
    let reader = session.reader()?;
    let sudo = match change {
        Change::Start | Change::Restart => passwords(&reader, &names, None).await?,
        // Of hosts that are adopted the power is their owner's.
        Change::Stop | Change::Kill => Arc::default(),
    };
    let (mut forge, drawing) = session.worker(command)?;
    forge.sudo = sudo;
    let done = change_all(&forge, change, &distinct(names)).await;
    drawing.finish(forge).await;
    let mut done = done?;
    if session.persona() == Persona::DockerMachine {
        done = done
            .into_iter()
            .map(|(name, result)| {
                let result = result.and_then(|changed| changing(change, &name, changed));
                (name, result)
            })
            .collect();
    }
    let outcome = finish(session, done)?;
    if let Some(text) = persona::concluded(command) {
        session.say(&text);
    }
    Ok(outcome)
}

/// Nothing to change is an error: docker-machine's users are told so.
fn changing(change: Change, name: &str, changed: bool) -> Result<bool> {
    let already = match change {
        _ if changed => return Ok(true),
        Change::Restart => return Ok(false),
        Change::Start => State::Running,
        Change::Stop | Change::Kill => State::Stopped,
    };
    Err(Error::new(
        Kind::Conflict,
        format!("machine `{name}` is {already} already"),
    )
    .fact(Fact::Already(name.to_owned(), already)))
}

/// Changes the power of many machines at once, under their locks.
///
/// # Errors
/// When a machine does not exist or its lock is not had: nothing was changed then.
pub async fn change_all(forge: &Forge, change: Change, names: &[String]) -> Result<Done<bool>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let records = records(&forge.store, names)?;
    let mut running = tokio::task::JoinSet::new();
    let room = tasks::Room::of(FAN_OUT);
    for record in records {
        let forge = forge.of(&record.name);
        let room = room.clone();
        running.spawn(async move {
            let _turn = room.turn().await;
            let done = match change {
                Change::Start => power::start(&forge, &record).await,
                Change::Stop => power::stop(&forge, &record).await,
                Change::Kill => power::kill(&forge, &record).await,
                Change::Restart if record.adopted.is_some() => {
                    adopt::restart(&forge, &record).await.map(|()| true)
                }
                Change::Restart => match power::stop(&forge, &record).await {
                    Ok(_) => power::start(&forge, &record).await.map(|_| true),
                    Err(error) => Err(error),
                },
            };
            let verb = match change {
                Change::Start => "start",
                Change::Stop => "stop",
                Change::Restart => "restart",
                Change::Kill => "kill",
            };
            let done = done.map_err(|error| {
                error.context(format!("failed to {verb} machine `{}`", record.name))
            });
            (record.name, done)
        });
    }
    tasks::all(running).await
}
