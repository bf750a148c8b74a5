//! `forge.toml`: keys are flags without their dashes. Outside a table they are for all commands that have the flag, in a
//! table of a command for that command, and in a table of a driver, without the driver's name before them, for its machines.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use forge::registry;
use forge_driver::{Error, Kind, Result};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Given, Source, is_secret, judge};

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is said for.
    pub scope: Scope,
    /// The flag, without dashes.
    pub long: String,
    /// Whether it is a flag of all commands.
    pub global: bool,
    /// The values, as they would be typed.
    pub texts: Vec<String>,
    /// The file.
    pub file: PathBuf,
    /// Its line there.
    pub line: usize,
}

/// What a key is said for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All commands that have it.
    Any,
    /// One command, by its path.
    Command(Vec<String>),
    /// The driver whose flag it is.
    Driver,
}

impl Entry {
    /// That it cannot stand there.
    pub fn wrong(&self, why: &str) -> Error {
        let at = Source::File(self.file.clone(), self.line);
        Error::new(Kind::Usage, format!("{at}: `{}`: {why}", self.long))
    }
}

/// The keys of a file, those of tables first: what is said more exactly counts more. None where there is no file.
///
/// # Errors
/// [`Kind::Usage`] with the line of what cannot stand there; [`Kind::Refused`] when others may write into the file.
pub fn read(path: &Path, whole: &impl Fn() -> Command) -> Result<Vec<Entry>> {
    let failed = |error: std::io::Error| {
        Error::new(Kind::Io, format!("failed to read `{}`", path.display())).because(error)
    };
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let me = rustix::process::geteuid().as_raw();
    if ![0, me].contains(&found.uid()) || found.mode() & 0o022 != 0 {
        return Err(Error::new(
            Kind::Refused,
            format!("others may write into `{}`", path.display()),
        )
        .because("what it says decides which programs are run")
        .hint(format!("`chmod go-w {}`, if it is yours", path.display())));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let mut reader = Reader {
        path,
        text: &text,
        whole: whole(),
        entries: Vec::new(),
    };
    let table = DeTable::parse(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line(&text, span.start));
        reader
            .error(line, "this is no TOML")
            .because(error.message().to_owned())
    })?;
    reader.top(table.get_ref())?;
    let Reader { mut entries, .. } = reader;
    entries.sort_by_key(|entry| entry.scope == Scope::Any);
    Ok(entries)
}

/// The line of a place in a text, counted from one.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    whole: Command,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    fn error(&self, line: usize, what: &str) -> Error {
        let at = Source::File(self.path.to_owned(), line);
        Error::new(Kind::Usage, format!("{at}: {what}"))
    }

    fn top(&mut self, table: &DeTable<'_>) -> Result<()> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = line(self.text, key.span().start);
            if let DeValue::Table(inner) = value.get_ref() {
                if let Some(command) = self.whole.find_subcommand(name).cloned() {
                    self.command(&command, vec![name.to_owned()], inner)?;
                } else if registry::all().iter().any(|entry| entry.id == name) {
                    self.driver(name, inner)?;
                } else {
                    return Err(self
                        .error(
                            line,
                            &format!("`[{name}]` is neither a command nor a driver"),
                        )
                        .hint(
                            "`forge --help` shows the commands, `forge config show` the settings",
                        ));
                }
                continue;
            }
            let with: Vec<Command> = if option(&self.whole, name).is_some() {
                vec![self.whole.clone()]
            } else {
                all(&self.whole)
                    .filter(|command| option(command, name).is_some())
                    .cloned()
                    .collect()
            };
            if with.is_empty() {
                return Err(self
                    .error(line, &format!("no command has a flag `--{name}`"))
                    .hint("`forge COMMAND --help` shows the flags of a command; a driver's stand in a table of its name"));
            }
            if let Some(driver) = driver_of(name) {
                return Err(self.in_table(line, name, driver));
            }
            for (first, command) in with.iter().enumerate() {
                let entry = self.entry(command, name, Scope::Any, value, line)?;
                if first == 0 {
                    self.entries.push(entry);
                }
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &Command, path: Vec<String>, table: &DeTable<'_>) -> Result<()> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = line(self.text, key.span().start);
            if let DeValue::Table(inner) = value.get_ref() {
                let Some(deeper) = command.find_subcommand(name) else {
                    let table = path.join(".");
                    return Err(self.error(line, &format!("`[{table}.{name}]` is no command")));
                };
                let path = [path.clone(), vec![name.to_owned()]].concat();
                self.command(deeper, path, inner)?;
                continue;
            }
            if let Some(driver) = driver_of(name) {
                return Err(self.in_table(line, name, driver));
            }
            let whole = self.whole.clone();
            let of = if option(command, name).is_some() {
                command
            } else if option(&whole, name).is_some() {
                &whole
            } else {
                let words = path.join(" ");
                return Err(self
                    .error(line, &format!("`forge {words}` has no flag `--{name}`"))
                    .hint(format!("`forge {words} --help` shows the flags")));
            };
            let entry = self.entry(of, name, Scope::Command(path.clone()), value, line)?;
            self.entries.push(entry);
        }
        Ok(())
    }

    fn driver(&mut self, driver: &str, table: &DeTable<'_>) -> Result<()> {
        let command = driver_command(driver);
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = line(self.text, key.span().start);
            let long = format!("{driver}-{name}");
            if name.starts_with(&format!("{driver}-")) {
                return Err(self.in_table(line, name, driver));
            }
            let found = [long.as_str(), name]
                .into_iter()
                .find(|long| option(&command, long).is_some());
            let Some(long) = found else {
                return Err(self
                    .error(
                        line,
                        &format!("the driver `{driver}` has no flag `--{long}`"),
                    )
                    .hint(format!(
                        "`forge create --driver {driver} --help` shows its flags"
                    )));
            };
            let entry = self.entry(&command, long, Scope::Driver, value, line)?;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// That a driver's flag has a place of its own.
    fn in_table(&self, line: usize, name: &str, driver: &str) -> Error {
        let key = name.strip_prefix(driver).unwrap_or(name);
        let key = key.trim_start_matches('-');
        self.error(
            line,
            &format!("`{name}` is a flag of the driver `{driver}`"),
        )
        .hint(format!("write `{key}` in a table `[{driver}]`"))
    }

    /// One key, if its values are such as a flag's could be.
    fn entry(
        &self,
        command: &Command,
        name: &str,
        scope: Scope,
        value: &Spanned<DeValue<'_>>,
        line: usize,
    ) -> Result<Entry> {
        let Some(option) = option(command, name) else {
            return Err(self.error(line, &format!("there is no flag `--{name}`")));
        };
        if is_secret(option) {
            return Err(self
                .error(
                    line,
                    &format!("`{name}` is a secret, and this file keeps none"),
                )
                .hint("`forge credentials set` keeps it"));
        }
        let texts = texts(value.get_ref()).ok_or_else(|| {
            self.error(
                line,
                &format!("`{name}` has no value that a flag could have"),
            )
        })?;
        let given = Given {
            texts,
            source: Source::File(self.path.to_owned(), line),
            of_command: false,
        };
        judge(command, option, &given)?;
        Ok(Entry {
            scope,
            long: option.get_long().unwrap_or_default().to_owned(),
            global: option.is_global_set(),
            texts: given.texts,
            file: self.path.to_owned(),
            line,
        })
    }
}

/// The flag of this name, or with this name besides its own. What asks for help is none.
fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    if ["help", "version"].contains(&name) {
        return None;
    }
    command.get_arguments().find(|option| {
        let others = option.get_all_aliases().unwrap_or_default();
        option.get_long() == Some(name) || others.contains(&name)
    })
}

/// All commands below one.
fn all(command: &Command) -> impl Iterator<Item = &Command> {
    let mut found = Vec::new();
    let mut left: Vec<&Command> = command.get_subcommands().collect();
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands());
        found.push(command);
    }
    found.into_iter()
}

/// A command with the flags of a driver alone.
fn driver_command(id: &str) -> Command {
    let entry = registry::all().iter().find(|entry| entry.id == id);
    let command = Command::new("forge");
    entry.map_or(command.clone(), |entry| (entry.augment)(command))
}

/// The driver whose flag this is.
pub fn driver_of(long: &str) -> Option<&'static str> {
    registry::all()
        .iter()
        .find(|entry| option(&driver_command(entry.id), long).is_some())
        .map(|entry| entry.id)
}

/// A value as words of a command line; `None` where no word says it.
fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::Array(values) => values.iter().map(|value| text(value.get_ref())).collect(),
        value => Some(vec![text(value)?]),
    }
}

fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        // Numbers of other bases, or with separators, are no numbers on a command line.
        DeValue::Integer(number) => {
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
                .ok()
                .map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().replace('_', "")),
        DeValue::Boolean(whether) => Some(whether.to_string()),
        _ => None,
    }
}
