//! `forge logs`

use std::time::Duration;

use clap::{Args, ValueEnum};
use forge::machine::access::{self, Connection};
use forge::machine::{Forge, Record, engine};
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::sudo::passwords;
use super::{DEFAULT_MACHINE, Outcome, Session};

/// Print what a machine wrote: serial console, first boot, engine
#[derive(Args)]
pub struct Logs {
    /// The machine
    #[arg(default_value = DEFAULT_MACHINE)]
    name: String,
    /// Print only this source [default: all that can be had]
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// Print only this many lines of each source
    #[arg(short = 'n', long, default_value_t = 200)]
    lines: usize,
}

/// Where lines come from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// The serial console, from the host: there also when the machine does not answer
    Console,
    /// The first boot, as the machine logged it
    FirstBoot,
    /// The container engine
    Engine,
}

/// A machine that does not answer by then has only its console to show.
const CONNECT: Duration = Duration::from_secs(10);

impl Logs {
    /// Prints each source under a heading.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let mut forge = session.reader()?;
        let record = Record::load(&forge.store, &self.name)?;
        let wanted = |source| self.source.is_none_or(|only| only == source);
        let mut parts = Vec::new();
        if wanted(Source::Console) {
            let read = forge.driver(&record)?.read_console(record.claim).await;
            match read {
                Ok(Some(bytes)) => parts.push((
                    "console",
                    forge_driver::process::tail(&String::from_utf8_lossy(&bytes), self.lines),
                )),
                Ok(None) if self.source.is_some() => {
                    return Err(Error::new(
                        Kind::NotFound,
                        format!(
                            "the driver `{}` has no console of `{}`",
                            record.driver, record.name
                        ),
                    ));
                }
                Ok(None) => {}
                Err(error) if self.source.is_some() => return Err(error),
                // The other sources may be there.
                Err(error) => parts.push((
                    "console",
                    format!("(the console cannot be read: {})", error.line()),
                )),
            }
        }
        // A host of others had its first boot before forge.
        let first_boot = wanted(Source::FirstBoot) && record.is_forges();
        if self.source == Some(Source::FirstBoot) && !first_boot {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "machine `{}` was there before forge: nothing is known of its first boot",
                    record.name
                ),
            ));
        }
        if first_boot || wanted(Source::Engine) {
            match opened(&mut forge, &record, CONNECT.min(session.patience())).await {
                Ok(open) => {
                    let (guest, lines) = (&*open.guest, self.lines);
                    if first_boot {
                        let text = engine::first_boot(&forge, guest, lines).await?;
                        parts.push(("first boot", text));
                    }
                    if wanted(Source::Engine) {
                        parts.push(("engine", engine::journal(&forge, guest, lines).await?));
                    }
                }
                Err(error) if self.source.is_some() || error.kind() == Kind::Interrupted => {
                    return Err(error);
                }
                Err(error) => parts.push((
                    "machine",
                    format!("(the machine cannot be asked: {})", error.line()),
                )),
            }
        }
        for (title, text) in parts {
            if session.json() {
                println!("{}", json!({"source": title, "text": text}));
            } else {
                println!("== {title} ==\n{}", text.trim_end());
            }
        }
        Ok(Outcome::Done)
    }
}

/// A connection to a machine, with the rights to read what its engine wrote.
async fn opened(forge: &mut Forge, record: &Record, patience: Duration) -> Result<Connection> {
    forge.sudo = passwords(forge, std::slice::from_ref(&record.name), None).await?;
    access::open(&*forge.access(record)?, record, patience).await
}
