//! `forge version`

use clap::Args;
use forge::machine::{Record, live};
use forge_driver::Result;
use serde_json::json;

use super::sudo::certified;
use super::{Outcome, Session};

/// Print the version of a machine's engine; without a machine, that of this program
#[derive(Args)]
pub struct Version {
    /// The machine
    name: Option<String>,
}

impl Version {
    /// Prints it; a machine's engine is asked for it.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let Some(name) = self.name else {
            if session.json() {
                println!("{}", json!({"version": env!("CARGO_PKG_VERSION")}));
            } else {
                println!("{}", session.persona().version());
            }
            return Ok(Outcome::Done);
        };
        let forge = session.reader()?;
        let record = Record::load(&forge.store, &name)?;
        let record = live::running(&forge, &record).await?;
        let record = certified(&forge, record).await?;
        let engine = live::engine(&forge, &record).await?;
        if session.json() {
            println!(
                "{}",
                json!({"name": name, "version": engine.version, "api": engine.api})
            );
        } else {
            println!("{}", engine.version);
        }
        Ok(Outcome::Done)
    }
}
