//! The way to a machine that is starting: its provider is watched, its address waited for, its SSH server knocked at.

use std::time::Duration;

use forge_driver::{Driver, Error, Instance, Kind, Observation, Power, Result, State, process};
use tokio::time::{Instant, sleep};

use super::access::{self, Connection, Knocks};
use super::{Forge, Record};
use crate::interrupt;
use crate::remote::ssh::{self, Phase, failed_phase};

/// The provider is asked this often whether the machine still runs.
const LOOK: Duration = Duration::from_secs(1);
/// A machine whose provider cannot be made sense of so many times in a row does not run any more.
const BLURS: u32 = 5;
/// After this time a machine is knocked at even when its provider says that its network is off.
const DEAF_AT_MOST: Duration = Duration::from_secs(120);

/// The record with the address that the machine has now, saved when it is another one. The caller holds the
/// machine's lock.
pub(super) async fn located(
    forge: &Forge,
    driver: &dyn Driver,
    record: Record,
    deadline: Instant,
) -> Result<Record> {
    if record.placement.decided() {
        return Ok(record);
    }
    let mut sight = Sight::default();
    forge
        .events
        .step(
            "waiting for an address",
            "its network's server",
            Some(deadline),
        )
        .await;
    loop {
        interrupt::check()?;
        let seen = sight.look(driver, &record).await?;
        let known = seen
            .and_then(|seen| seen.instance)
            .filter(Instance::located);
        if let Some(instance) = known {
            if record.instance.as_ref() == Some(&instance) {
                return Ok(record);
            }
            let record = Record {
                instance: Some(instance),
                ..record
            };
            record.save(&forge.store)?;
            return Ok(record);
        }
        if Instant::now() >= deadline {
            let late = Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` was seen with no address within {} s",
                    record.name,
                    forge.patience.as_secs()
                ),
            );
            // Of a host that was there before, nobody reads the console, and whoever names it gives its address.
            if record.adopted.is_some() || record.imported.is_some() {
                return Err(late.hint("does its name lead anywhere from here?"));
            }
            return Err(with_console(driver, &record, late)
                .await
                .hint("is there a DHCP server on its network?"));
        }
        sleep(LOOK).await;
    }
}

/// The machine runs, or is started. What its provider said of it.
pub(super) async fn awake(forge: &Forge, driver: &dyn Driver, record: &Record) -> Result<Sight> {
    let mut sight = Sight::default();
    match at_rest(forge, driver, record).await? {
        None => return Err(gone(record)),
        Some(seen) if seen.state == State::Absent => return Err(gone(record)),
        Some(seen) if matches!(seen.state, State::Running | State::Starting) => {
            sight.looked = Some(Instant::now());
            sight.network = seen.network;
        }
        Some(_) => {
            // Until the provider says otherwise.
            sight.network = Some(false);
            forge
                .events
                .step("starting the virtual machine", "", None)
                .await;
            if let Some(nic) = &record.placement.nic {
                driver.ensure_shared(&nic.network).await?;
            }
            // What was recorded but not carried out yet, when a publish was cut off.
            driver.forward(record.claim, &record.published).await?;
            driver.set_power(record.claim, Power::On).await?;
        }
    }
    Ok(sight)
}

/// What the provider says of a machine that is not on its way down: started during that, it would be off a moment
/// later.
async fn at_rest(
    forge: &Forge,
    driver: &dyn Driver,
    record: &Record,
) -> Result<Option<Observation>> {
    let deadline = Instant::now() + forge.patience;
    let mut told = false;
    loop {
        let seen = driver.observe(&[record.claim]).await?.into_iter().next();
        if seen.as_ref().map(|seen| seen.state) != Some(State::Stopping) {
            return Ok(seen);
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` has been shutting down for {} s, and is not off",
                    record.name,
                    forge.patience.as_secs()
                ),
            )
            .hint(format!(
                "`forge kill {}` switches it off at once",
                record.name
            )));
        }
        if !told {
            told = true;
            forge
                .events
                .step("waiting", "its shutdown, which has begun", Some(deadline))
                .await;
        }
        sleep(LOOK).await;
    }
}

/// An open connection to a machine, started when it is off, and its record with the address that it has now.
/// Waits for at most `forge.patience`.
///
/// # Errors
/// [`Kind::Timeout`] with the last error and the end of the console; at once when the VM is gone or
/// stops, when the host key is none of ours, or when an adopted host lets its user in no more.
pub(super) async fn reach(
    forge: &Forge,
    driver: &dyn Driver,
    record: &Record,
) -> Result<(Record, Connection)> {
    let access = forge.access(record)?;
    let deadline = Instant::now() + forge.patience;
    let start = Instant::now();
    let mut sight = awake(forge, driver, record).await?;
    let record = &located(forge, driver, record.clone(), deadline).await?;
    forge
        .events
        .step(
            "connecting",
            "an SSH server that shows the recorded key",
            Some(deadline),
        )
        .await;
    let mut knocks = Knocks::new(&*access, record);
    let mut said = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = if sight.is_deaf() {
            Err(Error::new(
                Kind::Timeout,
                "the machine has not switched its network on yet",
            ))
        } else {
            match knocks.once().await {
                Ok(door) => access.connect(record, door, ssh::ATTEMPT.min(left)).await,
                Err(error) => Err(error),
            }
        };
        let error = match attempt {
            Ok(connection) => {
                forge.events.span("wait.ssh", start.elapsed()).await;
                return Ok((record.clone(), connection));
            }
            Err(error) => error,
        };
        // A guest that boots may let its user in a moment after its server has begun to answer.
        let boots = record.is_forges() && failed_phase(&error) == Some(Phase::Authentication);
        if access::is_final(&error) && !boots {
            return Err(error);
        }
        interrupt::check()?;
        let line = error.line();
        if line != said {
            forge.events.trouble(&error).await;
            said = line;
        }
        sight.look(driver, record).await?;
        if Instant::now() >= deadline {
            let late = Error::new(
                Kind::Timeout,
                format!(
                    "machine `{}` did not answer SSH within {} s ({})",
                    record.name,
                    forge.patience.as_secs(),
                    error.line()
                ),
            );
            return Err(with_console(driver, record, late).await);
        }
        sleep(access::PAUSE).await;
    }
}

/// What the provider says of a machine that is starting.
pub(super) struct Sight {
    began: Instant,
    looked: Option<Instant>,
    /// Whether the guest has switched its network on, where the provider can tell.
    network: Option<bool>,
    /// So many looks in a row found nothing that makes sense.
    blurred: u32,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            looked: None,
            network: None,
            blurred: 0,
        }
    }
}

impl Sight {
    /// Nobody there can answer yet. Each knock would wake up a process as soon as somebody can, and many of
    /// them keep an emulated machine from everything else.
    fn is_deaf(&self) -> bool {
        self.network == Some(false) && self.began.elapsed() < DEAF_AT_MOST
    }

    /// Asks the provider, unless it was asked a moment ago. One on another host may not be reached for a moment.
    ///
    /// # Errors
    /// When the machine is gone, or is not running any more.
    async fn look(&mut self, driver: &dyn Driver, record: &Record) -> Result<Option<Observation>> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(None);
        }
        self.looked = Some(Instant::now());
        let seen = match driver.observe(&[record.claim]).await {
            Err(error)
                if matches!(error.kind(), Kind::Unavailable | Kind::Timeout)
                    && self.blurred < BLURS =>
            {
                self.blurred += 1;
                return Ok(None);
            }
            seen => seen?,
        };
        let Some(seen) = seen.into_iter().next() else {
            return Err(gone(record));
        };
        self.network = seen.network;
        self.blurred = if seen.state == State::Error {
            self.blurred + 1
        } else {
            0
        };
        match seen.state {
            State::Absent => Err(gone(record)),
            // A busy host may let one question pass without an answer.
            State::Stopped | State::Error
                if seen.state == State::Stopped || self.blurred > BLURS =>
            {
                Err(with_console(
                    driver,
                    record,
                    Error::new(
                        Kind::Failed,
                        format!(
                            "the virtual machine `{}` stopped while it was starting",
                            record.name
                        ),
                    ),
                )
                .await)
            }
            _ => Ok(Some(seen)),
        }
    }
}

fn gone(record: &Record) -> Error {
    Error::new(
        Kind::NotFound,
        format!("the virtual machine of `{}` is gone", record.name),
    )
    .because(format!(
        "nothing carries its claim {}: it was deleted behind forge's back",
        record.claim
    ))
    .hint(format!(
        "`forge rm {}` removes the rest; then create it again",
        record.name
    ))
}

/// Adds the end of the machine's console to a failure to boot.
async fn with_console(driver: &dyn Driver, record: &Record, error: Error) -> Error {
    let hint = format!(
        "`forge logs {}` shows all of its console; `--timeout` gives it more time",
        record.name
    );
    let Ok(Some(console)) = driver.read_console(record.claim).await else {
        return error.hint("its console cannot be read from here; `--timeout` gives it more time");
    };
    let end =
        Some(process::tail(&String::from_utf8_lossy(&console), 12)).filter(|end| !end.is_empty());
    match end {
        Some(end) => error
            .because(format!("its console ends with:\n{end}"))
            .hint(hint),
        None => error
            .because("its console is empty: it did not begin to boot")
            .hint(hint),
    }
}
