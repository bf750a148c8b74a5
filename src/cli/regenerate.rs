//! `forge regenerate-certs`

use clap::Args;
use forge::ca::{self, rotation};
use forge::cluster;
use forge::machine::renew::Keep;
use forge::machine::{Forge, Record, Stage, live, renew};
use forge::store::Store;
use forge_driver::{Error, Kind, Result};
use futures_util::StreamExt;
use serde_json::json;

use super::ask::confirm;
use super::names::{distinct, or_default};
use super::outcome::{FAN_OUT, conclude, finish};
use super::persona::Persona;
use super::sudo::{passwords, passwords_there};
use super::turns::{self, Clusters, Done, side_by_side};
use super::{Outcome, Session};

/// Make the TLS certificates of machines anew
///
/// Containers of machines outside a cluster keep running. Those of a cluster are done one after another: workers, managers,
/// the one that leads last; each is drained first where its tasks have somewhere to go, and the next has its turn when they
/// run. A machine that is off keeps its certificate and is listed; the others are done. The same command goes on with what
/// was cut off.
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
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
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
        if self.dry_run {
            return self.show(session, &reader, &names).await;
        }
        if !self.force && !names.is_empty() && !agreed(session, &names)? {
            return Ok(Outcome::Done);
        }
        let sudo = if self.all {
            passwords_there(&reader, &names).await?
        } else {
            passwords(&reader, &names, None).await?
        };
        session.say("Regenerating TLS certificates");
        let (mut forge, drawing) = session.worker("regenerate-certs")?;
        forge.sudo = sudo;
        let done = self.renew(&forge, names).await;
        drawing.finish(forge).await;
        let done = done?;
        finish(session, done)
    }

    /// Whether a new CA is to be made.
    fn rotates(&self, store: &Store) -> Result<bool> {
        Ok(self.ca || (self.all && ca::is_ending(store)?))
    }

    async fn renew(&self, forge: &Forge, names: Vec<String>) -> Result<Done> {
        let (store, patience, events) = (&forge.store, forge.patience, &forge.events);
        // A machine that is not there ends it before anything is done.
        let sorted = Sorted::of(forge, &names, self.all)?;
        let begun = rotation::under_way(store);
        if self.rotates(store)? {
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
        let renewed = machines(forge, sorted, done).await?;
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

    /// Says what would be done.
    async fn show(&self, session: &Session, forge: &Forge, names: &[String]) -> Result<Outcome> {
        let sorted = Sorted::of(forge, names, self.all)?;
        let new_ca = self.rotates(&forge.store)?;
        // Each of them, and why it keeps its certificate.
        let machines: Vec<(String, Option<String>)> = futures_util::stream::iter(sorted.alone)
            .map(|name| async move {
                let why = match Record::load(&forge.store, &name) {
                    Ok(record) => live::running(forge, &record).await.err(),
                    Err(error) => Some(error),
                };
                (name, why.map(|error| error.line()))
            })
            .buffered(FAN_OUT)
            .collect()
            .await;
        let mut turns = Vec::new();
        for (cluster, members) in sorted.clusters {
            turns.push((
                cluster.to_string(),
                cluster::renew::dry_run(forge, &cluster, &members).await?,
            ));
        }
        if session.json() {
            let machines: Vec<_> = machines
                .iter()
                .map(|(name, kept)| json!({"name": name, "kept": kept}))
                .collect();
            let clusters: Vec<_> = turns
                .iter()
                .map(|(name, turns)| json!({"name": name, "turns": turns}))
                .collect();
            println!(
                "{}",
                json!({"new_ca": new_ca, "new_client_pair": self.client_certs, "machines": machines, "clusters": clusters})
            );
            return conclude(sorted.hopeless);
        }
        if new_ca {
            println!(
                "a new CA is made; the earlier one counts until every machine has a certificate of the new one"
            );
        }
        if self.client_certs {
            println!("the pair that clients show is made anew; machines accept the earlier one on");
        }
        for (name, kept) in machines {
            match kept {
                None => println!("{name}: its engine restarts; its containers keep running"),
                Some(why) => println!("{name}: keeps its certificate: {why}"),
            }
        }
        for (name, turns) in turns {
            println!("cluster {name}, one machine after another:");
            for turn in turns {
                println!("  {turn}");
            }
        }
        conclude(sorted.hopeless)
    }
}

/// Asks, in the words of the name that forge was started by.
fn agreed(session: &Session, names: &[String]) -> Result<bool> {
    if session.persona() == Persona::DockerMachine && !session.json() {
        return session
            .persona()
            .ask("Regenerate TLS machine certs?  Warning: this is irreversible.")?
            .ok_or_else(|| Error::new(Kind::Failed, "the question was not answered"));
    }
    confirm(&format!(
        "Make the certificates of {} anew?",
        names.join(", ")
    ))
    .map(|()| true)
}

/// Each machine, as many at once as there is room for; those of clusters after them, one after another. What each came to:
/// whether it was changed.
async fn machines(forge: &Forge, sorted: Sorted, keep: Keep) -> Result<Done> {
    let Sorted {
        alone,
        clusters,
        hopeless,
    } = sorted;
    let mut done = hopeless;
    done.extend(side_by_side(forge, &alone, |forge, name| one(forge, name, keep)).await?);
    for (cluster, members) in clusters {
        let renewed = cluster::renew::renew(forge, &cluster, &members, keep).await;
        let failed = format!("failed to renew the certificates of cluster `{cluster}`");
        turns::add(&mut done, renewed, members, &failed);
    }
    Ok(done)
}

/// Machines, by whether they are nodes of a cluster.
struct Sorted {
    alone: Vec<String>,
    clusters: Clusters,
    /// One that cannot be done, since it cannot be read or has no certificate, keeps no other from being done.
    hopeless: Done,
}

impl Sorted {
    fn of(forge: &Forge, names: &[String], all: bool) -> Result<Self> {
        let mut sorted = Self {
            alone: Vec::new(),
            clusters: Clusters::new(),
            hopeless: Vec::new(),
        };
        for name in names {
            match Record::load(&forge.store, name) {
                Ok(record)
                    if record.stage == Stage::Ready
                        && (record.tls.is_none() && record.imported.is_none()
                            || record.ssh.user.is_empty()) =>
                {
                    if !all {
                        sorted.hopeless.push((name.clone(), Err(not_ours(name))));
                    }
                }
                Ok(record) => match record.member {
                    Some(member) => {
                        let members = sorted.clusters.entry(member.cluster.parse()?);
                        members.or_default().insert(name.clone());
                    }
                    None => sorted.alone.push(name.clone()),
                },
                Err(error) if error.kind() == Kind::NotFound => return Err(error),
                Err(error) => sorted.hopeless.push((name.clone(), Err(error))),
            }
        }
        Ok(sorted)
    }
}

/// Of all machines it is passed over; by its name it was meant.
fn not_ours(name: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!("the engine of machine `{name}` has no certificate of this store"),
    )
    .hint("it is known by its URL alone: what it shows, and whom it lets in, is decided there")
}

async fn one(forge: Forge, name: String, keep: Keep) -> Result<bool> {
    let record = Record::load(&forge.store, &name)?;
    let record = live::running(&forge, &record).await.map_err(|error| {
        error.context(format!("failed to make the certificate of `{name}` anew"))
    })?;
    renew::machine(&forge, record, None, keep).await
}
