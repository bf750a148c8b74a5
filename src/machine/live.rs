//! Whether a machine can be used at this moment, in the way in which a user's `docker` is about to use it.

use std::time::Duration;

use forge_driver::{Error, Fact, Kind, Result, State};

use super::tls::ClientFiles;
use super::{Forge, Record, power, relocate, seen};
use crate::engine::{self, Version};

/// An engine that is up answers within this time, on a busy machine, too.
const WAIT: Duration = Duration::from_secs(20);

/// The record of a machine that is whole and on, with the address that it has now.
///
/// # Errors
/// When its creation did not end, its provider cannot be asked, or it is off.
pub async fn running(forge: &Forge, record: &Record) -> Result<Record> {
    power::whole(record)?;
    if record.is_nowhere() {
        return Err(record.nothing_there());
    }
    let driver = forge.driver(record)?;
    let (state, instance) = seen(&*driver, record).await?;
    if state == State::Running {
        return relocate::told(forge, record.clone(), instance.as_ref()).await;
    }
    let error = Error::new(
        Kind::Unavailable,
        format!("machine `{}` is not running: it is {state}", record.name),
    )
    .fact(Fact::NotRunning(record.name.clone()));
    Err(if record.is_url_alone() {
        error.hint("it is known by its URL alone: it is started where it is")
    } else {
        error.hint(format!("`forge start {}` starts it", record.name))
    })
}

/// Asks the machine's engine for its version, over TLS and with the files of the machine's folder: those that
/// DOCKER_CERT_PATH names. Whoever is told that it answered can use it with them.
///
/// # Errors
/// Why it does not answer, or is not trusted.
pub async fn engine(forge: &Forge, record: &Record) -> Result<Version> {
    let address = record.endpoints()?.engine;
    let wait = WAIT.min(forge.patience);
    let answer = async {
        let trust = ClientFiles::beside(&forge.store, &record.name)?.trust()?;
        let stream = forge.access(record)?.engine(record, wait).await?;
        let name = record.server_name()?;
        engine::version(stream, &name, &trust, wait).await
    };
    answer.await.map_err(|error| {
        let fact = Fact::NoTls(address.to_string(), error.line());
        error
            .context(format!(
                "the engine of machine `{}` does not answer over TLS at {address}",
                record.name
            ))
            .hint(format!(
                "`forge logs {0}` shows what it says; `forge provision {0}` mends what differs",
                record.name
            ))
            .fact(fact)
    })
}
