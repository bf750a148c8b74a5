//! How machines are: all of their providers and engines asked at once, under one deadline.
//!
//! The wait is one for each machine, and all are asked at the same moment, so a whole list takes no longer than one
//! wait, whatever the number of those that are silent. What came in time counts, whoever else is silent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forge_driver::{Claim, Error, Kind, Observation, Result, State};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::tls::ClientFiles;
use super::{Forge, Record, Stage, relocate};
use crate::engine::{self, Trust};
use crate::registry;
use crate::store::Store;

/// How far is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Nobody: what is recorded is enough.
    Records,
    /// The providers, for the states.
    States,
    /// The engines of the machines that run, too.
    Engines,
}

/// The state of a machine, as far as it came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its provider's answer.
    Told(State),
    /// Its provider did not answer in time.
    Timeout,
    /// Its provider was not asked, or said nothing of it.
    Unknown,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(state) => state.fmt(f),
            Self::Timeout => f.pad("Timeout"),
            Self::Unknown => f.pad("Unknown"),
        }
    }
}

/// What was heard of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its state.
    pub condition: Condition,
    /// Why not more is known, on one line.
    pub trouble: Option<String>,
    /// The version of its engine, which answered over TLS.
    pub engine: Option<String>,
    /// It runs, and its engine was still silent at the deadline.
    pub late: bool,
    /// How long its last answer took, or the whole wait.
    pub took: Duration,
}

/// The names of all machines, sorted, without a record being read. A folder without a record is what a kill before
/// the first save leaves: it is no machine.
///
/// # Errors
/// When the folder of the machines cannot be listed.
pub fn names(store: &Store) -> Result<Vec<String>> {
    let mut names = store.names("machines")?;
    names.retain(|name| store.machine_dir(name).join("machine.json").exists());
    Ok(names)
}

/// Descriptors that are kept for everything but the questions.
const KEPT: u64 = 64;
/// A question gives up by itself only after this many waits: the deadline is the survey's.
const WAITS: u32 = 2;

/// An answer of somebody who was asked.
enum Word {
    Provider(Vec<usize>, Result<Vec<Observation>>),
    Engine(usize, Result<engine::Version>),
}

/// Whose answer about a machine is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Provider,
    Engine,
    Nobody,
}

/// Asks about all of `records` for at most `patience`. What is heard comes in the same order. An address that a
/// provider tells anew is in the record afterwards, and saved with it.
pub async fn survey(
    forge: &Forge,
    records: &mut [Record],
    depth: Depth,
    patience: Duration,
) -> Vec<Heard> {
    let nothing = Heard {
        condition: Condition::Unknown,
        trouble: None,
        engine: None,
        late: false,
        took: Duration::ZERO,
    };
    let mut heard = vec![nothing; records.len()];
    if depth == Depth::Records {
        return heard;
    }
    let start = Instant::now();
    let mut waiting = vec![Waiting::Provider; records.len()];
    let mut moved = Vec::new();
    let mut asked = JoinSet::new();
    let line = Arc::new(Line {
        room: Semaphore::new(room(records.len())),
        trusts: Mutex::default(),
    });
    for ((driver, _), machines) in by_host(records) {
        let claims: Vec<Claim> = machines.iter().map(|at| records[*at].claim).collect();
        let config = machines.first().map(|at| records[*at].config.clone());
        let line = line.clone();
        let forge = Forge {
            patience: patience * WAITS,
            ..forge.clone()
        };
        asked.spawn(async move {
            let _turn = line.room.acquire().await;
            let answer = observe(&forge, &driver, &config.unwrap_or_default(), &claims).await;
            Word::Provider(machines, answer)
        });
    }
    loop {
        let word = match timeout_at(start + patience, asked.join_next()).await {
            Ok(Some(Ok(word))) => word,
            // A fault of forge's own, which is told below.
            Ok(Some(Err(_))) => continue,
            Ok(None) | Err(_) => break,
        };
        match word {
            Word::Provider(machines, answer) => {
                let mut told = Told::by(answer);
                for at in machines {
                    let record = &mut records[at];
                    let before = record.instance.clone();
                    heard[at] = Heard {
                        took: start.elapsed(),
                        ..told.of(record)
                    };
                    if record.instance != before {
                        moved.push((at, before));
                    }
                    let on = heard[at].condition == Condition::Told(State::Running);
                    waiting[at] = Waiting::Nobody;
                    if depth == Depth::Engines
                        && on
                        && record.stage == Stage::Ready
                        && !record.leaving
                    {
                        waiting[at] = Waiting::Engine;
                        let (forge, record, line) = (forge.clone(), record.clone(), line.clone());
                        asked.spawn(async move {
                            Word::Engine(at, line.ask(&forge, &record, patience * WAITS).await)
                        });
                    }
                }
            }
            Word::Engine(at, answer) => {
                waiting[at] = Waiting::Nobody;
                heard[at].took = start.elapsed();
                match answer {
                    Ok(version) => heard[at].engine = Some(version.version),
                    Err(error) => {
                        heard[at].trouble.get_or_insert(error.line());
                    }
                }
            }
        }
    }
    for (at, instance) in moved {
        let before = Record {
            instance,
            ..records[at].clone()
        };
        // What cannot be saved is told anew the next time.
        let _ = relocate::told(forge, before, records[at].instance.as_ref()).await;
    }
    let over = asked.is_empty();
    for (heard, waiting) in heard.iter_mut().zip(waiting) {
        if waiting != Waiting::Nobody {
            silent(heard, waiting, over, patience);
        }
    }
    heard
}

/// What is said of a machine of which not all was heard.
fn silent(heard: &mut Heard, waiting: Waiting, over: bool, patience: Duration) {
    if over {
        heard
            .trouble
            .get_or_insert("a task of forge broke off".to_owned());
        return;
    }
    heard.took = patience;
    if waiting == Waiting::Provider {
        heard.condition = Condition::Timeout;
    } else {
        heard.late = true;
        heard.trouble.get_or_insert(format!(
            "the engine did not answer within {} s",
            patience.as_secs()
        ));
    }
}

/// The machines of each driver at each host: one that is silent keeps nobody waiting for another.
fn by_host(records: &[Record]) -> BTreeMap<(String, String), Vec<usize>> {
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (at, record) in records.iter().enumerate() {
        // What is wrong with a driver or a configuration, the question tells.
        let sites = registry::find(&record.driver)
            .and_then(|entry| (entry.sites)(&record.config))
            .unwrap_or_default();
        let hosts: Vec<String> = sites.into_iter().map(|site| site.at).collect();
        groups
            .entry((record.driver.clone(), hosts.join(" ")))
            .or_default()
            .push(at);
    }
    groups
}

async fn observe(
    forge: &Forge,
    driver: &str,
    config: &Value,
    claims: &[Claim],
) -> Result<Vec<Observation>> {
    registry::open(forge, driver, config)?.observe(claims).await
}

/// What a provider said of its machines.
enum Told {
    Each(BTreeMap<Claim, Observation>),
    Nothing(Error),
}

impl Told {
    fn by(answer: Result<Vec<Observation>>) -> Self {
        match answer {
            Ok(seen) => Self::Each(seen.into_iter().map(|seen| (seen.claim, seen)).collect()),
            Err(error) => Self::Nothing(error),
        }
    }

    /// What it said of one, whose address it may have told.
    fn of(&mut self, record: &mut Record) -> Heard {
        let (condition, trouble) = match self {
            Self::Nothing(error) if error.kind() == Kind::Timeout => {
                (Condition::Timeout, Some(error.line()))
            }
            Self::Nothing(error) => (Condition::Told(State::Error), Some(error.line())),
            Self::Each(seen) => match seen.remove(&record.claim) {
                None => (Condition::Unknown, None),
                Some(seen) => {
                    // Another address than the recorded one may have been given since.
                    if let Some(now) = seen.instance
                        && relocate::moved(record, &now)
                    {
                        record.instance = Some(now);
                    }
                    (Condition::Told(seen.state), seen.trouble)
                }
            },
        };
        Heard {
            condition,
            trouble,
            engine: None,
            late: false,
            took: Duration::ZERO,
        }
    }
}

/// What the questions share.
struct Line {
    room: Semaphore,
    /// By the digest of what they were made of: most machines of a store trust the same CA.
    trusts: Mutex<BTreeMap<[u8; 32], Trust>>,
}

impl Line {
    async fn ask(&self, forge: &Forge, record: &Record, wait: Duration) -> Result<engine::Version> {
        // Never closed; without a permit the question would only be asked sooner.
        let _turn = self.room.acquire().await;
        let trust = self.trust(&forge.store, &record.name)?;
        let stream = forge.access(record)?.engine(record, wait).await?;
        // The machine's own name is in every certificate; that an address is not, is told of elsewhere.
        let name = if relocate::named(record) {
            record.server_name()?
        } else {
            record.name.clone()
        };
        engine::version(stream, &name, &trust, wait).await
    }

    /// The machine's own files, which a user's `docker` shows, too.
    fn trust(&self, store: &Store, name: &str) -> Result<Trust> {
        let files = ClientFiles::beside(store, name)?;
        let digest = files.digest();
        let mut trusts = self.trusts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = trusts.get(&digest) {
            return Ok(known.clone());
        }
        let made = files.trust()?;
        trusts.insert(digest, made.clone());
        Ok(made)
    }
}

/// So many questions are under way at once, at most: each takes a descriptor here, and one more where its provider is
/// asked by a connection of its own. Raises the limit of this process (and of its children) as far as it may be.
fn room(wished: usize) -> usize {
    let wished = u64::try_from(wished).unwrap_or(u64::MAX).max(1);
    let needed = wished.saturating_mul(2).saturating_add(KEPT);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let most = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
        // What is refused is made up for by fewer questions at once.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(most),
                maximum: limit.maximum,
            },
        );
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let free = current.saturating_sub(KEPT).clamp(1, wished);
    usize::try_from(free).map_or(Semaphore::MAX_PERMITS, |free| {
        free.min(Semaphore::MAX_PERMITS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_words_that_line_up() {
        assert_eq!(
            format!("{:<9}|", Condition::Told(State::Running)),
            "Running  |"
        );
        assert_eq!(format!("{:<9}|", Condition::Timeout), "Timeout  |");
        assert_eq!(format!("{:<9}|", Condition::Unknown), "Unknown  |");
    }

    #[test]
    fn there_is_room_for_as_many_questions_as_the_limit_allows() {
        assert_eq!(room(0), 1);
        assert_eq!(room(10), 10);
        assert!(room(usize::MAX) <= Semaphore::MAX_PERMITS);
        let limit = getrlimit(Resource::Nofile);
        assert!(limit.current <= limit.maximum || limit.maximum.is_none());
    }
}
