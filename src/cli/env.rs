//! `forge env`

use clap::Args;
use forge::machine::Record;
use forge_driver::{Error, Fact, Kind, Result};
use serde_json::json;

use super::shell::Shell;
use super::where_is::running_url;
use super::{DEFAULT_MACHINE, Outcome, Session};

/// Print the variables that lead `docker` to a machine, for `eval`
///
/// On failure nothing is printed to standard output.
#[derive(Args)]
pub struct Env {
    /// The machine [default: default]
    name: Option<String>,
    /// Print for this shell [default: the one of $SHELL]
    #[arg(long, value_enum)]
    shell: Option<Shell>,
    /// Unset the variables instead
    #[arg(short, long)]
    unset: bool,
    /// Keep the machine's address out of the proxy's hands
    #[arg(long)]
    no_proxy: bool,
}

const VARIABLES: [&str; 4] = [
    "DOCKER_TLS_VERIFY",
    "DOCKER_HOST",
    "DOCKER_CERT_PATH",
    "DOCKER_MACHINE_NAME",
];

impl Env {
    /// Prints the lines.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let shell = self.shell.unwrap_or_else(Shell::of_user);
        if self.unset {
            if self.name.is_some() {
                return Err(Error::new(
                    Kind::Usage,
                    "expected no machine name when the -u flag is present",
                )
                .fact(Fact::NameGiven));
            }
            for name in VARIABLES {
                println!("{}", shell.unset(name));
            }
            println!("{}", shell.hint("forge env -u"));
            return Ok(Outcome::Done);
        }
        let name = self.name.unwrap_or_else(|| DEFAULT_MACHINE.to_owned());
        let lines = variables(session, &name, self.no_proxy).await?;
        show(session, shell, &lines, &format!("forge env {name}"));
        Ok(Outcome::Done)
    }
}

/// The variables for one machine.
///
/// # Errors
/// When the machine is not there, not finished or not running.
pub async fn variables(
    session: &Session,
    name: &str,
    no_proxy: bool,
) -> Result<Vec<(String, String)>> {
    let forge = session.reader()?;
    let record = Record::load(&forge.store, name)?;
    let url = running_url(&forge, &record).await?;
    let path = forge.store.machine_dir(name);
    let mut lines: Vec<(String, String)> = [
        (VARIABLES[0], "1".to_owned()),
        (VARIABLES[1], url),
        (VARIABLES[2], path.display().to_string()),
        (VARIABLES[3], name.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if no_proxy {
        lines.push(proxy(&record.endpoints()?.engine.ip().to_string()));
    }
    Ok(lines)
}

/// The variable that keeps proxies away, with `address` added unless the list holds it.
fn proxy(address: &str) -> (String, String) {
    let name = if std::env::var_os("no_proxy").is_some() {
        "no_proxy"
    } else {
        "NO_PROXY"
    };
    let list = std::env::var(name).unwrap_or_default();
    let held = list.split(',').any(|entry| entry.trim() == address);
    let value = match (held, list.is_empty()) {
        (true, _) => list,
        (false, true) => address.to_owned(),
        (false, false) => format!("{list},{address}"),
    };
    (name.to_owned(), value)
}

/// Prints variables for a shell, or as JSON.
pub fn show(session: &Session, shell: Shell, lines: &[(String, String)], command: &str) {
    if session.json() {
        let map: serde_json::Map<String, serde_json::Value> = lines
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        println!("{}", serde_json::Value::Object(map));
        return;
    }
    for (name, value) in lines {
        println!("{}", shell.set(name, value));
    }
    println!("{}", shell.hint(command));
}
