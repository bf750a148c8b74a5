//! `forge logs`

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use forge::machine::{Record, access};
use forge::remote::Guest;
use forge_driver::{Error, Kind, Result};

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
        let forge = session.reader()?;
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
        let remote = [
            (
                Source::FirstBoot,
                "first boot",
                format!(
                    "sudo -n journalctl --no-pager -b -n {0} -u forge-seed -u forge-grow -u cloud-init -u cloud-final -u ssh",
                    self.lines
                ),
            ),
            (
                Source::Engine,
                "engine",
                format!("sudo -n journalctl --no-pager -n {} -u docker", self.lines),
            ),
        ];
        if remote.iter().any(|(source, _, _)| wanted(*source)) {
            let patience = CONNECT.min(session.patience());
            match access::guest(&forge.store, &record, None, patience).await {
                Ok(guest) => {
                    for (source, title, command) in &remote {
                        if wanted(*source) {
                            let output = guest.exec(command, b"", Duration::from_secs(60)).await?;
                            parts.push((title, output.text()));
                        }
                    }
                }
                Err(error) if self.source.is_some() => return Err(error),
                Err(error) => parts.push((
                    "machine",
                    format!("(the machine does not answer: {})", error.line()),
                )),
            }
        }
        let mut out = std::io::stdout().lock();
        for (title, text) in parts {
            // A reader that has seen enough closes the pipe.
            let written = if session.json() {
                writeln!(
                    out,
                    "{}",
                    serde_json::json!({"source": title, "text": text})
                )
            } else {
                writeln!(out, "== {title} ==\n{}", text.trim_end())
            };
            if written.is_err() {
                break;
            }
        }
        Ok(Outcome::Done)
    }
}
