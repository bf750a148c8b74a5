//! `forge regenerate-certs`

use std::sync::Arc;

use clap::Args;
use forge::ca::{self, rotation};
use forge::cluster;
use forge::machine::{Forge, Record, create, live, renew};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::{Error, Kind, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::create::{FAN_OUT, conclude};
use super::persona::Persona;
use super::power::summary;
use super::rm::{confirm, distinct};
use super::where_is::or_default;
use super::{Outcome, Session};

/// Make the TLS certificates of machines anew
///
/// Containers of machines outside a cluster keep running. A machine that is off keeps its certificate and is listed; the
/// others are done. The same command goes on with what was cut off.
#[derive(Args)]
pub struct RegenerateCerts {
    /// The machines [default: default]
    #[arg(conflicts_with = "all")]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long, visible_alias = "yes", visible_short_alias = 'y')]
    force: bool,
    /// Make the pair that clients show anew, too; machines accept the earlier one on
    #[arg(long)]
    client_certs: bool,
    /// All machines; a CA that ends within a year gives way to a new one
    #[arg(long)]
    all: bool,
    /// With `--all`: make a new CA, too; what shows a certificate of the earlier one is let in no more
    #[arg(long, requires = "all", conflicts_with = "names")]
    ca: bool,
}

impl RegenerateCerts {
    /// Makes them anew, on all machines at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        // Without a store there are no machines, and none is made.
        let reader = session.reader()?;
        let names = if self.all {
            Record::all(&reader.store)?
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        } else {
            distinct(or_default(self.names.clone()))
        };
        if !self.force && !agreed(session, &names)? {
            return Ok(Outcome::Done);
        }
        session.say("Regenerating TLS certificates");
        let (forge, drawing) = session.worker("regenerate-certs")?;
        let done = self.renew(&forge, names).await;
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

    async fn renew(
        &self,
        forge: &Forge,
        names: Vec<String>,
    ) -> Result<Vec<(String, Result<bool>)>> {
        let (store, patience, events) = (&forge.store, forge.patience, &forge.events);
        let begun = rotation::under_way(store);
        if self.ca || (self.all && ca::ensure(store, patience, events).await?.is_ending()?) {
            rotation::begin(store, patience, events).await?;
        }
        if self.client_certs {
            ca::renew_client(store, patience, events).await?;
        }
        // What a rotation that was cut off has done is done.
        let done = if self.ca && begun {
            Keep::OfTheNewAuthority
        } else {
            Keep::Nothing
        };
        let renewed = machines(forge, &names, done).await?;
        let waiting = rotation::finish(store, patience, events).await?;
        if !waiting.is_empty() {
            events
                .warning(format!(
                    "the earlier CA stays until these machines have certificates of the new one: {}; `forge regenerate-certs --all --ca` goes on",
                    waiting.join(", ")
                ))
                .await;
        }
        Ok(renewed)
    }
}

/// Asks, in the words of the name that forge was started by.
fn agreed(session: &Session, names: &[String]) -> Result<bool> {
    if session.persona() == Persona::DockerMachine && !session.json() {
        return session
            .persona()
            .ask("Regenerate TLS machine certs?  Warning: this is irreversible.")
            .ok_or_else(|| Error::new(Kind::Failed, "the question was not answered"));
    }
    confirm(&format!(
        "Make the certificates of {} anew?",
        names.join(", ")
    ))
    .map(|()| true)
}

/// Which certificates are left as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    OfTheNewAuthority,
}

/// Each machine, as many at once as there is room for, those of a cluster one after another: their engines go down for a
/// moment. What each came to: whether it was changed.
async fn machines(
    forge: &Forge,
    names: &[String],
    keep: Keep,
) -> Result<Vec<(String, Result<bool>)>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let room = Arc::new(Semaphore::new(FAN_OUT));
    let turn = Arc::new(Semaphore::new(1));
    let mut running = JoinSet::new();
    for name in names {
        let forge = forge.of(name);
        let record = match Record::load(&forge.store, name) {
            Ok(record) => record,
            // One that cannot be read keeps no other from being done.
            Err(error) if error.kind() != Kind::NotFound => {
                let name = name.clone();
                running.spawn(async move { (name, Err(error)) });
                continue;
            }
            Err(error) => return Err(error),
        };
        let room = if record.member.is_some() {
            &turn
        } else {
            &room
        }
        .clone();
        running.spawn(async move {
            // The semaphore is never closed; without a permit the work would only start sooner.
            let _permit = room.acquire().await;
            let name = record.name.clone();
            let done = one(&forge, record, keep).await.map_err(|error| {
                error.context(format!("failed to make the certificate of `{name}` anew"))
            });
            (name, done)
        });
    }
    tasks::all(running).await
}

async fn one(forge: &Forge, record: Record, keep: Keep) -> Result<bool> {
    let record = live::running(forge, &record).await?;
    let authority = ca::ensure(&forge.store, forge.patience, &forge.events).await?;
    let on_it = record
        .tls
        .as_ref()
        .is_some_and(|tls| tls.authority == authority.fingerprint());
    let peers = cluster::record::peers(&forge.store, &record)?;
    let record = if keep == Keep::OfTheNewAuthority && on_it {
        record
    } else {
        renew::begin(forge, record, &authority)?
    };
    let up = create::bring_up(forge, record, None, &peers).await?;
    Ok(up.changed > 0)
}
