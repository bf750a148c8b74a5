//! `forge ip`, `forge url`, `forge status`

use std::time::Duration;

use clap::{ArgMatches, Args};
use forge::machine::survey::{Condition, Depth, Heard, survey};
use forge::machine::{Forge, Record, live, relocate};
use forge_driver::{Error, Fact, Kind, Result, State};
use futures_util::StreamExt;
use serde_json::json;

use super::names::{or_default, records};
use super::outcome::{Done, FAN_OUT, conclude};
use super::persona::Persona;
use super::sudo::certified;
use super::wait::{WAIT, Wait};
use super::{Outcome, Session, report};

/// Print the address of a machine
#[derive(Args)]
pub struct Ip {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Ip {
    /// Prints one address a line.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let mut records = records(&forge.store, &or_default(self.names))?;
        // docker-machine had no address for a machine that is off. One that cannot be asked has that which is recorded.
        let off: Vec<bool> = match session.persona() {
            Persona::Forge => {
                records = futures_util::stream::iter(records)
                    .map(|record| relocate::knocked(&forge, record))
                    .buffered(FAN_OUT)
                    .collect()
                    .await;
                vec![false; records.len()]
            }
            Persona::DockerMachine => {
                let patience = Duration::from_secs(WAIT);
                let heard = survey(&forge, &mut records, Depth::States, patience).await;
                let heard = heard.iter().zip(&records);
                heard
                    .map(|(heard, record)| {
                        is_off(heard) && (!record.is_url_alone() || record.is_nowhere())
                    })
                    .collect()
            }
        };
        let found: Vec<Result<_>> = records
            .iter()
            .zip(off)
            .map(|(record, off)| {
                if off {
                    return Err(not_running(record));
                }
                Ok((record, record.endpoints()?))
            })
            .collect();
        if session.json() {
            let list: Vec<_> = found
                .iter()
                .flatten()
                .map(|(record, endpoints)| {
                    json!({"name": record.name, "ip": endpoints.ssh.ip(), "ssh": endpoints.ssh, "engine": endpoints.engine,
                        "cluster": endpoints.cluster, "published": record.published})
                })
                .collect();
            println!("{}", serde_json::Value::Array(list));
        } else {
            for (_, endpoints) in found.iter().flatten() {
                println!("{}", endpoints.ssh.ip());
            }
        }
        conclude(each(&records, found))
    }
}

/// Whether its provider says so.
fn is_off(heard: &Heard) -> bool {
    matches!(heard.condition, Condition::Told(state) if state != State::Running && state != State::Error)
}

fn not_running(record: &Record) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("machine `{}` is not running", record.name),
    )
    .hint(format!("`forge start {}` starts it", record.name))
    .fact(Fact::NotRunning(record.name.clone()))
}

/// What came of each of these machines, with its name.
fn each<T>(records: &[Record], results: Vec<Result<T>>) -> Done<T> {
    let names = records.iter().map(|record| record.name.clone());
    names.zip(results).collect()
}

/// Print the URL of a machine's engine
#[derive(Args)]
pub struct Url {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Url {
    /// Prints one URL a line; a machine that is off has none.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let records = records(&forge.store, &or_default(self.names))?;
        let urls: Vec<Result<String>> = futures_util::stream::iter(&records)
            .map(|record| running_url(&forge, record))
            .buffered(FAN_OUT)
            .collect()
            .await;
        let found = records.iter().zip(&urls);
        let found = found.filter_map(|(record, url)| Some((&record.name, url.as_ref().ok()?)));
        if session.json() {
            let list = found.map(|(name, url)| json!({"name": name, "url": url}));
            println!("{}", serde_json::Value::Array(list.collect()));
        } else {
            for (_, url) in found {
                println!("{url}");
            }
        }
        conclude(each(&records, urls))
    }
}

/// The URL of the engine of a machine that is on.
///
/// # Errors
/// When the machine was never finished or is off.
async fn running_url(forge: &Forge, record: &Record) -> Result<String> {
    if record.is_url_alone() {
        return record.url();
    }
    let record = live::running(forge, record).await?;
    let url = record.url()?;
    match certified(forge, record).await {
        Err(error) if error.kind() == Kind::Interrupted => return Err(error),
        Err(error) => report::note(&format!("warning: {}", error.line())),
        Ok(_) => {}
    }
    Ok(url)
}

/// Print the power state of a machine
///
/// Running, Paused, Saved, Stopped, Stopping, Starting or Absent; Error where its provider cannot tell, Timeout where it
/// does not answer in time.
#[derive(Args)]
pub struct Status {
    /// The machines [default: default]
    names: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Status {
    /// Prints one state a line; what a provider did not tell is an error besides.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let forge = session.reader()?;
        let mut records = records(&forge.store, &or_default(self.names))?;
        let patience = self.wait.patience(session, matches, "status")?;
        let heard = survey(&forge, &mut records, Depth::States, patience).await;
        let mut list = Vec::new();
        let mut results = Vec::new();
        for (record, heard) in records.iter().zip(heard) {
            let state = session.persona().state(word(heard.condition));
            if !session.json() {
                println!("{state}");
            }
            list.push(json!({"name": record.name, "state": state, "stage": record.stage}));
            results.push((record.name.clone(), told(record, &heard, patience)));
        }
        if session.json() {
            println!("{}", serde_json::Value::Array(list));
        }
        if session.persona() == Persona::Forge {
            return conclude(results);
        }
        // There the word was the answer, whatever it said.
        for (name, result) in results {
            if let Err(error) = result {
                let why = error.causes().join(": ");
                report::note(&format!("error getting state for host {name}: {why}"));
            }
        }
        Ok(Outcome::Done)
    }
}

/// A provider that says nothing of a machine has none.
fn word(condition: Condition) -> Condition {
    match condition {
        Condition::Unknown => Condition::Told(State::Absent),
        told => told,
    }
}

/// An error where the provider could not say how the machine is.
fn told(record: &Record, heard: &Heard, patience: Duration) -> Result<()> {
    let why = match (&heard.trouble, heard.condition) {
        (Some(trouble), _) => trouble.clone(),
        (None, Condition::Timeout) => {
            format!(
                "its provider did not answer within {} s",
                patience.as_secs()
            )
        }
        (None, _) => return Ok(()),
    };
    Err(Error::new(
        Kind::Unavailable,
        format!("the state of machine `{}` is not known", record.name),
    )
    .because(why)
    .hint("`forge doctor` looks for what is missing"))
}
