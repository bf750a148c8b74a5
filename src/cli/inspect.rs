//! `forge inspect`

use clap::Args;
use forge::machine::Record;
use forge::machine::companions::Config;
use forge_driver::{Context, Kind, Result};
use serde::Serialize;

use super::format::{Missing, Template, pretty};
use super::names::{or_default, records};
use super::{Outcome, Session};

/// Print everything that is remembered of a machine, as JSON: as docker-machine had it, and forge's own record
///
/// With `--json` it is forge's own record alone, in one line.
#[derive(Args)]
pub struct Inspect {
    /// The machines [default: default]
    names: Vec<String>,
    /// Print what this Go template makes of it: {{.Driver.IPAddress}}, {{json .Forge}}
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl Inspect {
    /// Prints one document a machine, or what the template makes of it.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let parsed = |text: &str| Template::parse(text, Missing::NoValue);
        let template = self.format.as_deref().map(parsed).transpose()?;
        let forge = session.reader()?;
        // Nothing is printed before everything is known to be right.
        let mut texts = String::new();
        for record in records(&forge.store, &or_default(self.names))? {
            let whole = Document {
                config: Config::of(&record, &forge.store),
                forge: &record,
            };
            let text = match &template {
                Some(template) => {
                    template.render(&written(&record, serde_json::to_value(&whole))?)?
                }
                None if session.json() => written(&record, serde_json::to_string(&record))?,
                None => written(&record, pretty(&whole))?,
            };
            texts.push_str(&text);
            texts.push('\n');
        }
        print!("{texts}");
        Ok(Outcome::Done)
    }
}

/// What is shown of a machine. The names and their order are docker-machine's, but for the last.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    config: Config,
    #[serde(rename = "Forge")]
    forge: &'a Record,
}

fn written<T>(record: &Record, made: serde_json::Result<T>) -> Result<T> {
    made.or_fail(Kind::Invalid, || {
        format!("the record of `{}` cannot be printed", record.name)
    })
}
