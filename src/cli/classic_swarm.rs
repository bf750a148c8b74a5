//! The classic Swarm, which docker-machine set up: a container that spoke for many engines, and was given up. What asked
//! for it is refused with what serves instead, since a machine that is made without it is not what was asked for.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use forge_driver::{Error, Kind, Result};

/// docker-machine's switches for it …
const SWITCHES: [&str; 3] = ["swarm", "swarm-experimental", "swarm-master"];
/// … and options with a value.
const OPTIONS: [&str; 7] = [
    "swarm-addr",
    "swarm-discovery",
    "swarm-host",
    "swarm-image",
    "swarm-join-opt",
    "swarm-opt",
    "swarm-strategy",
];

/// The command `create`, with these options.
pub fn options(create: Command) -> Command {
    let option = |name: &'static str| Arg::new(name).long(name).hide(true);
    let switches = SWITCHES.map(|name| option(name).action(ArgAction::SetTrue));
    let options = OPTIONS.map(|name| option(name).action(ArgAction::Append));
    create.args(switches).args(options)
}

/// Refuses a `create` that has one of them.
///
/// # Errors
/// [`Kind::Usage`] with what serves instead.
pub fn none_in(matches: &ArgMatches) -> Result<()> {
    let Some(("create", create)) = matches.subcommand() else {
        return Ok(());
    };
    let mut names = SWITCHES.iter().chain(&OPTIONS);
    let said = names.find(|name| {
        matches!(create.try_contains_id(name), Ok(true))
            && create.value_source(name) == Some(ValueSource::CommandLine)
    });
    said.map_or(Ok(()), |name| {
        Err(refused(name).hint("`forge cluster up` makes a swarm of several machines"))
    })
}

/// Refuses the switch of commands that lead to a machine.
///
/// # Errors
/// As [`none_in`].
pub fn not_led_to(asked: bool) -> Result<()> {
    if !asked {
        return Ok(());
    }
    Err(refused("swarm").hint("`forge cluster env` leads to a manager of a cluster"))
}

fn refused(name: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!("`--{name}` is about the classic Swarm, which forge does not make"),
    )
}
