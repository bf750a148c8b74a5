//! The certificates of a cluster's machines, made anew one machine after another, and their engines, upgraded so: on a node
//! of a swarm the engine takes its containers down when it restarts.
//!
//! Before each node the quorum is checked; where its tasks have somewhere to go it is drained, and its engine restarts
//! when they run there; what it was used for is put back when the managers list it as ready. What is to be put back is
//! on disk before the drain, so that the same command goes on after a kill anywhere.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forge_driver::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::api::{Request, query};
use super::down::locked;
use super::look::{Seen, look};
use super::node::{Availability, Membership, Node};
use super::record::ClusterRecord;
use super::spec::ClusterName;
use super::swarm::{self, Expected};
use crate::interrupt;
use crate::machine::access::Connection;
use crate::machine::{Forge, Record, engine, live, renew};
use crate::remote::Guest;
use plan::{Task, Turn};

/// The tasks of a drained node run elsewhere within this time, or they are left where they are.
const DRAIN: Duration = Duration::from_secs(120);

/// Managers answer within this time: they may have to agree on a leader.
const LISTED: Duration = Duration::from_secs(60);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be put back: saved before a node is drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewing {
    /// The machine.
    pub machine: String,
    /// Its node.
    pub node: String,
    /// What it was used for.
    pub availability: Availability,
}

/// What would be done, in order; nothing is touched.
///
/// # Errors
/// When the cluster cannot be read, or its managers would not decide any more.
pub async fn dry_run(
    forge: &Forge,
    name: &ClusterName,
    wanted: &BTreeSet<String>,
) -> Result<Vec<Turn>> {
    let record = ClusterRecord::load(&forge.store, name)?;
    let seen = look(forge, name, Some(&record)).await?;
    let wanted = nodes_of(&seen, wanted);
    let tasks = match seen.manager() {
        Some(manager) => tasks(&*manager.guest).await?,
        None => Vec::new(),
    };
    plan::plan(&seen.observed.nodes, &tasks, &wanted)
}

/// The machines among `wanted` that are nodes, by their node ids.
fn nodes_of(seen: &Seen, wanted: &BTreeSet<String>) -> BTreeMap<String, String> {
    seen.observed
        .machines
        .iter()
        .filter_map(|machine| {
            let name = seen.name_of(machine.place)?;
            let node = machine.membership.as_ref().filter(|node| node.belongs())?;
            wanted
                .contains(name)
                .then(|| (node.node_id.clone(), name.to_owned()))
        })
        .collect()
}

/// The tasks that are to run, as a manager lists them: also those that take another's place and wait for its end (`ready`:
/// SwarmKit, `api/types.proto`, `TaskState`), and those of jobs (`complete`).
async fn tasks(manager: &dyn Guest) -> Result<Vec<Task>> {
    let filter = query(r#"{"desired-state":{"complete":true,"ready":true,"running":true}}"#);
    let path = format!("/tasks?filters={filter}");
    plan::parse_tasks(&Request::get(path).send(manager).await?)
}

/// Whether an update of the service is under way, or is being taken back (Docker Engine API, `Service`, `UpdateStatus`).
async fn updates(manager: &dyn Guest, service: &str) -> Result<bool> {
    let service = Request::get(format!("/services/{service}"))
        .ask(manager)
        .await?;
    Ok(matches!(
        service["UpdateStatus"]["State"].as_str(),
        Some("updating" | "rollback_started")
    ))
}

/// What each of the machines came to, by name: whether it was changed.
type Done = Vec<(String, Result<bool>)>;

/// Makes certificates anew. The first failure ends it: no further node is touched.
///
/// # Errors
/// When the cluster cannot be read, or locks are not had.
pub async fn renew(
    forge: &Forge,
    name: &ClusterName,
    wanted: &BTreeSet<String>,
    keep: renew::Keep,
) -> Result<Done> {
    in_turns(forge, name, wanted, Job::Certificate(keep)).await
}

/// Brings engines to the newest version of their packages; a node whose engine is the newest is not drained. The first
/// failure ends it: no further node is touched.
///
/// # Errors
/// As [`renew`].
pub async fn upgrade(forge: &Forge, name: &ClusterName, wanted: &BTreeSet<String>) -> Result<Done> {
    in_turns(forge, name, wanted, Job::Upgrade).await
}

/// What is done to a node in its turn.
#[derive(Clone, Copy)]
enum Job {
    Certificate(renew::Keep),
    Upgrade,
}

impl Job {
    /// What a machine keeps that has no turn, and the command that goes on.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Certificate(_) => ("certificate", "regenerate-certs"),
            Self::Upgrade => ("engine", "upgrade"),
        }
    }
}

async fn in_turns(
    forge: &Forge,
    name: &ClusterName,
    wanted: &BTreeSet<String>,
    job: Job,
) -> Result<Done> {
    // Nobody waits for a cluster that is not there; what counts is read when nobody else writes it.
    ClusterRecord::load(&forge.store, name)?;
    let (_cluster, _machines, members) = locked(forge, name).await?;
    let mut record = ClusterRecord::load(&forge.store, name)?;
    let seen = look(forge, name, Some(&record)).await?;
    let mut done = Vec::new();
    let mut rest = BTreeSet::new();
    for member in members
        .iter()
        .filter(|member| wanted.contains(&member.name))
    {
        match live::running(forge, member).await {
            Ok(_) => {
                rest.insert(member.name.clone());
            }
            Err(error) => done.push((member.name.clone(), Err(error))),
        }
    }
    let mut nodes = nodes_of(&seen, &rest);
    let mut work = Work {
        forge,
        seen: &seen,
        record: &mut record,
        job,
    };
    work.put_back("").await?;
    // What is no node yet has no tasks.
    let others: Vec<String> = rest
        .iter()
        .filter(|name| !nodes.values().any(|node| node == *name))
        .cloned()
        .collect();
    for name in others {
        let result = work.machine(&name).await;
        done.push((name, result));
    }
    let mut failed = None;
    while failed.is_none() && !nodes.is_empty() {
        let Some((name, turn)) = work.next(&nodes).await? else {
            break;
        };
        let result = match turn {
            Ok(turn) => work.turn(&turn, nodes.len() == 1).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            failed = Some(name.clone());
        }
        nodes.retain(|_, machine| *machine != name);
        done.push((name, result));
    }
    done.extend(nodes.into_values().map(|left| {
        let why = match &failed {
            Some(name) => format!("nothing is touched after `{name}` failed"),
            None => "the managers do not list it".to_owned(),
        };
        let error = Error::new(
            Kind::Conflict,
            format!("machine `{left}` keeps its {}: {why}", job.words().0),
        );
        (left, Err(error))
    }));
    Ok(done)
}

/// One cluster, at work on it.
struct Work<'a> {
    forge: &'a Forge,
    seen: &'a Seen,
    record: &'a mut ClusterRecord,
    job: Job,
}

impl Work<'_> {
    /// Connections to the managers, that of `machine` last: its engine is to restart.
    fn managers(&self, machine: &str) -> Vec<&Connection> {
        let manages = |member: &Membership| member.manager;
        let mut names: Vec<&str> = self
            .seen
            .observed
            .machines
            .iter()
            .filter(|machine| machine.membership.as_ref().is_some_and(manages))
            .filter_map(|machine| self.seen.name_of(machine.place))
            .collect();
        names.sort_by_key(|name| *name == machine);
        names
            .into_iter()
            .filter_map(|name| self.seen.connections.get(name))
            .collect()
    }

    /// A manager that decides, with what it lists; one that has just come back may need a moment.
    async fn listed(&self, machine: &str) -> Result<(&Connection, Vec<Node>, Vec<Task>)> {
        let end = Instant::now() + LISTED.min(self.forge.patience);
        loop {
            let mut last = None;
            for manager in self.managers(machine) {
                let answer = async {
                    let nodes = swarm::nodes(&*manager.guest).await?;
                    Ok::<_, Error>((nodes, tasks(&*manager.guest).await?))
                };
                match answer.await {
                    Ok((nodes, tasks)) => return Ok((manager, nodes, tasks)),
                    Err(error) => last = Some(error),
                }
            }
            let error = last.unwrap_or_else(|| {
                let name = &self.record.spec.name;
                Error::new(
                    Kind::Unavailable,
                    format!("no manager of cluster `{name}` answers"),
                )
            });
            interrupt::check()?;
            if Instant::now() >= end {
                return Err(error);
            }
            self.forge.events.trouble(&error).await;
            sleep(PAUSE).await;
        }
    }

    /// Whose turn it is, as things are now.
    async fn next(
        &self,
        wanted: &BTreeMap<String, String>,
    ) -> Result<Option<(String, Result<Turn>)>> {
        interrupt::check()?;
        let (_, nodes, tasks) = self.listed("").await?;
        Ok(plan::next(&nodes, &tasks, wanted))
    }

    /// Puts back what a command that was cut off had found.
    async fn put_back(&mut self, machine: &str) -> Result<()> {
        let Some(left) = self.record.renewing.clone() else {
            return Ok(());
        };
        let (manager, ..) = self.listed(machine).await?;
        swarm::set_use(&*manager.guest, &left.node, left.availability).await?;
        self.record.renewing = None;
        self.record.save(&self.forge.store)
    }

    /// One node, from its drain until it is back as it was. What does not run again of the `last` one is told, and no error:
    /// nothing else is at stake.
    async fn turn(&mut self, turn: &Turn, last: bool) -> Result<bool> {
        let done = self.work(turn, last).await;
        match done {
            Err(error) if self.record.renewing.is_some() => Err(self.undrained(turn, error).await),
            done => done,
        }
    }

    /// Why its turn failed, with what is left of it: the node is put back where that can be done.
    async fn undrained(&mut self, turn: &Turn, error: Error) -> Error {
        let name = &turn.machine;
        match self.put_back(name).await {
            Ok(()) => error,
            // The first error is the one to report.
            Err(_) => error.hint(format!(
                "node `{name}` stays drained, or paused: `forge {} {name}` puts it back and goes on; on a manager, `docker node update --availability {:?} {name}` puts it back alone",
                self.job.words().1, turn.availability
            )),
        }
    }

    async fn work(&mut self, turn: &Turn, last: bool) -> Result<bool> {
        let name = turn.machine.as_str();
        let forge = self.forge.of(name);
        let mut turn = turn.clone();
        let fetched = match self.job {
            Job::Certificate(_) => None,
            Job::Upgrade => {
                let record = Record::load(&forge.store, name)?;
                let fetched = engine::fetched(&forge, record).await;
                match fetched.map_err(|error| not_upgraded(name, error))? {
                    None => return Ok(false),
                    fetched => {
                        // That took its time.
                        turn = self.as_now(&turn).await?;
                        fetched
                    }
                }
            }
        };
        if turn.drain {
            self.record.renewing = Some(Renewing {
                machine: turn.machine.clone(),
                node: turn.node.clone(),
                availability: turn.availability,
            });
            self.record.save(&forge.store)?;
            if !self.drained(&forge, &turn).await? {
                self.put_back(name).await?;
            }
        }
        let changed = match fetched {
            None => self.machine(name).await?,
            Some((record, open)) => {
                let restarted = engine::restart(&forge, record, &open).await;
                restarted.map_err(|error| not_upgraded(name, error))?;
                true
            }
        };
        let deadline = Instant::now() + forge.patience;
        forge
            .events
            .step(
                "waiting",
                "the managers to list it as ready",
                Some(deadline),
            )
            .await;
        let (manager, ..) = self.listed(name).await?;
        let expected = [Expected {
            machine: name,
            node_id: &turn.node,
            role: turn.role,
        }];
        let told = forge.events.clone();
        let on_trouble = move |why: &str| told.progress(&format!("waiting: {why}"));
        swarm::wait(&*manager.guest, &expected, forge.patience, &on_trouble).await?;
        self.put_back(name).await?;
        if changed {
            self.back(&forge, &turn, last).await?;
        }
        forge.events.finished("ready in the swarm", changed).await;
        Ok(changed)
    }

    /// The turn, as things are now.
    async fn as_now(&self, turn: &Turn) -> Result<Turn> {
        let (_, nodes, tasks) = self.listed("").await?;
        let wanted = BTreeMap::from([(turn.node.clone(), turn.machine.clone())]);
        match plan::next(&nodes, &tasks, &wanted) {
            Some((_, turn)) => turn,
            None => Err(Error::new(
                Kind::Conflict,
                format!("the managers do not list node `{}` any more", turn.machine),
            )),
        }
    }

    /// Drains the node. Whether its tasks run elsewhere in time.
    async fn drained(&self, forge: &Forge, turn: &Turn) -> Result<bool> {
        let limit = || Instant::now() + DRAIN.min(forge.patience);
        let (name, mut end) = (&turn.machine, limit());
        forge
            .events
            .step("draining", "its tasks to run elsewhere", Some(end))
            .await;
        if !turn.ahead.is_empty() {
            self.stop_alone(turn).await?;
            let waiting = |tasks: &[Task]| {
                let runs = |task: &&Task| !plan::runs_elsewhere(tasks, &turn.node, &task.service);
                match turn.ahead.iter().filter(runs).count() {
                    0 => None,
                    count => Some(format!(
                        "the first tasks of {count} services do not run elsewhere yet"
                    )),
                }
            };
            if let Some(why) = self.until(forge, turn, ("draining", end), waiting).await? {
                forge
                    .events
                    .warning(format!(
                        "the services of `{name}` are silent until they run elsewhere: {why}"
                    ))
                    .await;
                end = limit();
            }
        }
        let (manager, ..) = self.listed(name).await?;
        swarm::set_use(&*manager.guest, &turn.node, Availability::Drain).await?;
        let left = |tasks: &[Task]| plan::still_there(tasks, &turn.node, &turn.services);
        let late = self.until(forge, turn, ("draining", end), left).await?;
        if let Some(why) = &late {
            forge
                .events
                .warning(format!("the tasks of `{name}` do not move in time ({why}): they start again with its engine"))
                .await;
        }
        Ok(late.is_none())
    }

    /// A drain stops all tasks of a node at once. So one of each service that has them all here is stopped alone, while the
    /// node takes no others: the swarm starts another elsewhere.
    async fn stop_alone(&self, turn: &Turn) -> Result<()> {
        let (manager, ..) = self.listed(&turn.machine).await?;
        swarm::set_use(&*manager.guest, &turn.node, Availability::Pause).await?;
        let Some(node) = self.seen.connections.get(&turn.machine) else {
            return Ok(());
        };
        let stops = turn.ahead.iter().map(async |task| {
            // An update counts a task that ends as one that failed, and may be paused or taken back by it.
            match updates(&*manager.guest, &task.service).await {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            let mut path = format!("/containers/{}/stop", task.container);
            if let Some(grace) = task.grace {
                path.push_str(&format!("?t={}", grace.as_secs()));
            }
            match Request::order(path).send(&*node.guest).await {
                // It ended by itself, or takes its time to end.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Timeout) => Ok(()),
                stopped => stopped.map(|_| ()),
            }
        });
        let stopped: Vec<Result<()>> = futures_util::future::join_all(stops).await;
        stopped.into_iter().collect()
    }

    /// Waits for the tasks that its engine took down: the next node may have the others of their services.
    async fn back(&self, forge: &Forge, turn: &Turn, last: bool) -> Result<()> {
        let wait = if last {
            DRAIN.min(forge.patience)
        } else {
            forge.patience
        };
        let end = Instant::now() + wait;
        forge
            .events
            .step("waiting", "its tasks to run again", Some(end))
            .await;
        // Seen once is enough: some come and go.
        let mut rest = turn.services.clone();
        let missing = |tasks: &[Task]| {
            rest.retain(|service, share| !plan::is_back(tasks, &turn.node, service, share));
            match rest.len() {
                0 => None,
                1 => Some("1 service does not run as before yet".to_owned()),
                count => Some(format!("{count} services do not run as before yet")),
            }
        };
        let Some(why) = self.until(forge, turn, ("waiting", end), missing).await? else {
            return Ok(());
        };
        let name = &turn.machine;
        let what = format!("what ran on node `{name}` does not run again");
        if last {
            forge.events.warning(format!("{what}: {why}")).await;
            return Ok(());
        }
        Err(Error::new(Kind::Timeout, what).because(why).hint(format!(
            "`docker service ps` on a manager tells what keeps it; then `forge {}` for the other nodes",
            self.job.words().1
        )))
    }

    /// Asks the managers until nothing is to be waited for any more; what is, where the time is over.
    async fn until(
        &self,
        forge: &Forge,
        turn: &Turn,
        (step, end): (&str, Instant),
        mut waits_for: impl FnMut(&[Task]) -> Option<String>,
    ) -> Result<Option<String>> {
        loop {
            let (.., tasks) = self.listed(&turn.machine).await?;
            let Some(why) = waits_for(&tasks) else {
                return Ok(None);
            };
            interrupt::check()?;
            if Instant::now() >= end {
                return Ok(Some(why));
            }
            forge.events.progress(&format!("{step}: {why}"));
            sleep(PAUSE).await;
        }
    }

    /// The machine's own part.
    async fn machine(&self, name: &str) -> Result<bool> {
        let forge = self.forge.of(name);
        let record = Record::load(&forge.store, name)?;
        let open = self.seen.connections.get(name).cloned();
        match self.job {
            Job::Certificate(keep) => renew::machine(&forge, record, open, keep).await,
            Job::Upgrade => engine::upgrade(&forge, record)
                .await
                .map_err(|error| not_upgraded(name, error)),
        }
    }
}

fn not_upgraded(name: &str, error: Error) -> Error {
    error.context(format!("failed to upgrade machine `{name}`"))
}
