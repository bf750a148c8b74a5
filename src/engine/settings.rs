//! What an engine is to be told, merged into what is found: every option in `daemon.json`, the port and its guard beside
//! each other, nothing in two places.
//!
//! `dockerd` refuses to start when a directive is "specified both as a flag and in the configuration file"
//! (moby's daemon/config), so an option that is a flag already stays one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use forge_driver::{Error, Kind, Result};
use serde_json::{Map, Value};

use super::back::{self, LIVE_RESTORE, with_live_restore};
use super::found::{BEGIN, END, Found, Start};
use super::keys::{self, Flag, Form};
use super::unit;
use crate::engine_options::EngineOptions;
use crate::playbook::quote;

/// The socket of an engine that is opened by nothing else.
const SOCKET: &str = "unix:///var/run/docker.sock";
/// The variable in which a drop-in takes forge's flags.
const FLAGS: &str = "FORGE_ENGINE_FLAGS";
/// What guards the port: only clients with a certificate of the CA's get in.
const GUARD: [(&str, &str); 4] = [
    ("tlsverify", "true"),
    ("tlscacert", "/etc/docker/tls/ca.pem"),
    ("tlscert", "/etc/docker/tls/server.pem"),
    ("tlskey", "/etc/docker/tls/server-key.pem"),
];

/// What a machine's engine is given besides its user's wishes.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Where it is found: it listens at this port, to addresses of this kind.
    pub listen: SocketAddr,
    /// What forge's own machines have where nobody says otherwise; nothing on machines of others.
    pub defaults: Map<String, Value>,
    /// What was wished before: it is taken back where nobody wishes it any more.
    pub past: Vec<EngineOptions>,
}

/// The texts of all that an engine reads when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `daemon.json`.
    pub daemon: String,
    /// It is another than was found, or a restart that changed it was cut off.
    pub daemon_changes: bool,
    /// What was found, with containers that outlive the engine.
    pub before: String,
    /// What is wished, with containers that outlive the engine.
    pub during: String,
    /// What is wished, with containers that end with the engine.
    pub after: String,
    /// What is wished has containers that outlive it anyway.
    pub live_restore: bool,
    /// What was found has containers that outlive it anyway.
    pub had_it: bool,
    /// What is found without what forge wrote before, where that is another than was noted.
    pub theirs: Option<String>,
    /// How the engine is started.
    pub start: Started,
}

/// What makes the service manager start the engine as wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// systemd: a drop-in of the unit, which follows from the unit alone, and the file that it reads at each start.
    Systemd {
        /// The command line.
        line: String,
        /// The drop-in says what a stop ends, since the unit would end containers.
        keep: bool,
        /// docker-machine's part of the unit is there, which would count instead.
        machine: bool,
        /// The lines of the file.
        environment: Vec<String>,
    },
    /// OpenRC: the service's file of settings.
    OpenRc {
        /// Where it is.
        path: String,
        /// All of it.
        text: String,
    },
}

/// A wish: a flag, in the words in which it was wished.
struct Wish {
    flag: Flag,
    words: String,
}

/// What is found and what is wished, as one.
///
/// # Errors
/// [`Kind::Usage`] when wishes contradict each other or make no sense, [`Kind::Conflict`] when one contradicts what is
/// found; both sides are named.
pub fn merge(found: &Found, wished: &EngineOptions, terms: &Terms) -> Result<Settings> {
    let start = found.start.as_ref().ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            "nothing was found that starts the engine",
        )
        .because("there is neither a unit `docker.service` nor a service `docker`")
        .hint("install the engine from packages of the distribution or of Docker's, and run the same command again")
    })?;
    let before = found.configuration()?;
    let mut file = before.clone();
    let wishes = wishes(wished)?;
    consistent(&wishes)?;
    for past in &terms.past {
        retract(&mut file, past, &wishes);
    }
    let mut extra = Vec::new();
    for wish in &wishes {
        one(found, wish, &mut file, &mut extra)?;
    }
    defaults(found, terms, &wishes, &mut file);
    let flag = back::flag(found);
    let has_it = |file: &Map<String, Value>| {
        flag.unwrap_or(file.get(LIVE_RESTORE) == Some(&Value::Bool(true)))
    };
    let live_restore = has_it(&file);
    let wishes_it = wishes.iter().find(|wish| wish.flag.name == LIVE_RESTORE);
    if live_restore && let Some(wish) = wishes_it.filter(|_| found.swarm) {
        return Err(Error::new(
            Kind::Conflict,
            format!("`{}` is wished of an engine in a swarm", wish.words),
        )
        .because("an engine in a swarm does not start with it"));
    }
    let opening = open(found, terms, &mut file)?;
    let flags: Vec<String> = opening.into_iter().chain(extra).collect();
    let environment = environment(wished)?;
    Ok(Settings {
        daemon_changes: file != before || found.interrupted,
        daemon: text(&file),
        before: with_live_restore(found, &before, true),
        during: with_live_restore(found, &file, true),
        after: with_live_restore(found, &file, false),
        live_restore,
        had_it: has_it(&before),
        theirs: Some(back::without_forge(found)?)
            .filter(|theirs| found.theirs().ok().as_ref() != Some(theirs))
            .map(|theirs| text(&theirs)),
        start: started(found, start, &flags, &environment),
    })
}

/// Refuses wishes that make no sense on any machine.
///
/// # Errors
/// [`Kind::Usage`]
pub fn check(wished: &EngineOptions) -> Result<()> {
    consistent(&wishes(wished)?)?;
    environment(wished).map(|_| ())
}

/// Refuses what an engine in a swarm does not start with.
///
/// # Errors
/// [`Kind::Usage`]
pub fn check_for_swarm(wished: &EngineOptions) -> Result<()> {
    let wishes = wishes(wished)?;
    let keeps = |wish: &&Wish| wish.flag.name == LIVE_RESTORE && is_on(wish);
    match wishes.iter().find(keeps) {
        None => Ok(()),
        Some(wish) => Err(Error::new(
            Kind::Usage,
            format!("`{}` is wished of the engines of a swarm", wish.words),
        )
        .because("an engine in a swarm does not start with it")
        .hint("leave it out: in a swarm, services are started again elsewhere")),
    }
}

/// Whether a wish for a switch turns it on, as Go reads it (`strconv.ParseBool`).
fn is_on(wish: &Wish) -> bool {
    ["1", "t", "T", "true", "TRUE", "True"].contains(&wish.flag.value.as_str())
}

/// A configuration as it is written.
pub(super) fn text(file: &Map<String, Value>) -> String {
    // An object of JSON values is always JSON.
    let text = serde_json::to_string_pretty(file).unwrap_or_default();
    format!("{text}\n")
}

/// All that is wished, as flags.
fn wishes(wished: &EngineOptions) -> Result<Vec<Wish>> {
    let mut wishes = Vec::new();
    let mut wish = |flag: &str, value: &str, words: String| {
        let sane = !value.chars().any(char::is_control) && !value.is_empty();
        let name_is_one = !flag.is_empty()
            && flag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !sane || !name_is_one {
            return Err(Error::new(
                Kind::Usage,
                format!("`{}` makes no sense", words.escape_debug()),
            ));
        }
        wishes.push(Wish {
            flag: Flag {
                name: keys::long(flag).to_owned(),
                value: value.to_owned(),
            },
            words,
        });
        Ok(())
    };
    for opt in &wished.opts {
        let (flag, value) = opt.split_once('=').unwrap_or((opt, "true"));
        let flag = flag.trim_start_matches('-');
        wish(flag, value, format!("--engine-opt {opt}"))?;
    }
    for (option, flag, values) in [
        ("label", "label", &wished.labels),
        (
            "insecure-registry",
            "insecure-registry",
            &wished.insecure_registries,
        ),
        ("registry-mirror", "registry-mirror", &wished.mirrors),
    ] {
        for value in values {
            wish(flag, value, format!("--engine-{option} {value}"))?;
        }
    }
    for mirror in &wished.mirrors {
        if !mirror.starts_with("http://") && !mirror.starts_with("https://") {
            return Err(Error::new(
                Kind::Usage,
                format!("`--engine-registry-mirror {mirror}` is no URL"),
            )
            .hint("give `https://HOST` or `http://HOST:PORT`"));
        }
    }
    if let Some(driver) = &wished.storage_driver {
        let words = format!("--engine-storage-driver {driver}");
        wish("storage-driver", driver, words)?;
    }
    Ok(wishes)
}

/// Takes back what was wished before and is not any more; what another value was given to stays.
fn retract(file: &mut Map<String, Value>, past: &EngineOptions, wishes: &[Wish]) {
    // What made no sense never got into a file.
    for gone in self::wishes(past).unwrap_or_default() {
        let flag = &gone.flag;
        if !wishes.iter().any(|wish| wish.flag == *flag) {
            let (key, form) = keys::of(&flag.name);
            keys::take(file, key, form, &flag.value);
        }
    }
}

/// Refuses wishes of which only one can come true.
fn consistent(wishes: &[Wish]) -> Result<()> {
    let mut said: BTreeMap<(&str, &str), &Wish> = BTreeMap::new();
    for wish in wishes {
        let flag = &wish.flag;
        if flag.opens() || ["config-file", "pidfile"].contains(&flag.name.as_str()) {
            return Err(
                Error::new(Kind::Usage, format!("`{}` is not to be wished", wish.words))
                    .because("forge decides itself where the engine listens, and whom it lets in"),
            );
        }
        let (key, form) = keys::of(&flag.name);
        keys::put(&mut Map::new(), key, form, &flag.value).map_err(|why| {
            Error::new(Kind::Usage, format!("`{}` makes no sense", wish.words)).because(why)
        })?;
        let subject = (key, keys::subject(form, &flag.value));
        if let Some(other) = said.insert(subject, wish)
            && other.flag.value != flag.value
        {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "`{}` and `{}` contradict each other",
                    other.words, wish.words
                ),
            ));
        }
    }
    Ok(())
}

/// Puts one wish into the file, unless it is a flag already; into `extra` where others of its kind are flags.
fn one(
    found: &Found,
    wish: &Wish,
    file: &mut Map<String, Value>,
    extra: &mut Vec<String>,
) -> Result<()> {
    let flag = &wish.flag;
    let (key, form) = keys::of(&flag.name);
    let contradiction = |what: String| {
        Error::new(
            Kind::Conflict,
            format!("`{}` contradicts {what}", wish.words),
        )
    };
    if flag.name == "storage-driver"
        && let Some(storage) = found.storage.as_ref().filter(|used| **used != flag.value)
    {
        return Err(
            contradiction(format!("the storage driver `{storage}` that is in use"))
                .because("images and containers that are there would be out of sight"),
        );
    }
    let subject = |value: &str| keys::subject(form, value).to_owned();
    let mut many = false;
    for other in found.flags.iter().filter(|other| other.name == flag.name) {
        let same = match form {
            Form::One => keys::one(form, &other.value) == keys::one(form, &flag.value),
            _ => other.value == flag.value,
        };
        if same {
            return Ok(());
        }
        if subject(&other.value) == subject(&flag.value) {
            return Err(contradiction(format!(
                "the flag `{}` that the engine is started with",
                other.text()
            ))
            .hint("take the flag away on the machine, or leave the option out"));
        }
        many = true;
    }
    if many {
        if flag
            .value
            .contains(|c: char| c.is_whitespace() || "\"'\\$`".contains(c))
        {
            return Err(contradiction(format!(
                "the flags `--{}` that the engine is started with: a flag beside them cannot hold blanks or quotes",
                flag.name
            )));
        }
        extra.push(flag.text());
        return Ok(());
    }
    if flag.name == "log-driver" && file.get(key) != Some(&keys::one(form, &flag.value)) {
        // Options of another driver keep the engine from starting.
        file.remove("log-opts");
    }
    keys::put(file, key, form, &flag.value)
        .map_err(|why| contradiction("what is in daemon.json".to_owned()).because(why))
}

/// What forge's own machines have, where neither the file nor a flag nor a wish says anything of it. Options of a log
/// driver belong to the driver.
fn defaults(found: &Found, terms: &Terms, wishes: &[Wish], file: &mut Map<String, Value>) {
    let logs = |name: &str| ["log-driver", "log-opt", "log-opts"].contains(&name);
    let said = |key: &str| {
        let flagged =
            |flag: &Flag| keys::of(&flag.name).0 == key || (logs(key) && logs(&flag.name));
        found.flags.iter().any(flagged)
            || wishes.iter().any(|wish| flagged(&wish.flag))
            || (logs(key) && file.keys().any(|name| logs(name)))
            || file.contains_key(key)
    };
    let missing: Vec<_> = terms
        .defaults
        .iter()
        .filter(|(key, _)| !said(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    file.extend(missing);
}

/// Opens the port to clients with a certificate: the flags that do it, where the file does not.
///
/// The guard is beside the port, whoever edits one of the files: an engine with the port and without the guard is
/// everybody's.
fn open(found: &Found, terms: &Terms, file: &mut Map<String, Value>) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    let port = format!(":{}", terms.listen.port());
    // Of the kind of the others it listens to both.
    let any = if terms.listen.is_ipv6() {
        "[::]"
    } else {
        "0.0.0.0"
    };
    let address = format!("tcp://{any}{port}");
    let listens = |host: &str| host.starts_with("tcp://") && host.ends_with(&port);
    let hosts: Vec<&str> = found
        .flags
        .iter()
        .filter(|flag| flag.name == "host")
        .map(|flag| flag.value.as_str())
        .collect();
    let in_file = file.contains_key("hosts");
    if in_file {
        let listed = file.get("hosts").and_then(Value::as_array);
        let there = listed
            .is_some_and(|listed| listed.iter().any(|host| host.as_str().is_some_and(listens)));
        if !there {
            keys::put(file, "hosts", Form::List, &address).map_err(|why| {
                Error::new(Kind::Conflict, "the engine's port cannot be opened").because(why)
            })?;
        }
    } else {
        if hosts.is_empty() {
            flags.extend(["-H".to_owned(), SOCKET.to_owned()]);
        }
        if !hosts.iter().any(|host| listens(host)) {
            flags.extend(["-H".to_owned(), address]);
        }
    }
    let guarded = GUARD.iter().any(|(name, _)| file.contains_key(*name));
    for (name, value) in GUARD {
        let other = found.flags.iter().find(|flag| flag.name == name);
        match other {
            Some(flag) if flag.value == value => {}
            Some(flag) => {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "the engine is started with the flag `{}`, and forge needs `--{name}={value}`",
                        flag.text()
                    ),
                )
                .hint("take the flags of TLS out of the engine's unit on the machine, then run the same command again"));
            }
            None if in_file || guarded => {
                file.insert(name.to_owned(), keys::one(Form::One, value));
            }
            None if value == "true" => flags.push(format!("--{name}")),
            None => flags.push(format!("--{name}={value}")),
        }
    }
    Ok(flags)
}

/// The variables of the engine's process.
fn environment(wished: &EngineOptions) -> Result<Vec<(String, String)>> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for word in &wished.env {
        let sense = |why: &str| {
            Error::new(
                Kind::Usage,
                format!("`--engine-env {}` makes no sense", word.escape_debug()),
            )
            .because(why)
        };
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| sense("it has to be `NAME=VALUE`"))?;
        if !unit::is_name(name) || name == FLAGS {
            return Err(sense("it does not begin with the name of a variable"));
        }
        if value.chars().any(char::is_control) {
            return Err(sense("its value holds a line end or a control character"));
        }
        if variables
            .insert(name.to_owned(), value.to_owned())
            .is_some_and(|other| other != value)
        {
            return Err(sense("it is given twice, with another value"));
        }
    }
    Ok(variables.into_iter().collect())
}

/// Variables that are there with those that are wished, which count more.
fn with<'a>(
    there: &'a BTreeMap<String, String>,
    wished: &'a [(String, String)],
) -> BTreeMap<&'a str, &'a str> {
    let wished = wished.iter().map(|(name, value)| (name, value));
    there
        .iter()
        .chain(wished)
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

fn started(
    found: &Found,
    start: &Start,
    flags: &[String],
    environment: &[(String, String)],
) -> Started {
    let flags = flags.join(" ");
    match start {
        Start::Unit {
            line,
            kill_mode,
            environment: there,
        } => Started::Systemd {
            line: line.clone(),
            keep: kill_mode != "process",
            machine: found.machine,
            environment: std::iter::once((FLAGS, flags.as_str()))
                .chain(with(there, environment))
                .map(|(name, value)| unit::environment_line(name, value))
                .collect(),
        },
        Start::Service { path, text } => {
            let mut all = text.clone();
            all.push_str(BEGIN);
            all.push_str(&format!("\nDOCKER_OPTS=\"$DOCKER_OPTS {flags}\"\n"));
            for (name, value) in environment {
                all.push_str(&format!("export {name}={}\n", quote(value)));
            }
            all.push_str(END);
            all.push('\n');
            Started::OpenRc {
                path: path.clone(),
                text: all,
            }
        }
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
