//! The name that this program was started by. Under the name docker-machine, that of a link, it reads that program's
//! command lines and answers in its words, so that scripts that were written for it go on. Only the command line knows.
//!
//! The words are those of docker-machine's sources: `commands/*.go`, `libmachine/libmachine.go`, `libmachine/host/host.go`,
//! `libmachine/mcnerror/errors.go`. It logged to standard output, and errors to standard error.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use forge::machine::survey::Condition;
use forge_driver::{Error, Fact, Kind, Result, State};

use super::shell::of_any_name;
use super::{DEFAULT_MACHINE, ask, classic_swarm};

/// The name that this program was started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persona {
    /// Its own, or any but the other one.
    Forge,
    /// That of a link, whose users expect what docker-machine did.
    DockerMachine,
}

/// Its name.
const NAME: &str = "docker-machine";

/// Scripts ask for the docker-machine that they need at least; its last release has all they can ask for.
const VERSION: &str = concat!("version 0.16.2, build forge-", env!("CARGO_PKG_VERSION"));

/// What it said of itself.
const ABOUT: &str = "Create and manage machines running Docker.";

/// Its help began with the usage (`cli.AppHelpTemplate` in cmd/machine.go).
const HELP: &str =
    "{before-help}{usage-heading} {usage}\n\n{about-with-newline}\n{all-args}{after-help}";

/// The driver of a machine for which none is named, where it works.
pub const DRIVER: &str = "virtualbox";

impl Persona {
    /// By the first word of a command line.
    pub fn of(program: Option<&OsString>) -> Self {
        let name = program.and_then(|program| Path::new(program).file_name());
        match name.and_then(OsStr::to_str) {
            Some("docker-machine" | "docker-machine.exe") => Self::DockerMachine,
            _ => Self::Forge,
        }
    }

    /// The whole command, as it goes by this name.
    pub fn dress(self, command: Command) -> Command {
        match self {
            Self::Forge => command,
            Self::DockerMachine => without_meaning(command)
                .name(NAME)
                .about(ABOUT)
                .long_about(None::<&str>)
                .help_template(HELP)
                .mut_subcommands(|command| command.help_template(HELP))
                .version(VERSION)
                .mut_subcommand("create", |create| {
                    classic_swarm::options(create)
                        .mut_arg("names", |names| names.help("Names of the machines"))
                })
                .mut_subcommand("env", |env| {
                    env.mut_arg("shell", |shell| shell.value_parser(of_any_name))
                })
                // There, it is a machine of that name.
                .mut_subcommand("config", |config| {
                    config.mut_subcommand("show", |show| show.name("__settings").hide(true))
                })
                // That they are missing is told in words of its own.
                .mut_subcommand("rm", |rm| {
                    rm.mut_arg("names", |names| names.required(false))
                }),
        }
    }

    /// What the help of every command says of exit codes.
    pub fn codes(self) -> &'static str {
        match self {
            Self::Forge => {
                "Exit codes: 0 done, 1 failed, 2 wrong usage, or a plan that has changes (`cluster up --dry-run`), 3 a pre-check failed and nothing was touched, 130 interrupted; `forge ssh` ends with the code of the remote command."
            }
            Self::DockerMachine => {
                "Exit codes: 0 done, or the answer to a question was not yes, 1 failed, 3 the pre-create check failed, 130 interrupted; `docker-machine ssh` ends with the code of the remote command."
            }
        }
    }

    /// The name and the version of this program.
    pub fn version(self) -> String {
        match self {
            Self::Forge => concat!("forge ", env!("CARGO_PKG_VERSION")).to_owned(),
            Self::DockerMachine => format!("{NAME} {VERSION}"),
        }
    }

    /// The word for a state. docker-machine had none for a machine that is not there, and an empty one where nothing is known
    /// to be behind a name.
    pub fn state(self, condition: Condition) -> String {
        match (self, condition) {
            (Self::DockerMachine, Condition::Told(State::Absent)) => State::Error.to_string(),
            (Self::DockerMachine, Condition::Told(State::None)) => String::new(),
            _ => condition.to_string(),
        }
    }

    /// Says on standard output what docker-machine said there, and forge does not.
    pub fn say(self, text: &str) {
        if self == Self::DockerMachine {
            println!("{text}");
        }
    }

    /// Asks whether these machines are to be removed, as docker-machine did: a line of any standard input is an answer, and
    /// its end is a no. Nothing is asked where the user is `sure`.
    ///
    /// # Errors
    /// As [`ask::line`].
    pub fn may_remove(self, names: &[String], sure: bool) -> Result<bool> {
        self.say(&format!("About to remove {}", names.join(", ")));
        self.say("WARNING: This action will delete both local reference and remote instance.");
        if sure {
            return Ok(true);
        }
        Ok(self.ask("Are you sure?")?.unwrap_or(false))
    }

    /// Asks as docker-machine did (`confirmInput`): a line of any standard input is an answer; `None` where there is none.
    ///
    /// # Errors
    /// As [`ask::line`].
    pub fn ask(self, question: &str) -> Result<Option<bool>> {
        let mut out = std::io::stdout();
        let _ = write!(out, "{question} (y/n): ").and_then(|()| out.flush());
        let answer = ask::line()?.filter(|answer| !answer.trim().is_empty());
        Ok(answer.map(|answer| yes(&answer)))
    }
}

/// One word that begins with a y.
fn yes(answer: &str) -> bool {
    let mut words = answer.split_whitespace();
    let first = words.next().unwrap_or_default();
    words.next().is_none() && first.to_lowercase().starts_with('y')
}

/// Options that are taken and mean nothing here: crashes are reported nowhere, and GitHub is not asked.
fn without_meaning(command: Command) -> Command {
    let token = |name: &'static str| Arg::new(name).long(name).value_name("TOKEN");
    [token("bugsnag-api-token"), token("github-api-token")]
        .into_iter()
        .fold(command, |command, option| {
            command.arg(option.global(true).hide(true))
        })
}

/// What is printed when the work of `command` on a machine begins.
pub fn begun(command: &str, machine: &str) -> Option<String> {
    Some(match command {
        "create" => "Creating machine...".to_owned(),
        "start" => format!("Starting {machine:?}..."),
        "stop" => format!("Stopping {machine:?}..."),
        "kill" => format!("Killing {machine:?}..."),
        "restart" => format!("Restarting {machine:?}..."),
        "upgrade" => "Upgrading docker...".to_owned(),
        "provision" => {
            "Waiting for SSH to be available...\nDetecting the provisioner...".to_owned()
        }
        _ => return None,
    })
}

/// What is printed when the work of `command` on a machine is done and changed something.
pub fn done(command: &str, machine: &str) -> Option<String> {
    Some(match command {
        "create" => "Docker is up and running!".to_owned(),
        "start" => format!("Machine {machine:?} was started."),
        "stop" => format!("Machine {machine:?} was stopped."),
        "kill" => format!("Machine {machine:?} was killed."),
        "rm" => format!("Successfully removed {machine}"),
        "upgrade" => "Restarting docker...".to_owned(),
        _ => return None,
    })
}

/// Whether docker-machine told how the work of `command` on a machine goes on.
pub fn has_words(command: &str) -> bool {
    begun(command, "").is_some() || done(command, "").is_some()
}

/// What is printed at the end of `command` when all went well.
pub fn concluded(command: &str) -> Option<String> {
    let past = match command {
        "start" => "Started",
        "restart" => "Restarted",
        _ => return None,
    };
    Some(format!(
        "{past} machines may have new IP addresses. You may need to re-run the `docker-machine env` command."
    ))
}

/// What is printed after a machine was created.
pub fn created(machine: &str) -> String {
    let program = std::env::args_os().next().unwrap_or_else(|| NAME.into());
    let program = program.to_string_lossy();
    format!(
        "To see how to connect your Docker Client to the Docker Engine running on this virtual machine, run: {program} env {machine}"
    )
}

/// What is said of a command line that makes no sense; `None` for help and the version, which are no errors.
pub fn refusal(error: &clap::Error, program: Option<&OsString>, command: &str) -> Option<String> {
    let invalid = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return None,
        ErrorKind::InvalidSubcommand if command.is_empty() => {
            if let Some(word) = invalid(ContextKind::InvalidSubcommand) {
                let program =
                    program.map_or_else(|| NAME.into(), |program| program.to_string_lossy());
                return Some(format!(
                    "{NAME}: '{word}' is not a {NAME} command. See '{program} --help'."
                ));
            }
        }
        // A second name is taken for a subcommand.
        ErrorKind::ArgumentConflict if command == "config" => {
            return Some("Error: Expected one machine name as an argument".to_owned());
        }
        ErrorKind::UnknownArgument => {
            let word = invalid(ContextKind::InvalidArg);
            let name = word.is_some_and(|word| !word.starts_with('-'));
            match command {
                "env" | "config" | "version" if name => {
                    return Some("Error: Expected one machine name as an argument".to_owned());
                }
                "active" if name => {
                    return Some("Error: Too many arguments given".to_owned());
                }
                _ => {}
            }
        }
        _ => {}
    }
    Some(format!("Incorrect Usage.\n\n{}", error.render()))
}

/// Commands whose names are no machines'.
const OF_OTHER_THINGS: [&str; 5] = ["cluster", "image", "import", "credentials", "doctor"];

/// A command line, as far as what is said of errors depends on it.
#[derive(Debug)]
pub struct Line {
    command: String,
    /// The machines that it names; `None` where a command is about other things.
    names: Option<Vec<String>>,
    /// What can be said to a command that is about machines and names none.
    help: Option<String>,
}

impl Line {
    /// By what the parser made of it, which has read it by `whole`.
    pub fn read(whole: &mut Command, matches: &ArgMatches) -> Self {
        let mut line = Self::of(matches);
        if matches!(line.command.as_str(), "create" | "rm")
            && line.names_none()
            && let Some(command) = whole.find_subcommand_mut(&line.command)
        {
            line.help = Some(command.render_help().to_string());
        }
        line
    }

    /// By what the parser made of it.
    pub fn of(matches: &ArgMatches) -> Self {
        match matches.subcommand() {
            Some((command, inner)) => Self {
                command: command.to_owned(),
                names: (!OF_OTHER_THINGS.contains(&command)).then(|| {
                    let names = ["names", "name"].map(|id| given(inner, id));
                    names.concat()
                }),
                help: None,
            },
            None => Self {
                command: String::new(),
                names: None,
                help: None,
            },
        }
    }

    /// An error, with a line end: in docker-machine's words where it had some, else on one line with what to try.
    pub fn words(&self, error: &Error) -> String {
        let hint = |mut text: String| {
            if let Some(hint) = error.deepest_hint() {
                text.push_str(&format!("hint: {hint}\n"));
            }
            text
        };
        if let Some(fact) = error.deepest_fact()
            && let Some(words) = self.fact(fact)
        {
            let text = format!("{words}\n");
            return match fact {
                // Nobody has such a program; which drivers there are helps more.
                Fact::NoDriver(_) => hint(text),
                _ => text,
            };
        }
        let line = error.line();
        hint(match (error.kind(), self.command.as_str()) {
            (Kind::Precheck, _) => format!("Error with pre-create check: {line:?}\n"),
            (Kind::Usage, "create") => {
                format!("Error setting machine configuration from flags provided: {line}\n")
            }
            (_, "create") => format!("Error creating machine: {line}\n"),
            _ => format!("{line}\n"),
        })
    }

    /// The help that docker-machine printed before it said that no machine was named.
    pub fn help(&self, error: &Error) -> Option<&str> {
        let fits = matches!(error.deepest_fact(), Some(Fact::NoName));
        self.help.as_deref().filter(|_| fits)
    }

    /// The exit code for an error of this kind.
    pub fn code(kind: Kind) -> u8 {
        match kind {
            Kind::Precheck => 3,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }

    fn fact(&self, fact: &Fact) -> Option<String> {
        let command = self.command.as_str();
        Some(match fact {
            Fact::NothingYet => {
                let names = self.names.as_deref()?;
                if names.is_empty() {
                    no_default()
                } else {
                    let all: Vec<String> = names.iter().map(|name| self.missing(name)).collect();
                    all.join("\n")
                }
            }
            Fact::NoMachine(name) if name == DEFAULT_MACHINE && self.names_none() => no_default(),
            Fact::NoMachine(name) => self.missing(name),
            Fact::Exists(name) => format!("Docker machine {name:?} already exists"),
            Fact::NoDriver(id) => format!(
                "Driver {id:?} not found. Do you have the plugin binary \"docker-machine-driver-{id}\" accessible in your PATH?"
            ),
            Fact::BadName => "Error creating machine: Invalid hostname specified. Allowed hostname chars are: 0-9a-zA-Z . -".to_owned(),
            Fact::NoName if command == "create" => "Error: No machine name specified".to_owned(),
            Fact::NoName => {
                "Error: Expected to get one or more machine names as arguments".to_owned()
            }
            Fact::ExtraNames(names) => format!(
                "Invalid command line. Found extra arguments [{}]",
                names.join(" ")
            ),
            Fact::NameGiven => {
                "Error: Expected no machine name when the -u flag is present".to_owned()
            }
            Fact::NotRunning(name) => match command {
                "ssh" => format!("Error: Cannot run SSH command: Host {name:?} is not running"),
                "upgrade" => "Error: machine must be running to upgrade.".to_owned(),
                "ip" => "Error getting IP address: Host is not running".to_owned(),
                _ => format!("{}Host is not running", self.checking()),
            },
            Fact::NoActive => "No active host found".to_owned(),
            Fact::NoTls(_, why) if command == "version" => {
                format!("Unable to query docker version: {why}")
            }
            Fact::NoTls(host, why) => format!(
                "{}Error checking and/or regenerating the certs: There was an error validating certificates for host {host:?}: {why}\nYou can attempt to regenerate them using 'docker-machine regenerate-certs [name]'.",
                self.checking()
            ),
            Fact::Already(name, state) => {
                let state = state.to_string().to_lowercase();
                format!("Machine {name:?} is already {state}.")
            }
            Fact::NoPower(words) => words.clone(),
            Fact::NoTruth(variable, value) => format!(
                "Error parsing boolean value from {variable}: strconv.ParseBool: parsing {value:?}: invalid syntax"
            ),
            Fact::WrongCount => "Improper number of arguments".to_owned(),
            Fact::NoProgram(program) => {
                let what = match *program {
                    "rsync" => "the --delta option",
                    "fusermount" => "the unmount option",
                    "sshfs" => "the mount feature",
                    _ => return None,
                };
                format!("You must have a copy of the {program} binary locally to use {what}")
            }
        })
    }

    /// What the commands that check the connection put before what they found.
    fn checking(&self) -> &'static str {
        match self.command.as_str() {
            "env" => "Error checking TLS connection: ",
            "config" => "Error running connection boilerplate: ",
            _ => "",
        }
    }

    /// Whether it is about machines and names none.
    pub fn names_none(&self) -> bool {
        self.names.as_ref().is_some_and(Vec::is_empty)
    }

    fn missing(&self, name: &str) -> String {
        let words = format!(
            "Docker machine {name:?} does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one."
        );
        match self.command.as_str() {
            "rm" => format!("Error removing host {name:?}: {words}"),
            // Said twice, in `load` and in what called it.
            "scp" => format!("Error loading host: Error loading host: {words}"),
            "mount" => format!("error loading host: Error loading host: {words}"),
            _ => words,
        }
    }
}

fn no_default() -> String {
    format!("Error: No machine name(s) specified and no {DEFAULT_MACHINE:?} machine exists")
}

/// The words that were given for an argument of the command, where it has it.
fn given(matches: &ArgMatches, id: &str) -> Vec<String> {
    let said = matches!(matches.try_contains_id(id), Ok(true))
        && matches.value_source(id) == Some(ValueSource::CommandLine);
    if !said {
        return Vec::new();
    }
    match matches.try_get_many::<String>(id) {
        Ok(Some(words)) => words.cloned().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(command: &str, names: &[&str]) -> Line {
        Line {
            command: command.to_owned(),
            names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            help: None,
        }
    }

    fn said(line: &Line, fact: Fact) -> String {
        line.words(&Error::new(Kind::Failed, "x").fact(fact).context("y"))
    }

    #[test]
    fn the_name_is_that_of_the_program_and_not_of_its_folder() {
        let of = |program: &str| Persona::of(Some(&program.into()));
        for program in [
            "docker-machine",
            "./docker-machine",
            "/usr/bin/docker-machine",
            "docker-machine.exe",
        ] {
            assert_eq!(of(program), Persona::DockerMachine, "{program}");
        }
        for program in ["forge", "/opt/docker-machine/forge", "docker-machine2", ""] {
            assert_eq!(of(program), Persona::Forge, "{program}");
        }
        assert_eq!(Persona::of(None), Persona::Forge);
    }

    #[test]
    fn a_yes_is_one_word_that_begins_with_it() {
        for answer in ["y\n", "Y", "yes\n", " yup \n"] {
            assert!(yes(answer), "{answer:?}");
        }
        for answer in ["", "\n", "n\n", "no", "oh yes", "y n\n"] {
            assert!(!yes(answer), "{answer:?}");
        }
    }

    #[test]
    fn facts_are_told_to_the_letter() {
        let missing = "Docker machine \"n1\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\n";
        let gone = || Fact::NoMachine("n1".to_owned());
        assert_eq!(said(&line("ip", &["n1"]), gone()), missing);
        assert_eq!(
            said(&line("rm", &["n1"]), gone()),
            format!("Error removing host \"n1\": {missing}")
        );
        let no_default = "Error: No machine name(s) specified and no \"default\" machine exists\n";
        let default = || Fact::NoMachine("default".to_owned());
        assert_eq!(said(&line("ip", &[]), default()), no_default);
        assert_eq!(
            said(&line("ip", &["default"]), default()),
            missing.replace("n1", "default")
        );
        assert_eq!(said(&line("ip", &[]), Fact::NothingYet), no_default);
        assert_eq!(said(&line("ip", &["n1"]), Fact::NothingYet), missing);
        assert_eq!(
            said(
                &line("start", &["n1"]),
                Fact::Already("n1".to_owned(), State::Running)
            ),
            "Machine \"n1\" is already running.\n"
        );
    }

    #[test]
    fn an_error_without_words_of_its_own_is_one_line_and_what_to_try() {
        let error = |kind| {
            Error::new(kind, "there is no `kvm`")
                .context("failed")
                .hint("load it")
        };
        assert_eq!(
            line("create", &["n1"]).words(&error(Kind::Precheck)),
            "Error with pre-create check: \"failed: there is no `kvm`\"\nhint: load it\n"
        );
        assert_eq!(
            line("start", &["n1"]).words(&error(Kind::Io)),
            "failed: there is no `kvm`\nhint: load it\n"
        );
        let about_clusters = Line {
            command: "cluster".to_owned(),
            names: None,
            help: None,
        };
        assert_eq!(said(&about_clusters, Fact::NothingYet), "y: x\n");
    }

    #[test]
    fn codes_are_those_of_docker_machine() {
        assert_eq!(Line::code(Kind::Precheck), 3);
        assert_eq!(Line::code(Kind::Usage), 1);
        assert_eq!(Line::code(Kind::NotFound), 1);
    }
}
