//! The restart of a host: it is asked to, by whoever may ask it there. That it went down and came back shows by the id
//! that its kernel draws at each boot (random(4), `boot_id`).

use std::time::Duration;

use forge_driver::{Error, Fact, Kind, Result};
use tokio::time::{Instant, sleep, timeout};

use crate::interrupt;
use crate::machine::access;
use crate::machine::tls::ClientFiles;
use crate::machine::{Forge, Record, power, provision};
use crate::playbook::{self, Secrets, Vars};
use crate::remote::Guest;

/// The pause between looks at a host that is on its way.
const PAUSE: Duration = Duration::from_secs(1);
/// One look takes at most this long: a connection to a host that goes down may stay open and dead.
const LOOK: Duration = Duration::from_secs(20);

/// Restarts a host and waits until its engine answers. The caller holds its lock.
///
/// # Errors
/// [`Kind::Timeout`] when it is not back in time, [`Kind::Unavailable`] for an engine that is known by its URL alone.
pub async fn restart(forge: &Forge, record: &Record) -> Result<()> {
    power::whole(record)?;
    if record.ssh.user.is_empty() {
        let words = "hosts without a driver cannot be restarted";
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "machine `{}` is known by its URL alone: it cannot be restarted from here",
                record.name
            ),
        )
        .fact(Fact::NoPower(words.to_owned())));
    }
    let deadline = Instant::now() + forge.patience;
    let access = forge.access(record)?;
    let open = access::open(&*access, record, forge.patience).await?;
    let before = boot(&*open.guest).await?;
    let book = playbook::load(&forge.assets, "adopt/restart")?;
    let job = playbook::compile(&[(&book, &Vars::new())], &Secrets::new(), false)?;
    playbook::run(&*open.guest, &job, forge.patience, &|_| {}).await?;
    drop(open);
    forge
        .events
        .step("restarting", "the host's next boot", Some(deadline))
        .await;
    let mut last = Error::new(Kind::Timeout, "it has not gone down");
    loop {
        interrupt::check()?;
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "the host of `{}` did not restart within {} s",
                    record.name,
                    forge.patience.as_secs()
                ),
            )
            .because(last));
        }
        sleep(PAUSE).await;
        let look = async {
            let open = access::open(&*access, record, LOOK).await?;
            boot(&*open.guest).await
        };
        match timeout(LOOK * 2, look).await {
            Ok(Ok(now)) if now != before => break,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => last = error,
            Err(_) => last = Error::new(Kind::Timeout, "it does not answer"),
        }
        forge.events.trouble(&last).await;
    }
    let client = ClientFiles::beside(&forge.store, &record.name)?;
    provision::prove(forge, record, &client.trust()?).await?;
    forge.events.finished("running", true).await;
    Ok(())
}

async fn boot(guest: &dyn Guest) -> Result<String> {
    let output = guest
        .exec("cat /proc/sys/kernel/random/boot_id", b"", LOOK)
        .await?;
    Ok(output.text().trim().to_owned())
}
