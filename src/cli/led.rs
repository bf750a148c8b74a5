//! Engines that `docker` is led to: reached directly, answering, with a certificate that lasts.

use forge::machine::{Forge, Record, live, renew};
use forge_driver::{Error, Kind, Result};

use super::sudo::certified;
use super::{Session, report};

/// The machine that `docker` is to be led to, as it is at this moment.
///
/// # Errors
/// As [`direct`] and [`live`]; when there is no such machine.
pub async fn led_to(session: &Session, name: &str) -> Result<(Forge, Record)> {
    let forge = session.reader()?;
    let record = Record::load(&forge.store, name)?;
    direct(&record)?;
    let record = live(&forge, &record).await?;
    Ok((forge, record))
}

/// Refuses a machine that `docker` has no way to: one behind another host.
///
/// # Errors
/// [`Kind::Unavailable`] with the tunnel that leads there.
pub fn direct(record: &Record) -> Result<()> {
    let jump = record
        .adopted
        .as_ref()
        .and_then(|adopted| adopted.jump.as_ref());
    let (Some(jump), Some(here)) = (jump, record.tunnel()) else {
        return Ok(());
    };
    let (name, port) = (&record.name, record.endpoints()?.engine.port());
    Err(Error::new(
        Kind::Unavailable,
        format!("machine `{name}` is behind `{}`, and `docker` does not go through there", jump.host),
    )
    .hint(format!("`forge ssh {name} -N -L {here}:{port}:127.0.0.1:{port}` leads there from here; then `docker --tlsverify -H tcp://{here}:{port}`, with DOCKER_CERT_PATH the machine's folder")))
}

/// The record of a machine whose engine answers: to this user, over TLS, at this moment. It has the address of now.
///
/// # Errors
/// When the machine was never finished or is off, or its engine does not answer.
pub async fn live(forge: &Forge, record: &Record) -> Result<Record> {
    let record = live::running(forge, record).await?;
    let record = certified(forge, record).await?;
    lasting(forge, &record).await?;
    live::engine(forge, &record).await?;
    Ok(record)
}

/// Tells of a certificate that is near its end, for commands whose output leads a client to the engine.
///
/// # Errors
/// When it has ended.
async fn lasting(forge: &Forge, record: &Record) -> Result<()> {
    if let Some(warning) = renew::lasting(forge, record).await? {
        report::note(&format!("warning: {warning}"));
    }
    Ok(())
}
