//! How long a command waits for machines that may be silent.

use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args};
use forge_driver::Result;

use super::Session;

/// A machine that does not answer within so many seconds is passed over.
pub const WAIT: u64 = 10;
/// The variable that says another number.
const VARIABLE: &str = "FORGE_WAIT";

/// The option of the commands that ask many machines. It stands in for the one of all commands, which bounds each wait,
/// too, and has the same name.
#[derive(Args)]
pub struct Wait {
    /// Wait so long for a machine; all are asked at the same time
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = WAIT, env = VARIABLE, hide_env_values = true, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Wait {
    /// What the line says, else the variable, else `forge.toml` of this command. What bounds the waits of all commands there
    /// or in a variable does not count here, where many machines may be silent.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn patience(
        &self,
        session: &Session,
        matches: &ArgMatches,
        command: &str,
    ) -> Result<Duration> {
        if matches.value_source("timeout") == Some(ValueSource::CommandLine) {
            return Ok(Duration::from_secs(self.timeout));
        }
        // What the parser has may be the other option's; each of these values it has judged before.
        let number = |text: &str| text.parse().ok();
        let variable = std::env::var(VARIABLE).ok();
        let seconds = match variable.as_deref().and_then(number) {
            Some(seconds) => seconds,
            None => {
                let option = Arg::new("timeout").long("timeout");
                let given = session.defaults.given(&[command], &option)?;
                let texts = given.map(|given| given.texts).unwrap_or_default();
                texts.first().and_then(|text| number(text)).unwrap_or(WAIT)
            }
        };
        Ok(Duration::from_secs(seconds))
    }
}
