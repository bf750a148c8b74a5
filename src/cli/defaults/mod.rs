//! What options are where neither a flag nor a variable of forge's says it: docker-machine's variables, then `forge.toml`.
//!
//! They become the defaults of the parser, so each value is read and judged as a flag's would be. Which options there are
//! is the parser's knowledge alone: no second list of them exists.

mod file;
mod old;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use forge::registry::{self, Resolved};
use forge_driver::{Error, Kind, Result};

use file::{Entry, Scope};

pub use file::driver_of;
pub use old::variable;

/// The name of the files.
const FILE: &str = "forge.toml";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A variable of docker-machine's.
    Variable(&'static str),
    /// A line of a file.
    File(PathBuf, usize),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// What an option is by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its values, as they would be typed.
    pub texts: Vec<String>,
    /// Where they came from.
    pub source: Source,
    /// The command that a file says it for alone.
    pub of_command: bool,
}

/// All that files say.
#[derive(Default)]
pub struct Defaults {
    /// What counts most comes first.
    entries: Vec<Entry>,
}

impl Defaults {
    /// Reads the user's file and that of the store that `matches` lead to. `whole` has the options of all drivers.
    ///
    /// # Errors
    /// [`Kind::Usage`] with file and line for what is no option and for values that none could have; [`Kind::Refused`] for a
    /// file into which others may write.
    pub fn load(matches: &ArgMatches, whole: impl Fn() -> Command) -> Result<Self> {
        let mut defaults = Self::default();
        let user = users().map(|folder| folder.join(FILE));
        if let Some(path) = &user {
            defaults.entries = file::read(path, &whole)?;
        }
        let Some(store) = defaults.store(matches)? else {
            return Ok(defaults);
        };
        let path = store.join(FILE);
        if user.as_ref() != Some(&path) {
            let mut entries = file::read(&path, &whole)?;
            if let Some(entry) = entries.iter().find(|entry| entry.long == "storage-path") {
                return Err(entry.wrong("the file of a store cannot say where the store is"));
            }
            entries.append(&mut defaults.entries);
            defaults.entries = entries;
        }
        Ok(defaults)
    }

    /// The folder of the store: by flag or variable, else as the user's file says, else below the home.
    fn store(&self, matches: &ArgMatches) -> Result<Option<PathBuf>> {
        if let Ok(Some(path)) = matches.try_get_one::<PathBuf>("storage_path") {
            return Ok(Some(path.clone()));
        }
        let option = Arg::new("storage_path").long("storage-path").global(true);
        if let Some(given) = self.given(&[], &option)? {
            return Ok(given.texts.first().map(PathBuf::from));
        }
        Ok(store_at_home())
    }

    /// What an option of the command at `path` is by default; `None` where nothing says it but the program itself.
    ///
    /// # Errors
    /// [`Kind::Usage`] when a variable of docker-machine's makes no sense.
    pub fn given(&self, path: &[&str], option: &Arg) -> Result<Option<Given>> {
        let Some(long) = option.get_long() else {
            return Ok(None);
        };
        if let Some(given) = old::given(long, option)? {
            return Ok(Some(given));
        }
        let fits = |entry: &&Entry| {
            entry.long == long
                && match &entry.scope {
                    Scope::Any => entry.global == option.is_global_set(),
                    Scope::Driver => true,
                    // An option of all commands can be said for one.
                    Scope::Command(of) if option.is_global_set() => starts_with(path, of),
                    Scope::Command(of) => path == of.as_slice(),
                }
        };
        Ok(self.entries.iter().find(fits).map(|entry| Given {
            texts: entry.texts.clone(),
            source: Source::File(entry.file.clone(), entry.line),
            of_command: matches!(entry.scope, Scope::Command(_)),
        }))
    }

    /// The origins of a driver's configuration, with those that the parser took for its own defaults put right.
    pub fn told(&self, resolved: Resolved, driver: &registry::Entry) -> Resolved {
        let (config, mut origins) = resolved;
        let command = (driver.augment)(Command::new(driver.id));
        for (flag, origin) in origins
            .iter_mut()
            .filter(|(_, origin)| *origin == "default")
        {
            let option = command
                .get_arguments()
                .find(|option| option.get_long() == Some(flag));
            if let Some(Ok(Some(given))) = option.map(|option| self.given(&[], option)) {
                *origin = match given.source {
                    Source::Variable(_) => "env".to_owned(),
                    Source::File(..) => "file".to_owned(),
                };
            }
        }
        (config, origins)
    }

    /// The parser, with these defaults in the command at `path`; `None` where none of its options has any.
    ///
    /// # Errors
    /// As [`Self::given`]; when a value is none that the option could have.
    pub fn applied(&self, whole: Command, path: &[&str]) -> Result<Option<Command>> {
        let (command, any) = self.applied_from(whole, path, 0)?;
        Ok(any.then_some(command))
    }

    fn applied_from(
        &self,
        mut command: Command,
        path: &[&str],
        depth: usize,
    ) -> Result<(Command, bool)> {
        let mut found = Vec::new();
        for option in command.get_arguments() {
            let of = if option.is_global_set() {
                path
            } else {
                &path[..depth]
            };
            // An empty variable says nothing.
            if option.get_env().is_some_and(is_set) {
                continue;
            }
            if let Some(given) = self.given(of, option)? {
                if matches!(given.source, Source::Variable(name) if old::BY_COMMANDS.contains(&name))
                {
                    continue;
                }
                judge(&command, option, &given)?;
                found.push((option.get_id().clone(), given));
            }
        }
        let mut any = !found.is_empty();
        for (id, given) in found {
            // A process reads its command line once: what is leaked is as large as the files are.
            let texts: Vec<&'static str> =
                given.texts.into_iter().map(|text| &*text.leak()).collect();
            command = command.mut_arg(id.as_str(), |option| {
                option.default_values(texts).env(None::<&str>)
            });
        }
        if let Some(name) = path.get(depth) {
            let inner = command.find_subcommand(name).cloned();
            if let Some(inner) = inner {
                let (inner, more) = self.applied_from(inner, path, depth + 1)?;
                any |= more;
                command = command.mut_subcommand(name, |_| inner);
            }
        }
        Ok((command, any))
    }
}

/// The store that is meant where nothing says another: in the home.
pub fn store_at_home() -> Option<PathBuf> {
    home().map(|home| home.join(".forge"))
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}

fn starts_with(path: &[&str], of: &[String]) -> bool {
    path.len() >= of.len() && path.iter().zip(of).all(|(have, want)| have == want)
}

/// The names of the subcommands that a line leads through.
pub fn path(matches: &ArgMatches) -> Vec<&str> {
    let mut names = Vec::new();
    let mut at = matches;
    while let Some((name, inner)) = at.subcommand() {
        names.push(name);
        at = inner;
    }
    names
}

/// The folder of the user's own settings, by the XDG base directory specification: relative paths do not count.
fn users() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    named
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(home()?.join(".config")))
        .map(|folder| folder.join("forge"))
}

/// Whether a variable says anything.
fn is_set(name: &OsStr) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Whether an option is on or off and takes no value.
fn is_switch(option: &Arg) -> bool {
    matches!(
        option.get_action(),
        ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count
    )
}

/// Whether an option takes several values.
fn is_list(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Append)
        || option
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1)
}

/// Whether the values of an option must not be shown, nor lie in a file that everybody reads.
pub fn is_secret(option: &Arg) -> bool {
    let typed =
        option.get_value_parser().type_id() == std::any::TypeId::of::<forge::secret::Secret>();
    let long = option.get_long().unwrap_or_default();
    let last = long.rsplit('-').next().unwrap_or_default();
    typed || ["token", "secret", "password", "passphrase"].contains(&last) && !is_switch(option)
}

/// Refuses values that an option could not have been given as a flag.
fn judge(command: &Command, option: &Arg, given: &Given) -> Result<()> {
    let long = option.get_long().unwrap_or_default();
    let wrong = |why: String| {
        let text = format!("{}: `{long}` makes no sense", given.source);
        Error::new(Kind::Usage, text).because(why)
    };
    if given.texts.len() != 1 && !is_list(option) {
        return Err(wrong("it takes one value".to_owned()));
    }
    if is_switch(option) {
        let whether = ["true", "false"].contains(&given.texts[0].as_str());
        return if whether {
            Ok(())
        } else {
            Err(wrong("it is a switch: true or false".to_owned()))
        };
    }
    if let Some(path) = given.texts.first().map(Path::new)
        && option.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>()
        && matches!(given.source, Source::File(..))
        && path.is_relative()
        && path.components().count() > 1
    {
        return Err(wrong(format!(
            "`{}` begins nowhere: in a file, paths are absolute",
            path.display()
        )));
    }
    let words = given.texts.iter().map(|text| format!("--{long}={text}"));
    let judged = command
        .clone()
        // What variables say is not judged here.
        .mut_args(|option| option.env(None::<&str>))
        .no_binary_name(true)
        .try_get_matches_from(words);
    // What else is missing or excludes what is said of the line, not of the value.
    match judged {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidValue
                    | ErrorKind::ValueValidation
                    | ErrorKind::InvalidUtf8
                    | ErrorKind::NoEquals
                    | ErrorKind::TooManyValues
                    | ErrorKind::TooFewValues
                    | ErrorKind::WrongNumberOfValues
            ) =>
        {
            let text = error.to_string();
            let said: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("For more"))
                .filter(|line| !line.is_empty())
                .collect();
            let said = said.join(" ");
            Err(wrong(said.trim_start_matches("error: ").to_owned()))
        }
        _ => Ok(()),
    }
}
