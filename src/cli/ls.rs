//! `forge ls`

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use forge::machine::{Forge, Record, Stage};
use forge::registry;
use forge_driver::{Claim, Kind, Result, State};
use serde_json::json;
use tokio::time::timeout;

use super::table::table;
use super::{Outcome, Session};

/// List machines
#[derive(Args)]
pub struct Ls {
    /// Print names only; no provider is asked
    #[arg(short, long)]
    quiet: bool,
}

/// A provider that does not answer within this time does not hold the list up.
const PROVIDER_WAIT: Duration = Duration::from_secs(20);

/// One machine of the list.
struct Row {
    name: String,
    record: Result<Record>,
    state: String,
    /// Why its provider could say nothing of it.
    unknown: Option<String>,
}

impl Ls {
    /// Prints the list.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let Some(store) = session.existing()? else {
            if session.json() {
                println!("[]");
            } else if !self.quiet {
                print!("{}", table(&HEADINGS, &[]));
            }
            return Ok(Outcome::Done);
        };
        let records = Record::all(&store)?;
        if self.quiet {
            for (name, _) in records {
                println!("{name}");
            }
            return Ok(Outcome::Done);
        }
        let forge = session.forge(store, forge::event::Events::silent());
        let rows = rows(&forge, records).await;
        if session.json() {
            let list: Vec<_> = rows.iter().map(as_json).collect();
            println!("{}", serde_json::Value::Array(list));
        } else {
            let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
            print!("{}", table(&HEADINGS, &cells));
        }
        Ok(Outcome::Done)
    }
}

const HEADINGS: [&str; 7] = [
    "NAME", "ACTIVE", "DRIVER", "STATE", "URL", "CLUSTER", "ERRORS",
];

/// Asks each driver once for all of its machines.
async fn rows(forge: &Forge, records: Vec<(String, Result<Record>)>) -> Vec<Row> {
    let mut by_driver: BTreeMap<String, Vec<(Claim, serde_json::Value)>> = BTreeMap::new();
    for (_, record) in &records {
        if let Ok(record) = record {
            by_driver
                .entry(record.driver.clone())
                .or_default()
                .push((record.claim, record.config.clone()));
        }
    }
    let mut states: BTreeMap<Claim, (String, Option<String>)> = BTreeMap::new();
    for (id, machines) in by_driver {
        let claims: Vec<Claim> = machines.iter().map(|(claim, _)| *claim).collect();
        let answer = async {
            let driver = registry::open(forge, &id, &machines[0].1)?;
            driver.observe(&claims).await
        };
        match timeout(PROVIDER_WAIT, answer).await {
            Ok(Ok(seen)) => states.extend(
                seen.into_iter()
                    .map(|seen| (seen.claim, (seen.state.to_string(), seen.trouble))),
            ),
            Ok(Err(error)) => states.extend(
                claims
                    .iter()
                    .map(|claim| (*claim, ("Error".to_owned(), Some(error.line())))),
            ),
            Err(_) => states.extend(
                claims
                    .iter()
                    .map(|claim| (*claim, ("Timeout".to_owned(), None))),
            ),
        }
    }
    records
        .into_iter()
        .map(|(name, record)| {
            let seen = record
                .as_ref()
                .ok()
                .and_then(|record| states.get(&record.claim).cloned());
            let (state, unknown) = seen.unwrap_or_else(|| ("Unknown".to_owned(), None));
            Row {
                name,
                record,
                state,
                unknown,
            }
        })
        .collect()
}

/// What keeps a machine from being used, in a few words.
fn trouble(row: &Row) -> String {
    match &row.record {
        Err(error) if error.kind() == Kind::Newer => "made by a newer forge".to_owned(),
        Err(error) => error.message().to_owned(),
        Ok(record) if record.leaving => {
            format!("being removed: `forge rm {}` goes on", record.name)
        }
        Ok(record) if record.stage != Stage::Ready => match &record.member {
            Some(member) => format!(
                "{}: `forge cluster up {}` goes on",
                record.stage, member.cluster
            ),
            None => format!("{}: `forge create {}` goes on", record.stage, record.name),
        },
        Ok(_) if row.unknown.is_some() => row.unknown.clone().unwrap_or_default(),
        Ok(_) if row.state == State::Absent.to_string() => "the virtual machine is gone".to_owned(),
        Ok(_) => String::new(),
    }
}

fn url(row: &Row) -> String {
    row.record
        .as_ref()
        .ok()
        .filter(|record| record.stage == Stage::Ready && row.state == "Running")
        .and_then(|record| record.endpoints().ok())
        .map(|endpoints| format!("tcp://{}", endpoints.engine))
        .unwrap_or_default()
}

fn active(row: &Row) -> bool {
    let url = url(row);
    !url.is_empty() && std::env::var("DOCKER_HOST").is_ok_and(|host| host == url)
}

fn cells(row: &Row) -> Vec<String> {
    let record = row.record.as_ref().ok();
    vec![
        row.name.clone(),
        if active(row) { "*" } else { "-" }.to_owned(),
        record
            .map(|record| record.driver.clone())
            .unwrap_or_default(),
        row.state.clone(),
        url(row),
        record
            .and_then(|record| record.member.as_ref())
            .map(|member| format!("{} ({}, {})", member.cluster, member.role, member.zone))
            .unwrap_or_default(),
        trouble(row),
    ]
}

fn as_json(row: &Row) -> serde_json::Value {
    let record = row.record.as_ref().ok();
    json!({
        "name": row.name,
        "driver": record.map(|record| &record.driver),
        "state": row.state,
        "stage": record.map(|record| record.stage),
        "url": url(row),
        "ip": record.and_then(|record| record.endpoints().ok()).map(|endpoints| endpoints.ssh.ip()),
        "active": active(row),
        "member": record.and_then(|record| record.member.as_ref()),
        "error": trouble(row),
    })
}
