//! `forge ip`, `forge url`, `forge status`

use clap::Args;
use forge::machine::{Record, power, state};
use forge_driver::Result;
use serde_json::json;

use super::{DEFAULT_MACHINE, Outcome, Session};

/// Print the address of a machine
#[derive(Args)]
pub struct Ip {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Ip {
    /// Prints one address a line.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let mut found = Vec::new();
        for name in or_default(self.names) {
            let record = Record::load(&forge.store, &name)?;
            let endpoints = record.endpoints()?;
            found.push((name, endpoints, record.published));
        }
        if session.json() {
            let list: Vec<_> = found
                .iter()
                .map(|(name, endpoints, published)| {
                    json!({"name": name, "ip": endpoints.ssh.ip(), "ssh": endpoints.ssh, "engine": endpoints.engine,
                        "cluster": endpoints.cluster, "published": published})
                })
                .collect();
            println!("{}", serde_json::Value::Array(list));
        } else {
            for (_, endpoints, _) in found {
                println!("{}", endpoints.ssh.ip());
            }
        }
        Ok(Outcome::Done)
    }
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
        let mut urls = Vec::new();
        for name in or_default(self.names) {
            let record = Record::load(&forge.store, &name)?;
            urls.push(json!({"name": name, "url": running_url(&forge, &record).await?}));
        }
        if session.json() {
            println!("{}", serde_json::Value::Array(urls));
        } else {
            for url in urls {
                println!("{}", url["url"].as_str().unwrap_or_default());
            }
        }
        Ok(Outcome::Done)
    }
}

/// The URL of the engine of a machine that is on.
///
/// # Errors
/// When the machine was never finished or is off.
pub async fn running_url(forge: &forge::machine::Forge, record: &Record) -> Result<String> {
    power::whole(record)?;
    let driver = forge.driver(record)?;
    let state = state(&*driver, record).await?;
    if state != forge_driver::State::Running {
        return Err(forge_driver::Error::new(
            forge_driver::Kind::Unavailable,
            format!("machine `{}` is not running: it is {state}", record.name),
        )
        .hint(format!("`forge start {}` starts it", record.name))
        .fact(forge_driver::Fact::NotRunning(record.name.clone())));
    }
    Ok(format!("tcp://{}", record.endpoints()?.engine))
}

/// Print the power state of a machine
#[derive(Args)]
pub struct Status {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Status {
    /// Prints one state a line.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let mut states = Vec::new();
        for name in or_default(self.names) {
            let record = Record::load(&forge.store, &name)?;
            let driver = forge.driver(&record)?;
            let state = state(&*driver, &record).await?;
            states.push(json!({"name": name, "state": state.to_string(), "stage": record.stage}));
        }
        if session.json() {
            println!("{}", serde_json::Value::Array(states));
        } else {
            for state in states {
                println!("{}", state["state"].as_str().unwrap_or_default());
            }
        }
        Ok(Outcome::Done)
    }
}

/// The names given, or the machine `default`.
pub fn or_default(names: Vec<String>) -> Vec<String> {
    if names.is_empty() {
        vec![DEFAULT_MACHINE.to_owned()]
    } else {
        names
    }
}
