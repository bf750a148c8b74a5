//! `forge inspect`

use clap::Args;
use forge::machine::Record;
use forge_driver::{Context, Kind, Result};

use super::where_is::or_default;
use super::{Outcome, Session};

/// Print everything that is remembered of a machine, as JSON
#[derive(Args)]
pub struct Inspect {
    /// The machines [default: default]
    names: Vec<String>,
}

impl Inspect {
    /// Prints one document a machine.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        for name in or_default(self.names) {
            let record = Record::load(&forge.store, &name)?;
            let text = if session.json() {
                serde_json::to_string(&record)
            } else {
                serde_json::to_string_pretty(&record)
            }
            .or_fail(Kind::Invalid, || {
                format!("the record of `{name}` cannot be printed")
            })?;
            println!("{text}");
        }
        Ok(Outcome::Done)
    }
}
