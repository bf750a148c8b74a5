//! First contact: from the host key that the seed brought to one that never left the machine.

use std::time::Duration;

use forge_driver::{Driver, Error, Kind, Result};
use tokio::time::{Instant, sleep};

use super::access::Connection;
use super::seed::FIRST_HOST_KEY;
use super::{Forge, Record, Stage};
use crate::interrupt;
use crate::remote::first_contact;
use crate::store::remove_file;

/// The new key is served within this time after the SSH server was told to reload.
const CONFIRM: Duration = Duration::from_secs(60);
/// One look at the key that is served.
const LOOK: Duration = Duration::from_secs(20);

/// Over the connection that the first key was checked on: the machine makes a key of its own, its
/// public half is recorded (from then on both are accepted), the first key is removed from the machine,
/// the new one is seen from outside, and the seed is blanked. Safe to repeat from any point.
pub(super) async fn settle(
    forge: &Forge,
    driver: &dyn Driver,
    record: &Record,
    open: &Connection,
) -> Result<Record> {
    let mut record = record.clone();
    forge.events.step("first contact", "", None).await;
    let own = first_contact::make_own_key(&*open.guest, forge.patience).await?;
    if record.ssh.own_host_key.as_ref() != Some(&own) {
        record.ssh.own_host_key = Some(own.clone());
        record.save(&forge.store)?;
    }
    first_contact::install(&*open.guest, forge.patience).await?;
    if open.host_key != own {
        confirm(forge, &record, &own).await?;
    }
    driver.blank_seed(record.claim).await?;
    remove_file(&forge.store.machine_dir(&record.name).join(FIRST_HOST_KEY))?;
    record.ssh.first_host_key = None;
    record.stage = Stage::Reached;
    Ok(record)
}

/// Waits until the machine shows its own key to a newcomer.
async fn confirm(forge: &Forge, record: &Record, own: &str) -> Result<()> {
    let access = forge.access(record)?;
    let deadline = Instant::now() + CONFIRM.min(forge.patience);
    forge
        .events
        .step(
            "first contact",
            "the machine's own host key",
            Some(deadline),
        )
        .await;
    loop {
        let error = match access.presented_key(record, LOOK.min(forge.patience)).await {
            Ok(shown) if shown == own => return Ok(()),
            Ok(_) => Error::new(Kind::Refused, "it still shows the key of the first contact"),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` does not show the host key that it made",
                    record.name
                ),
            )
            .because(error)
            .hint("run the same command again: it goes on from here"));
        }
        interrupt::check()?;
        forge.events.trouble(&error).await;
        sleep(Duration::from_millis(200)).await;
    }
}
