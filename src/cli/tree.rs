//! The tree of all commands, as the parser has it: with the options of drivers, and with what is said alike of every command.

use std::ffi::OsString;

use clap::{Command, CommandFactory};
use forge::registry::{self, Entry, Pick};

use super::Cli;
use super::persona::{self, Persona};

/// The driver that is taken because none is named. The host is looked at for the commands alone that have a
/// driver's options.
pub fn picked(persona: Persona, words: &[OsString], named: Option<&str>) -> Option<Pick> {
    let asks = words.iter().any(|word| word == "create" || word == "up");
    let first = (persona == Persona::DockerMachine).then_some(persona::DRIVER);
    (named.is_none() && asks).then(|| registry::pick(words, first))
}

/// The whole command, with the options of one driver; the named one's stand in the help.
pub fn command(persona: Persona, named: Option<&str>, picked: Option<&Pick>) -> Command {
    let entry = named
        .and_then(|id| registry::find(id).ok())
        .or(picked.map(|picked| picked.entry))
        .unwrap_or(&registry::all()[0]);
    let show = named.is_some();
    let command = whole(persona, |command| {
        with_options(persona, command, entry, show)
    });
    without_empty_variables(command)
}

/// An empty variable says nothing, whatever its option takes.
fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|option| {
            let value = option.get_env().and_then(std::env::var_os);
            if value.is_some_and(|value| value.is_empty()) {
                option.env(None::<&str>)
            } else {
                option
            }
        })
        .mut_subcommands(without_empty_variables)
}

/// The whole command, with the options of all drivers: to be read about, not to be parsed by.
pub fn everything(persona: Persona) -> Command {
    whole(persona, |command| {
        let entries = registry::all().iter();
        entries.fold(command, |command, entry| {
            with_options(persona, command, entry, true)
        })
    })
}

/// All commands; those that make machines get the options of drivers.
fn whole(persona: Persona, options: impl Fn(Command) -> Command) -> Command {
    let command = Cli::command()
        .mut_subcommand("create", &options)
        .mut_subcommand("cluster", |cluster| cluster.mut_subcommand("up", &options));
    persona.dress(with_codes(command, persona.codes()))
}

/// A command with the options of a driver, which stand in its help or not.
fn with_options(persona: Persona, command: Command, entry: &Entry, show: bool) -> Command {
    let options = driver_options(persona, entry);
    let options = options.get_arguments().cloned().map(|option| {
        let hidden = option.is_hide_set() || !show;
        option.hide(hidden)
    });
    command.args(options)
}

/// A command that has the options of a driver and nothing else: neither its groups nor its description could stand beside
/// those of another driver.
fn driver_options(persona: Persona, entry: &Entry) -> Command {
    let options = (entry.augment)(Command::new(entry.id));
    match persona {
        Persona::Forge => options,
        Persona::DockerMachine => (entry.as_docker_machine)(options),
    }
}

/// The exit codes stand in the help of every command.
fn with_codes(command: Command, codes: &'static str) -> Command {
    command
        .after_help(codes)
        .mut_subcommands(|command| with_codes(command, codes))
}

/// The driver that the words or the environment name; the parser proper judges it later.
pub fn driver_named(words: &[OsString]) -> Option<String> {
    let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let value = match (word.strip_prefix("--driver"), short_driver(word)) {
            (Some(""), _) | (_, Some("")) => words.next(),
            (Some(rest), _) => rest.strip_prefix('='),
            (None, short) => short,
        };
        if let Some(value) = value {
            return Some(value.to_owned());
        }
    }
    configured_driver()
}

/// What stands behind `-d`, which may stand behind switches of one letter (`-yd virtualbox`); of the commands with a driver
/// those letters are switches alone.
fn short_driver(word: &str) -> Option<&str> {
    let letters = word
        .strip_prefix('-')
        .filter(|rest| !rest.starts_with('-'))?;
    let (before, behind) = letters.split_once('d')?;
    before
        .chars()
        .all(|letter| SWITCHES.contains(&letter))
        .then(|| behind.strip_prefix('=').unwrap_or(behind))
}

/// The switches of one letter that `create` and `cluster up` have.
const SWITCHES: [char; 2] = ['D', 'y'];

/// The driver that the command at `path` takes by the defaults of its options.
pub fn driver_given(whole: &Command, path: &[&str]) -> Option<String> {
    let leaf = path
        .iter()
        .try_fold(whole, |command, name| command.find_subcommand(name))?;
    let option = leaf
        .get_arguments()
        .find(|option| option.get_long() == Some("driver"))?;
    let named = option.get_default_values().first()?;
    Some(named.to_str()?.to_owned())
}

/// The driver that the environment names; an empty variable names none.
fn configured_driver() -> Option<String> {
    std::env::var("FORGE_DRIVER")
        .ok()
        .filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_command_holds_together_with_every_driver() {
        for persona in [Persona::Forge, Persona::DockerMachine] {
            for entry in registry::all() {
                command(persona, Some(entry.id), None).debug_assert();
            }
            everything(persona).debug_assert();
        }
        command(Persona::Forge, None, None).debug_assert();
    }

    #[test]
    fn what_docker_machine_had_besides_stays_out_of_the_help() {
        let mut whole = command(Persona::Forge, Some("virtualbox"), None);
        let create = whole.find_subcommand_mut("create").expect("a command");
        let help = create.render_long_help().to_string();
        assert!(help.contains("--virtualbox-memory"), "{help}");
        assert!(!help.contains("boot2docker"), "{help}");
    }

    #[test]
    fn the_switches_that_may_stand_before_a_driver_are_all_there_are() {
        let whole = command(Persona::Forge, None, None);
        for path in [&["create"][..], &["cluster", "up"]] {
            let start = Some(&whole);
            let leaf = path
                .iter()
                .fold(start, |at, name| at?.find_subcommand(name));
            let leaf = leaf.expect("a command");
            let options = leaf.get_arguments().chain(whole.get_arguments());
            let switches =
                options.filter(|option| matches!(option.get_action(), clap::ArgAction::SetTrue));
            let mut letters: Vec<char> = switches.filter_map(clap::Arg::get_short).collect();
            letters.sort_unstable();
            letters.retain(|letter| !SWITCHES.contains(letter));
            assert!(letters.is_empty(), "{path:?}: {letters:?}");
        }
    }

    #[test]
    fn the_driver_is_found_wherever_it_stands() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
        for text in [
            "forge create n1 --driver x",
            "forge create --driver=x n1",
            "forge cluster up -d x",
            "forge create -dx n1",
            "forge create -d=x n1",
            "forge create -yd x n1",
            "forge create -Dydx n1",
            "forge create -D --driver x n1",
        ] {
            assert_eq!(driver_named(&words(text)).as_deref(), Some("x"), "{text}");
        }
        assert_eq!(
            driver_named(&words("forge ssh n1 -- --driver x")),
            std::env::var("FORGE_DRIVER").ok()
        );
    }
}
