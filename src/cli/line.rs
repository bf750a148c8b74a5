//! A command line, from its words to what the parser makes of them.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::ArgMatches;
use clap::error::ErrorKind;
use forge::registry::Pick;
use forge_driver::Error;

use super::argv::{self, Rewritten};
use super::defaults::{self, Defaults};
use super::persona::{self, Persona};
use super::report;
use super::tree::{self, command, driver_named, picked};

/// A command line that makes sense.
pub struct Parsed {
    /// What the parser made of it.
    pub matches: ArgMatches,
    /// The driver that is taken because none is named.
    pub picked: Option<Pick>,
    /// What settings say.
    pub defaults: Defaults,
}

/// Parses, and once more where settings say what the line does not; the exit code where nothing is to be run.
pub fn parsed(persona: Persona, words: &[OsString], asked: &str) -> Result<Parsed, ExitCode> {
    let named = driver_named(words);
    let mut picked = picked(persona, words, named.as_deref());
    let mut whole = command(persona, named.as_deref(), picked.as_ref());
    let matches = match whole.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        // There, no words at all are no error.
        Err(error)
            if persona == Persona::DockerMachine
                && error.kind() == ErrorKind::MissingSubcommand =>
        {
            let _ = whole.print_help();
            return Err(ExitCode::SUCCESS);
        }
        Err(error) => return Err(refused(persona, &error, words.first(), asked)),
    };
    if persona == Persona::DockerMachine {
        report::as_docker_machine(persona::Line::read(&mut whole, &matches));
    }
    if matches.get_flag("json") {
        report::as_json();
    }
    let failed = |error: Error| report::failed(&error, None);
    let defaults = Defaults::load(&matches, || tree::everything(persona)).map_err(failed)?;
    let path = defaults::path(&matches);
    let fresh = command(persona, named.as_deref(), picked.as_ref());
    let Some(mut whole) = defaults.applied(fresh, &path).map_err(failed)? else {
        return Ok(Parsed {
            matches,
            picked,
            defaults,
        });
    };
    // The options are those of a driver, and which one that is may be what was said.
    if named.is_none()
        && let Some(named) = tree::driver_given(&whole, &path)
    {
        picked = None;
        let fresh = command(persona, Some(&named), None);
        if let Some(again) = defaults.applied(fresh, &path).map_err(failed)? {
            whole = again;
        }
    }
    match whole.try_get_matches_from_mut(words) {
        Ok(matches) => Ok(Parsed {
            matches,
            picked,
            defaults,
        }),
        Err(error) => Err(refused(persona, &error, words.first(), asked)),
    }
}

/// The command line, in the form that the parser reads.
pub fn read(persona: Persona, words: Vec<OsString>) -> Rewritten {
    let sealed = words.iter().any(|word| word == "ssh");
    match persona {
        Persona::Forge => Rewritten {
            words: if sealed {
                argv::sealed(&tree::everything(persona), words)
            } else {
                words
            },
            command: String::new(),
        },
        Persona::DockerMachine => {
            // Which driver's options there are is known only once the line is read.
            let everything = tree::everything(persona);
            let Rewritten { words, command } = argv::rewritten(&everything, words);
            Rewritten {
                words: argv::sealed(&everything, words),
                command,
            }
        }
    }
}

/// Says that a command line makes no sense, or shows the help that was asked for.
fn refused(
    persona: Persona,
    error: &clap::Error,
    program: Option<&OsString>,
    asked: &str,
) -> ExitCode {
    if persona == Persona::Forge {
        // Help and version go to stdout and are no error; a closed pipe ends them silently.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    if let Some(refusal) = persona::refusal(error, program, asked) {
        report::note(refusal.trim_end());
        return ExitCode::FAILURE;
    }
    let _ = write!(std::io::stdout(), "{}", error.render());
    ExitCode::SUCCESS
}
