//! `forge config show`: every setting, its value, and where that came from.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use forge_driver::Result;
use serde_json::{Value, json};

use super::defaults::{self, Given, Source};
use super::table::table;
use super::{Outcome, Session, tree};

/// Print every setting, its value and where it came from
///
/// A flag counts before its variable, that before docker-machine's variable of the same meaning, that before a line of
/// `forge.toml` (the store's, then $XDG_CONFIG_HOME/forge/forge.toml), that before what the program does by itself. Secrets are
/// shown as `set`.
#[derive(Args)]
pub struct Show {}

/// One setting.
struct Setting {
    /// Its name: the key of `forge.toml`, with the table before it.
    name: String,
    /// Its value; `None` where the program decides.
    value: Option<String>,
    /// What the program does by itself, as the help has it.
    default: Option<String>,
    from: From,
    /// The variables that are read, the first counts most.
    variables: Vec<String>,
}

enum From {
    Flag,
    Variable(String),
    Default(Source),
    Program,
}

impl From {
    fn text(&self) -> String {
        match self {
            Self::Flag => "flag".to_owned(),
            Self::Variable(name) => format!("variable {name}"),
            Self::Default(source) => source.to_string(),
            Self::Program => "default".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Flag => json!({"from": "flag"}),
            Self::Variable(name) => json!({"from": "variable", "variable": name}),
            Self::Default(Source::Variable(name)) => json!({"from": "variable", "variable": name}),
            Self::Default(Source::File(path, line)) => {
                json!({"from": "file", "file": path, "line": line})
            }
            Self::Program => json!({"from": "default"}),
        }
    }
}

impl Show {
    /// Prints them. `matches` are those of the whole line.
    pub fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let whole = tree::everything(session.persona());
        let settings = settings(session, &whole, matches)?;
        if session.json() {
            let list: Vec<Value> = settings.iter().map(json_of).collect();
            println!("{}", Value::Array(list));
            return Ok(Outcome::Done);
        }
        let rows: Vec<Vec<String>> = settings.iter().map(row).collect();
        print!(
            "{}",
            table(&["SETTING", "VALUE", "FROM", "VARIABLE"], &rows)
        );
        Ok(Outcome::Done)
    }
}

fn row(setting: &Setting) -> Vec<String> {
    let value = setting.value.as_ref().or(setting.default.as_ref());
    vec![
        setting.name.clone(),
        value.cloned().unwrap_or_else(|| "-".to_owned()),
        setting.from.text(),
        setting.variables.join(", "),
    ]
}

fn json_of(setting: &Setting) -> Value {
    json!({
        "setting": setting.name,
        "value": setting.value,
        "default": setting.default,
        "origin": setting.from.json(),
        "variables": setting.variables,
    })
}

/// All that have a variable or stand in a file, in the order of the commands.
fn settings(session: &Session, whole: &Command, matches: &ArgMatches) -> Result<Vec<Setting>> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let shared = shared(whole);
    let mut commands = vec![(Vec::new(), whole)];
    while let Some((path, command)) = commands.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        for option in command.get_arguments() {
            if let Some(setting) = setting(session, &words, option, &shared, matches)?
                && seen.insert(setting.name.clone())
            {
                found.push(setting);
            }
        }
        let inner: Vec<_> = command
            .get_subcommands()
            .map(|inner| {
                (
                    [path.clone(), vec![inner.get_name().to_owned()]].concat(),
                    inner,
                )
            })
            .collect();
        commands.extend(inner.into_iter().rev());
    }
    Ok(found)
}

fn setting(
    session: &Session,
    path: &[&str],
    option: &Arg,
    shared: &BTreeSet<String>,
    matches: &ArgMatches,
) -> Result<Option<Setting>> {
    let Some(long) = option.get_long() else {
        return Ok(None);
    };
    let env = option
        .get_env()
        .map(|name| name.to_string_lossy().into_owned());
    let old = defaults::variable(long).filter(|name| env.as_deref() != Some(name));
    let given = session.defaults.given(path, option)?;
    let hidden = option.is_hide_set() && given.is_none();
    if hidden || (env.is_none() && given.is_none()) {
        return Ok(None);
    }
    let (value, from) = value(option, env.as_deref(), given.as_ref(), matches);
    let value = value.map(|value| {
        if defaults::is_secret(option) {
            "set".to_owned()
        } else {
            value
        }
    });
    let variables = env.clone().into_iter().chain(old.map(str::to_owned));
    Ok(Some(Setting {
        name: name(path, option, given.as_ref(), shared),
        value,
        default: default(option),
        from,
        variables: variables.collect(),
    }))
}

/// The flags that several commands have, and that stand for one thing.
fn shared(whole: &Command) -> BTreeSet<String> {
    let mut once = BTreeSet::new();
    let mut shared = BTreeSet::new();
    let mut commands: Vec<&Command> = whole.get_subcommands().collect();
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        for long in command.get_arguments().filter_map(Arg::get_long) {
            if !once.insert(long) {
                shared.insert(long.to_owned());
            }
        }
    }
    // One that stands in for a flag of all commands is each command's own.
    let global = whole.get_arguments().filter_map(Arg::get_long);
    for long in global {
        shared.remove(long);
    }
    shared
}

/// The key under which `forge.toml` has it.
fn name(path: &[&str], option: &Arg, given: Option<&Given>, shared: &BTreeSet<String>) -> String {
    let long = option.get_long().unwrap_or_default();
    if let Some(driver) = defaults::driver_of(long) {
        let key = long.strip_prefix(driver).unwrap_or(long);
        return format!("{driver}.{}", key.trim_start_matches('-'));
    }
    let of_command = given.is_some_and(|given| given.of_command);
    if path.is_empty() || (shared.contains(long) && !of_command) {
        return long.to_owned();
    }
    format!("{}.{long}", path.join("."))
}

/// What an option is, and why.
fn value(
    option: &Arg,
    env: Option<&str>,
    given: Option<&Given>,
    matches: &ArgMatches,
) -> (Option<String>, From) {
    let id = option.get_id().as_str();
    if option.is_global_set()
        && matches.try_contains_id(id).unwrap_or(false)
        && matches.value_source(id) == Some(ValueSource::CommandLine)
    {
        let raw = matches.get_raw(id).into_iter().flatten();
        let texts: Vec<String> = raw
            .map(|text| text.to_string_lossy().into_owned())
            .collect();
        // A switch has no value of its own.
        let text = if texts.iter().all(String::is_empty) {
            "true".to_owned()
        } else {
            texts.join(",")
        };
        return (Some(text), From::Flag);
    }
    if let Some(name) = env
        && let Some(text) = std::env::var_os(name).filter(|value| !value.is_empty())
    {
        let text = text.to_string_lossy().into_owned();
        return (Some(text), From::Variable(name.to_owned()));
    }
    match given {
        Some(given) => (
            Some(given.texts.join(",")),
            From::Default(given.source.clone()),
        ),
        None => (None, From::Program),
    }
}

/// What the parser or the help says that the program does by itself.
fn default(option: &Arg) -> Option<String> {
    let values = option.get_default_values();
    if !values.is_empty() {
        let texts: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
        return Some(texts.join(","));
    }
    let help = option.get_help()?.to_string();
    let (_, rest) = help.split_once("[default: ")?;
    Some(rest.rsplit_once(']')?.0.to_owned())
}
