//! `forge active`

use clap::Args;
use forge::machine::{Record, Stage};
use forge_driver::{Error, Fact, Kind, Result};
use serde_json::json;

use super::wait::WAIT;
use super::{Outcome, Session};

/// Print the machine that DOCKER_HOST leads to
#[derive(Args)]
pub struct Active {
    /// Taken as docker-machine took it: nobody is asked, so there is nothing to wait for
    #[arg(id = "timeout", short = 't', long = "timeout", value_name = "SECONDS", default_value_t = WAIT, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    _timeout: u64,
}

impl Active {
    /// Prints its name, by what is recorded.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let found = match session.existing()? {
            Some(store) if !host.is_empty() => lead_to(&host, Record::all(&store)?),
            _ => Vec::new(),
        };
        // An address that a provider gave to one machine after another is that of the one that the shell means.
        let meant = std::env::var("DOCKER_MACHINE_NAME").unwrap_or_default();
        let active = found
            .iter()
            .find(|name| **name == meant)
            .or(found.first())
            .ok_or_else(|| none(&host))?;
        if session.json() {
            println!("{}", json!({"name": active, "url": host}));
        } else {
            println!("{active}");
        }
        Ok(Outcome::Done)
    }
}

/// The machines whose URL this is.
fn lead_to(host: &str, records: Vec<(String, Result<Record>)>) -> Vec<String> {
    records
        .into_iter()
        .filter_map(|(name, record)| Some((name, record.ok()?)))
        .filter(|(_, record)| record.stage == Stage::Ready && !record.leaving)
        .filter(|(_, record)| record.url().is_ok_and(|url| url == host))
        .map(|(name, _)| name)
        .collect()
}

fn none(host: &str) -> Error {
    let (message, hint) = if host.is_empty() {
        (
            "no machine is active: DOCKER_HOST is not set".to_owned(),
            "`eval $(forge env NAME)` sets it for this shell",
        )
    } else {
        (
            format!("no machine is active: none has DOCKER_HOST, `{host}`, as its URL"),
            "`forge ls` shows the machines and their URLs",
        )
    };
    Error::new(Kind::NotFound, message)
        .hint(hint)
        .fact(Fact::NoActive)
}
