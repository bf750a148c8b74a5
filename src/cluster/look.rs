//! What is there, by reading alone: the machines of a cluster, and what their engines say.

use std::collections::BTreeMap;
use std::time::Duration;

use forge_driver::{Claim, Error, Instance, Kind, Observation, Result, State};
use tokio::task::JoinSet;

use super::node::{LocalState, Manager, Membership};
use super::plan::{Machine, Made, Observed};
use super::record::{ClusterRecord, members};
use super::spec::ClusterName;
use super::swarm;
use super::zones::Place;
use crate::machine::access::{self, Connection};
use crate::machine::{Forge, Record, Stage};
use crate::registry;

/// A machine that does not answer within this time is taken as silent.
const CONNECT: Duration = Duration::from_secs(20);
/// How long one is waited for of which its provider could say nothing.
const GLANCE: Duration = Duration::from_secs(5);
/// At most so many machines are asked at once.
const FAN_OUT: usize = 32;

/// A cluster, seen.
pub struct Seen {
    /// For the plan.
    pub observed: Observed,
    /// The machines' records, by name.
    pub records: BTreeMap<String, Record>,
    /// Open connections to those that answer, by name.
    pub connections: BTreeMap<String, Connection>,
    /// Why a provider could say nothing of a machine, by name.
    pub troubles: BTreeMap<String, String>,
    /// Why a driver's provider could not be asked at all.
    silent: Option<Error>,
}

impl Seen {
    /// Refuses to go on where a provider could not be asked: what its machines are is not known.
    ///
    /// # Errors
    /// Why it could not.
    pub fn asked(&mut self) -> Result<()> {
        match self.silent.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A connection to an active manager.
    pub fn manager(&self) -> Option<&Connection> {
        self.managers().into_iter().next()
    }

    /// Connections to all active managers; first those that the list of nodes calls reachable.
    pub fn managers(&self) -> Vec<&Connection> {
        let mut found: Vec<(bool, &Connection)> =
            self.observed
                .machines
                .iter()
                .filter(|machine| {
                    machine.membership.as_ref().is_some_and(|membership| {
                        membership.manager && membership.local == LocalState::Active
                    })
                })
                .filter_map(|machine| {
                    let id = &machine.membership.as_ref()?.node_id;
                    let lost =
                        self.observed.nodes.iter().any(|node| {
                            node.id == *id && node.manager == Some(Manager::Unreachable)
                        });
                    Some((lost, self.connections.get(self.name_of(machine.place)?)?))
                })
                .collect();
        found.sort_by_key(|(lost, _)| *lost);
        found
            .into_iter()
            .map(|(_, connection)| connection)
            .collect()
    }

    /// The name of the machine at a place.
    pub fn name_of(&self, place: Place) -> Option<&str> {
        self.records
            .values()
            .find(|record| place_of(record) == Some(place))
            .map(|record| record.name.as_str())
    }
}

/// The place that a record gives its machine.
pub fn place_of(record: &Record) -> Option<Place> {
    let member = record.member.as_ref()?;
    let name: ClusterName = member.cluster.parse().ok()?;
    let (role, index) = name.parse_machine(&record.name)?;
    Some(Place {
        role,
        index,
        zone: member.zone,
    })
}

/// Looks at a cluster: records, power states, and what the engines of running machines say.
///
/// # Errors
/// When a record cannot be read. A machine that does not answer is not an error, and neither is a provider:
/// machines are asked themselves all the same ([`Seen::asked`]).
pub async fn look(
    forge: &Forge,
    name: &ClusterName,
    record: Option<&ClusterRecord>,
) -> Result<Seen> {
    let mut records: BTreeMap<String, Record> = members(&forge.store, name)?
        .into_iter()
        .map(|record| (record.name.clone(), record))
        .collect();
    let (sights, silent) = sights(forge, records.values()).await?;
    let states: BTreeMap<Claim, State> = sights
        .iter()
        .map(|(claim, sight)| (*claim, sight.state))
        .collect();
    for record in records.values_mut() {
        // Another address than the recorded one may have been given since; what writes it down is a start.
        let now = sights
            .get(&record.claim)
            .and_then(|sight| sight.instance.clone())
            .filter(Instance::located);
        if !record.placement.decided() && now.is_some() {
            record.instance = now;
        }
    }
    let answers = ask(forge, &records, &states).await;
    let mut connections = BTreeMap::new();
    let mut machines = Vec::new();
    for record in records.values() {
        let Some(place) = place_of(record) else {
            continue;
        };
        let mut membership = None;
        if let Some((connection, answer)) = answers.get(&record.name) {
            membership.clone_from(answer);
            connections.insert(record.name.clone(), connection.clone());
        }
        machines.push(Machine {
            place,
            made: if record.stage == Stage::Ready {
                Made::Ready
            } else {
                Made::Partly
            },
            state: states.get(&record.claim).copied().unwrap_or(State::Absent),
            membership,
        });
    }
    let mut seen = Seen {
        observed: Observed {
            cluster_id: record.and_then(|record| record.cluster_id.clone()),
            machines,
            nodes: Vec::new(),
            // For those to say who know the wish.
            hosts: Vec::new(),
        },
        troubles: records
            .values()
            .filter_map(|record| {
                let why = sights.get(&record.claim)?.trouble.clone()?;
                Some((record.name.clone(), why))
            })
            .collect(),
        records,
        connections,
        silent,
    };
    // One of them may have lost the others. Without a quorum there is no list at all; the plan and the status
    // say so from what there is.
    for manager in seen.managers() {
        match swarm::nodes(&*manager.guest).await {
            Ok(nodes) => {
                seen.observed.nodes = nodes;
                break;
            }
            Err(error) => forge.events.trouble(&error).await,
        }
    }
    Ok(seen)
}

/// What the providers say of many machines, one call for each driver; and why one could not be asked.
async fn sights<'a>(
    forge: &Forge,
    records: impl Iterator<Item = &'a Record>,
) -> Result<(BTreeMap<Claim, Observation>, Option<Error>)> {
    let mut by_driver: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_driver.entry(&record.driver).or_default().push(record);
    }
    let mut sights = BTreeMap::new();
    let mut silent = None;
    for (id, records) in by_driver {
        let Some(first) = records.first() else {
            continue;
        };
        let driver = registry::open(forge, id, &first.config)?;
        let claims: Vec<Claim> = records.iter().map(|record| record.claim).collect();
        let observed = match driver.observe(&claims).await {
            Ok(observed) => observed,
            Err(error) => {
                let why = error.line();
                silent = Some(error);
                claims
                    .iter()
                    .map(|claim| Observation {
                        claim: *claim,
                        state: State::Error,
                        instance: None,
                        network: None,
                        trouble: Some(why.clone()),
                    })
                    .collect()
            }
        };
        sights.extend(observed.into_iter().map(|seen| (seen.claim, seen)));
    }
    Ok((sights, silent))
}

type Answers = BTreeMap<String, (Connection, Option<Membership>)>;

async fn ask(
    forge: &Forge,
    records: &BTreeMap<String, Record>,
    states: &BTreeMap<Claim, State>,
) -> Answers {
    let mut tasks = JoinSet::new();
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(FAN_OUT));
    for record in records.values() {
        // A guest may well answer while its provider does not; where its host is lost it never will.
        let patience = match states.get(&record.claim) {
            Some(State::Running) => CONNECT,
            Some(State::Error) => GLANCE,
            _ => continue,
        };
        if record.stage < Stage::Reached || record.leaving {
            continue;
        }
        let (forge, record, room) = (forge.of(&record.name), record.clone(), room.clone());
        tasks.spawn(async move {
            // Never closed; without a permit the work would only start sooner.
            let _permit = room.acquire().await;
            let access = forge.access(&record).ok()?;
            // A busy machine may let the first questions pass.
            let connection = match access::open(&*access, &record, patience).await {
                Ok(connection) => connection,
                Err(error) => {
                    forge.events.trouble(&error).await;
                    return None;
                }
            };
            let membership = match swarm::state(&*connection.guest).await {
                Ok(membership) => Some(membership),
                Err(error) if error.kind() == Kind::Timeout => None,
                Err(error) => {
                    forge.events.trouble(&error).await;
                    None
                }
            };
            Some((record.name, (connection, membership)))
        });
    }
    let mut answers = Answers::new();
    while let Some(joined) = tasks.join_next().await {
        if let Ok(Some((name, answer))) = joined {
            answers.insert(name, answer);
        }
    }
    answers
}
