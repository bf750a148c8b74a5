//! `forge publish`

use clap::Args;
use forge::machine::{Forge, Record, publish};
use forge::store::lock::acquire_machines;
use forge_driver::{Error, Forward, Kind, Result};
use serde_json::json;

use super::{Outcome, Session};

/// Reach ports of a machine from this host
///
/// Each port is forwarded from the machine's own address, under its own number where you may bind it,
/// and put back at every start. Without ports, those that are published are shown.
#[derive(Args)]
pub struct Publish {
    /// The machine
    name: String,
    /// PORT, or HOSTPORT:PORT
    #[arg(value_name = "PORT")]
    ports: Vec<String>,
    /// Take these ports back instead
    #[arg(long, requires = "ports")]
    remove: bool,
}

impl Publish {
    /// Publishes, and prints where each port is reached.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        if self.ports.is_empty() {
            let forge = session.reader()?;
            let record = Record::load(&forge.store, &self.name)?;
            show(session, &[(self.name, record.published)]);
            return Ok(Outcome::Done);
        }
        check(&self.ports, self.remove)?;
        // Without a store there are no machines, and none is made.
        session.reader()?;
        let (forge, drawing) = session.worker("publish")?;
        let done = change(&forge, &self.name, &self.ports, self.remove).await;
        drawing.finish(forge).await;
        show(session, &[(self.name, done?)]);
        Ok(Outcome::Done)
    }
}

async fn change(forge: &Forge, name: &str, ports: &[String], remove: bool) -> Result<Vec<Forward>> {
    let _locks = acquire_machines(
        &forge.store,
        &[name.to_owned()],
        forge.patience,
        &forge.events,
    )
    .await?;
    let record = Record::load(&forge.store, name)?;
    change_one(forge, &record, ports, remove)
        .await
        .map(|(_, shown)| shown)
}

/// Refuses words that are no ports, before anything is touched.
///
/// # Errors
/// [`Kind::Usage`] with the first of them.
pub fn check(ports: &[String], remove: bool) -> Result<()> {
    if remove {
        numbers(ports).map(drop)
    } else {
        publish::check(ports)
    }
}

/// Publishes ports of one machine, or takes them back. The record as it is now, and what is to be shown.
/// The caller holds the machine's lock.
///
/// # Errors
/// When a port is no port, or is taken: nothing is changed then.
pub async fn change_one(
    forge: &Forge,
    record: &Record,
    ports: &[String],
    remove: bool,
) -> Result<(Record, Vec<Forward>)> {
    if !remove {
        return publish::publish(forge, record, ports).await;
    }
    let record = publish::withdraw(forge, record, &numbers(ports)?).await?;
    let shown = record.published.clone();
    Ok((record, shown))
}

fn numbers(ports: &[String]) -> Result<Vec<u16>> {
    let number = |port: &String| {
        port.parse::<u16>().map_err(|_| {
            Error::new(
                Kind::Usage,
                format!("`{port}` is not a port of the machine"),
            )
        })
    };
    ports.iter().map(number).collect()
}

/// Prints `MACHINE PORT -> ADDRESS` lines, or JSON.
pub fn show(session: &Session, machines: &[(String, Vec<Forward>)]) {
    if session.json() {
        let list: Vec<_> = machines
            .iter()
            .flat_map(|(name, forwards)| {
                forwards
                    .iter()
                    .map(move |forward| json!({"machine": name, "port": forward.guest, "address": forward.host}))
            })
            .collect();
        println!("{}", serde_json::Value::Array(list));
        return;
    }
    for (name, forwards) in machines {
        for forward in forwards {
            println!("{name} {} -> {}", forward.guest, forward.host);
        }
    }
}
