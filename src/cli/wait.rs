//! How long a command waits for machines that may be silent.

use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

/// A machine that does not answer within so many seconds is passed over.
pub const WAIT: u64 = 10;

/// The option of the commands that ask many machines. It stands in for the one of all commands, which bounds each wait,
/// too, and has the same name.
#[derive(Args)]
pub struct Wait {
    /// Wait so long for a machine; all are asked at the same time
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = WAIT, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Wait {
    /// What the line says; a variable that bounds the waits of all commands does not count here, where many machines
    /// may be silent.
    pub fn patience(&self, matches: &ArgMatches) -> Duration {
        let said = matches.value_source("timeout") == Some(ValueSource::CommandLine);
        Duration::from_secs(if said { self.timeout } else { WAIT })
    }
}
