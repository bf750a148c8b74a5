//! On, off, at once.

use std::time::Duration;

use forge_driver::{Driver, Error, Kind, Power, Result, State};
use tokio::time::{Instant, sleep};

use super::tls::ClientFiles;
use super::{Forge, Record, Stage, imported, provision, reach, relocate, state};
use crate::cluster;

/// The provider is asked this often while a machine goes down.
const POLL: Duration = Duration::from_millis(250);

/// Starts a machine and waits until its engine answers. Whether it was off. The caller holds its lock.
///
/// # Errors
/// When it was never finished, is gone, or does not come up in time.
pub async fn start(forge: &Forge, record: &Record) -> Result<bool> {
    whole(record)?;
    let driver = forge.driver(record)?;
    if record.ssh.user.is_empty() {
        // Nobody logs in there to see whether it is up.
        driver.set_power(record.claim, Power::On).await?;
    }
    let was = state(&*driver, record).await?;
    if record.imported.is_some() && record.renewing.is_none() {
        imported::start(forge, &*driver, record).await?;
        let changed = was != State::Running;
        forge.events.finished("running", changed).await;
        return Ok(changed);
    }
    let (record, connection) = reach::reach(forge, &*driver, record).await?;
    if record.renewing.is_some() || !relocate::named(&record) {
        // Which of its certificates the machine has is not known, or it has another address now.
        let peers = cluster::record::peers(&forge.store, &record)?;
        provision::apply(forge, record, &connection, &peers).await?;
    } else {
        let client = ClientFiles::beside(&forge.store, &record.name)?;
        provision::prove(forge, &record, &client.trust()?).await?;
    }
    drop(connection);
    let changed = was != State::Running;
    forge.events.finished("running", changed).await;
    Ok(changed)
}

/// Shuts a machine down cleanly. Whether it was on. The caller holds its lock.
///
/// # Errors
/// [`Kind::Timeout`] when the guest does not go down within the deadline: it is left running.
pub async fn stop(forge: &Forge, record: &Record) -> Result<bool> {
    let driver = forge.driver(record)?;
    match state(&*driver, record).await? {
        State::Stopped | State::Saved => {
            forge.events.finished("stopped", false).await;
            return Ok(false);
        }
        State::Absent if record.stage < Stage::Launched => return never_on(forge).await,
        State::Absent => return Err(absent(record)),
        _ => {}
    }
    let deadline = Instant::now() + forge.patience;
    forge
        .events
        .step("shutting down", "the guest's shutdown", Some(deadline))
        .await;
    driver.set_power(record.claim, Power::Shutdown).await?;
    let mut asked = Instant::now();
    loop {
        if matches!(
            state(&*driver, record).await?,
            State::Stopped | State::Saved | State::Absent
        ) {
            forge.events.finished("stopped", true).await;
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` did not shut down within {} s",
                    record.name,
                    forge.patience.as_secs()
                ),
            )
            .hint(format!(
                "`forge logs {0}` shows what it is doing; `forge kill {0}` switches it off at once",
                record.name
            )));
        }
        crate::interrupt::check()?;
        // A guest that is still booting loses the press of the button: press again.
        if asked.elapsed() > Duration::from_secs(10) {
            asked = Instant::now();
            driver.set_power(record.claim, Power::Shutdown).await?;
        }
        sleep(POLL).await;
    }
}

/// Switches a machine off at once. Whether it was on. The caller holds its lock.
///
/// # Errors
/// When the provider refuses.
pub async fn kill(forge: &Forge, record: &Record) -> Result<bool> {
    let driver = forge.driver(record)?;
    match state(&*driver, record).await? {
        State::Stopped => {
            forge.events.finished("stopped", false).await;
            return Ok(false);
        }
        State::Absent if record.stage < Stage::Launched => return never_on(forge).await,
        State::Absent => return Err(absent(record)),
        _ => {}
    }
    forge.events.step("switching off", "", None).await;
    driver.set_power(record.claim, Power::Kill).await?;
    wait_stopped(&*driver, record).await?;
    forge.events.finished("stopped", true).await;
    Ok(true)
}

/// A machine whose creation was cut off before there was a virtual machine.
async fn never_on(forge: &Forge) -> Result<bool> {
    forge.events.finished("was never started", false).await;
    Ok(false)
}

async fn wait_stopped(driver: &dyn Driver, record: &Record) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !matches!(state(driver, record).await?, State::Stopped | State::Absent) {
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` is still there 20 s after it was switched off",
                    record.name
                ),
            ));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Refuses a machine whose creation did not end.
///
/// # Errors
/// [`Kind::Unavailable`] with the command that goes on.
pub fn whole(record: &Record) -> Result<()> {
    if record.leaving {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "the removal of machine `{}` has begun and did not end",
                record.name
            ),
        )
        .hint(format!("`forge rm {}` goes on with it", record.name)));
    }
    if record.stage == Stage::Ready {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "the creation of machine `{}` did not end: it is {}",
            record.name, record.stage
        ),
    )
    .hint(format!(
        "{} goes on with it; `forge rm {}` removes it",
        record.resumed_by(),
        record.name
    )))
}

fn absent(record: &Record) -> Error {
    Error::new(
        Kind::NotFound,
        format!("the virtual machine of `{}` is gone", record.name),
    )
    .hint(format!(
        "it was deleted behind forge's back: `forge rm {}` removes the rest",
        record.name
    ))
}
