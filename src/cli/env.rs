//! `forge env`

use clap::Args;
use forge_driver::{Error, Fact, Kind, Result};
use serde_json::{Value, json};

use super::classic_swarm::not_led_to;
use super::led::led_to;
use super::shell::{Shell, command_line};
use super::{DEFAULT_MACHINE, Outcome, Session, use_};

/// Print the variables that lead `docker` to a machine, for `eval`
///
/// The engine is asked first, as `docker` will ask it: on failure nothing is printed to standard output.
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
    #[arg(long, conflicts_with = "context")]
    no_proxy: bool,
    /// Refused: docker-machine's way to a classic Swarm
    #[arg(long, hide = true)]
    swarm: bool,
    /// Lead there by a context of docker's, which is made, instead of by addresses and paths
    #[arg(long)]
    context: bool,
}

/// The context that docker uses, unless DOCKER_HOST is set.
const CONTEXT: &str = "DOCKER_CONTEXT";

const VARIABLES: [&str; 4] = [
    "DOCKER_TLS_VERIFY",
    "DOCKER_HOST",
    "DOCKER_CERT_PATH",
    "DOCKER_MACHINE_NAME",
];

impl Env {
    /// Prints the lines.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        not_led_to(self.swarm)?;
        let shell = self.shell.unwrap_or_else(Shell::of_user);
        if self.unset {
            if self.name.is_some() {
                return Err(Error::new(
                    Kind::Usage,
                    "expected no machine name when the -u flag is present",
                )
                .fact(Fact::NameGiven));
            }
            let proxy = self.no_proxy.then(|| proxies().0);
            let context = self.context.then_some(CONTEXT);
            let names = VARIABLES.into_iter().chain(proxy).chain(context);
            if session.json() {
                let none = names.map(|name| (name.to_owned(), Value::Null));
                println!("{}", Value::Object(none.collect()));
                return Ok(Outcome::Done);
            }
            for name in names {
                println!("{}", shell.unset(name));
            }
            println!("{}", shell.hint(&command_line()));
            return Ok(Outcome::Done);
        }
        let name = self.name.unwrap_or_else(|| DEFAULT_MACHINE.to_owned());
        if self.context {
            let context = context(session, &name).await?;
            if !session.json() {
                for variable in VARIABLES {
                    println!("{}", shell.ended(&shell.unset(variable)));
                }
            }
            let lines = [(CONTEXT.to_owned(), context)];
            show(session, shell, &lines);
            return Ok(Outcome::Done);
        }
        let lines = variables(session, &name, self.no_proxy).await?;
        show(session, shell, &lines);
        Ok(Outcome::Done)
    }
}

/// The context of a machine whose engine answers, brought up to date.
async fn context(session: &Session, name: &str) -> Result<String> {
    led_to(session, name).await?;
    use_::made(session, &use_::docker()?, name, "env").await
}

/// The variables for one machine, whose engine answers.
///
/// # Errors
/// When the machine is not there, not finished or not running, or its engine does not answer.
pub async fn variables(
    session: &Session,
    name: &str,
    no_proxy: bool,
) -> Result<Vec<(String, String)>> {
    let (forge, record) = led_to(session, name).await?;
    let url = record.url()?;
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
        let (name, list) = proxies();
        let address = record.endpoints()?.engine.ip().to_string();
        lines.push((name.to_owned(), with(list, &address)));
    }
    Ok(lines)
}

/// The variable that keeps proxies away, and the list in it: the one in small letters where it says anything.
fn proxies() -> (&'static str, String) {
    let list = |name| std::env::var(name).unwrap_or_default();
    match list("no_proxy") {
        small if !small.is_empty() => ("no_proxy", small),
        _ => ("NO_PROXY", list("NO_PROXY")),
    }
}

/// The list with `address` added, unless it holds it.
fn with(list: String, address: &str) -> String {
    let held = list.split(',').any(|entry| entry.trim() == address);
    match (held, list.is_empty()) {
        (true, _) => list,
        (false, true) => address.to_owned(),
        (false, false) => format!("{list},{address}"),
    }
}

/// Prints variables for a shell, or as JSON.
pub fn show(session: &Session, shell: Shell, lines: &[(String, String)]) {
    if session.json() {
        let map = lines
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        println!("{}", Value::Object(map));
        return;
    }
    for (name, value) in lines {
        println!("{}", shell.set(name, value));
    }
    println!("{}", shell.hint(&command_line()));
}
