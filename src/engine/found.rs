//! What is found of an engine on a machine: by what it is started, how it is configured, what the machine is.
//!
//! Read by the playbook `engine/found`, which tells what lies in files; what it means is decided here.

use std::collections::{BTreeMap, BTreeSet};

use forge_driver::{Error, Kind, Result};
use serde_json::{Map, Value};

use super::keys::Flag;
use super::unit;

/// Where systemd looks for units; what lies in an earlier folder counts instead of what lies in a later one
/// (systemd.unit(5)).
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// The unit of an engine.
const UNIT: &str = "docker.service";
/// What forge adds to it.
pub const DROP_IN: &str = "10-forge.conf";
/// What docker-machine added to it (libmachine/provision/systemd.go).
pub const MACHINE_DROP_IN: &str = "10-machine.conf";
/// Where that lies once forge has put it aside: what it said of the engine counts on.
const MACHINE_ASIDE: &str = "/var/lib/forge/before/10-machine.conf";
/// The engine's configuration.
const DAEMON: &str = "/etc/docker/daemon.json";
/// What the configuration is to be once a restart that was cut off has come to its end.
const NOTE: &str = "/var/lib/forge/daemon.json";
/// On a host of others: what they wrote into it, and what forge wrote there last.
const THEIRS: &str = "/var/lib/forge/before/etc_docker_daemon.json";
const WRITTEN: &str = "/var/lib/forge/before/written.json";
/// What forge wrote there before that, until the engine runs with the last: a run that was cut off may have noted the one
/// and left the other in the configuration.
const FORMERLY: &str = "/var/lib/forge/former/written.json";
/// Where distributions keep the engine's flags, besides those that a unit names itself.
const CONF: &str = "/etc/conf.d/docker";
/// The lines between which OpenRC's settings are forge's.
pub(super) const BEGIN: &str = "# forge: begin; what stands up to the end of it is overwritten.";
pub(super) const END: &str = "# forge: end";

/// What starts services on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd
    Systemd,
    /// OpenRC
    OpenRc,
}

/// The distribution of a machine: os-release(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    /// `ID`
    pub id: String,
    /// `ID_LIKE`: what it is derived from, the closest first.
    pub like: Vec<String>,
    /// `PRETTY_NAME`, or its id.
    pub name: String,
}

impl Os {
    /// Whose packages it has, by what it is, then by what it is derived from; `None` when forge does not know.
    pub fn family(&self) -> Option<&'static str> {
        std::iter::once(&self.id)
            .chain(&self.like)
            .find_map(|id| match id.as_str() {
                "debian" | "ubuntu" | "raspbian" | "linuxmint" => Some("debian"),
                "fedora" | "rhel" | "centos" | "rocky" | "almalinux" | "ol" | "amzn" => {
                    Some("fedora")
                }
                "suse" | "opensuse" | "sles" => Some("suse"),
                "alpine" => Some("alpine"),
                "arch" | "manjaro" => Some("arch"),
                id if id.starts_with("opensuse") => Some("suse"),
                _ => None,
            })
    }
}

/// How an engine is started when forge says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// By a unit of systemd's.
    Unit {
        /// Its command line as it is written, on one line.
        line: String,
        /// What a stop ends: `process` leaves containers alone (systemd.kill(5)).
        kill_mode: String,
        /// The variables that docker-machine's part of it gives the process, by name.
        environment: BTreeMap<String, String>,
    },
    /// By a service of OpenRC's, which reads this file.
    Service {
        /// The file.
        path: String,
        /// What is in it, without forge's part.
        text: String,
    },
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The distribution.
    pub os: Os,
    /// What starts services; `None` when forge knows nothing of it.
    pub init: Option<Init>,
    /// Where the engine's program is; `None` when there is no engine.
    pub engine: Option<String>,
    /// How the engine is started; `None` when nothing was found that starts it.
    pub start: Option<Start>,
    /// The flags that it is started with.
    pub flags: Vec<Flag>,
    /// The text of `daemon.json`; that from before a restart that was cut off, where one was.
    pub daemon: Option<String>,
    /// On a host of others: what they wrote there.
    pub theirs: Option<String>,
    /// On a host of others: what forge wrote there last, if it ever did.
    pub written: Option<String>,
    /// On a host of others: what forge wrote there before that, until the engine runs with the last.
    pub formerly: Option<String>,
    /// A restart that keeps containers was cut off.
    pub interrupted: bool,
    /// docker-machine's part of the unit is there.
    pub machine: bool,
    /// The storage driver in use, where it was asked for and the engine runs.
    pub storage: Option<String>,
    /// Whether the engine is in a swarm, where it was asked for.
    pub swarm: bool,
}

impl Found {
    /// Reads what the playbook printed.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the engine's configuration is not JSON.
    pub fn read(text: &str) -> Result<Self> {
        let mut facts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut files: BTreeMap<&str, String> = BTreeMap::new();
        for line in text.lines() {
            if line.starts_with('/') {
                if let Some((path, line)) = line.split_once(':') {
                    let file = files.entry(path).or_default();
                    file.push_str(line);
                    file.push('\n');
                }
            } else if let Some((name, value)) = line.split_once(' ') {
                facts.entry(name).or_default().push(value);
            }
        }
        let fact = |name: &str| facts.get(name).and_then(|values| values.first()).copied();
        let init = match fact("init") {
            Some("systemd") => Some(Init::Systemd),
            Some("openrc") => Some(Init::OpenRc),
            _ => None,
        };
        let unit = files
            .keys()
            .any(|path| drop_in(path) == Some(MACHINE_DROP_IN));
        let (start, flags) = match init {
            Some(Init::Systemd) => by_unit(&files)?,
            Some(Init::OpenRc) => {
                let confs = facts.get("conf").map(Vec::as_slice).unwrap_or_default();
                by_service(confs.first().copied().unwrap_or(CONF), &files)
            }
            None => (None, Vec::new()),
        };
        let found = Self {
            os: os(files.get("/etc/os-release").map_or("", String::as_str)),
            init,
            engine: fact("engine").map(str::to_owned),
            start,
            flags,
            daemon: files.get(NOTE).or_else(|| files.get(DAEMON)).cloned(),
            theirs: files.get(THEIRS).cloned(),
            written: files.get(WRITTEN).cloned(),
            formerly: files.get(FORMERLY).cloned(),
            interrupted: files.contains_key(NOTE),
            machine: unit,
            storage: fact("storage")
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            swarm: fact("swarm").is_some_and(|state| !matches!(state, "" | "inactive")),
        };
        found.configuration()?;
        Ok(found)
    }

    /// The engine's configuration.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it is not an object of JSON.
    pub fn configuration(&self) -> Result<Map<String, Value>> {
        object(DAEMON, self.daemon.as_deref().unwrap_or_default()).map_err(|error| {
            error.hint("mend it there (the engine would not start with it either), then run the same command again")
        })
    }

    /// What others wrote into it, as it was noted; nothing where nothing was.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it is not an object of JSON.
    pub fn theirs(&self) -> Result<Map<String, Value>> {
        object(THEIRS, self.theirs.as_deref().unwrap_or_default())
    }

    /// What forge wrote into it: the last, and what was there before that where a run was cut off. Nothing where it never
    /// wrote it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when one is not an object of JSON.
    pub fn written(&self) -> Result<Vec<Map<String, Value>>> {
        let Some(last) = &self.written else {
            return Ok(Vec::new());
        };
        let mut written = vec![object(WRITTEN, last)?];
        if let Some(text) = &self.formerly {
            written.push(object(FORMERLY, text)?);
        }
        Ok(written)
    }
}

/// A file on the machine, read; an empty one holds nothing.
fn object(path: &str, text: &str) -> Result<Map<String, Value>> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            Kind::Invalid,
            format!("`{path}` on the machine is not an object of JSON"),
        )
        .because(error)
    })
}

/// The distribution, from the text of os-release.
fn os(text: &str) -> Os {
    let mut values = unit::variables(text);
    let mut take = |name: &str| values.remove(name).unwrap_or_default();
    let id = take("ID");
    let name = Some(take("PRETTY_NAME")).filter(|name| !name.is_empty());
    Os {
        like: take("ID_LIKE")
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        name: name.unwrap_or_else(|| id.clone()),
        id,
    }
}

/// The file name of a drop-in of the engine's unit.
fn drop_in(path: &str) -> Option<&str> {
    let (folder, name) = path.rsplit_once('/')?;
    let (folder, unit) = folder.rsplit_once('/')?;
    (UNITS.contains(&folder) && unit.strip_suffix(".d") == Some(UNIT)).then_some(name)
}

/// The unit with all that is added to it by others, and the flags that come of it.
///
/// # Errors
/// When its flags come from where they were not read.
fn by_unit(files: &BTreeMap<&str, String>) -> Result<(Option<Start>, Vec<Flag>)> {
    let unit = UNITS
        .iter()
        .find_map(|folder| files.get(format!("{folder}/{UNIT}").as_str()));
    let Some(unit) = unit else {
        return Ok((None, Vec::new()));
    };
    let names: BTreeSet<&str> = files
        .keys()
        .filter_map(|path| drop_in(path))
        .filter(|name| ![DROP_IN, MACHINE_DROP_IN].contains(name))
        .collect();
    let mut settings = unit::service(unit);
    for name in names {
        let text = UNITS
            .iter()
            .find_map(|folder| files.get(format!("{folder}/{UNIT}.d/{name}").as_str()));
        settings.extend(text.map(|text| unit::service(text)).unwrap_or_default());
    }
    // docker-machine replaced the command line: what it said of the engine stays, what opened it is forge's to say.
    let machine = UNITS
        .iter()
        .find_map(|folder| files.get(format!("{folder}/{UNIT}.d/{MACHINE_DROP_IN}").as_str()))
        .or_else(|| files.get(MACHINE_ASIDE))
        .map(|text| unit::service(text))
        .unwrap_or_default();
    let line = unit::last(&machine, "ExecStart")
        .map(closed)
        .or_else(|| unit::last(&settings, "ExecStart").map(str::to_owned));
    let Some(line) = line else {
        return Ok((None, Vec::new()));
    };
    let mut variables = variables_of(&settings);
    // Files count over what stands in the unit itself, wherever they stand: systemd.exec(5).
    for value in unit::all(&settings, "EnvironmentFile") {
        let path = value.trim_start_matches('-').trim_matches('"');
        // One with such letters stands for others, which were not read; a line without variables takes nothing of them.
        if path.contains(['*', '?', '[', '%']) && line.contains('$') {
            return Err(Error::new(
                Kind::Conflict,
                format!("the engine's unit reads its flags from `EnvironmentFile={value}`, a pattern that forge does not follow"),
            )
            .because("it would not know of the flags there, and the engine does not start with what is said twice")
            .hint("name the files in the unit one by one (`systemctl edit docker`), then run the same command again"));
        }
        if let Some(text) = files.get(path) {
            variables.extend(unit::variables(text));
        }
    }
    let flags = Flag::all(&unit::words(&line, &variables));
    let kill_mode = unit::last(&settings, "KillMode").unwrap_or("control-group");
    let start = Start::Unit {
        line,
        kill_mode: kill_mode.to_owned(),
        environment: variables_of(&machine).into_iter().collect(),
    };
    Ok((Some(start), flags))
}

/// The variables that a unit gives its process by itself.
fn variables_of(settings: &[(String, String)]) -> BTreeMap<String, String> {
    unit::all(settings, "Environment")
        .into_iter()
        .flat_map(|value| unit::words(value, &BTreeMap::new()))
        .flat_map(|word| unit::variables(&word))
        .collect()
}

/// A command line without the flags that open the engine to others.
fn closed(line: &str) -> String {
    let words = unit::words(line, &BTreeMap::new());
    let program = words.first().cloned().unwrap_or_default();
    let flags = Flag::all(&words);
    let kept = flags.iter().filter(|flag| !flag.opens()).map(Flag::text);
    std::iter::once(program)
        .chain(kept)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The file of settings of a service, and the flags that come of it: Alpine's and Gentoo's service, and the script of
/// Debian's package, give the engine what `DOCKER_OPTS` holds.
fn by_service(path: &str, files: &BTreeMap<&str, String>) -> (Option<Start>, Vec<Flag>) {
    let text = without_ours(files.get(path).map_or("", String::as_str));
    let variables = unit::variables(&text);
    let flags = Flag::all(&unit::words("$DOCKER_OPTS", &variables));
    let start = Start::Service {
        path: path.to_owned(),
        text,
    };
    (Some(start), flags)
}

/// A file of settings without forge's part.
fn without_ours(text: &str) -> String {
    let mut kept = String::new();
    let mut ours = false;
    for line in text.lines() {
        match line {
            BEGIN => ours = true,
            END => ours = false,
            _ if ours => {}
            _ => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    kept
}
