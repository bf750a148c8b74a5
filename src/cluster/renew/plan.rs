//! Whose turn it is, and what becomes of its tasks: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use forge_driver::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::node::{Availability, Consensus, Health, Manager, Node, consensus};
use crate::cluster::zones::Role;

/// A task that is to run, as the managers list it (Docker Engine API, `Task`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its service.
    pub service: String,
    /// The node that it was given to; empty while no node takes it.
    pub node: String,
    /// It is one of a number of equals, and may run on any node that the constraints allow; otherwise each node has
    /// its own.
    pub replicated: bool,
    /// It runs.
    pub running: bool,
    /// Where it may run.
    pub constraints: Vec<String>,
    /// Its container; empty while it has none.
    pub container: String,
    /// Another takes its place whenever it ends, however often (`RestartPolicy`).
    pub replaced: bool,
    /// It is given so long to end; `None`: as long as the engine thinks.
    pub grace: Option<Duration>,
    /// It is to come to an end, and begins anew where it is stopped before.
    pub job: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServiceID", default)]
    service: String,
    #[serde(rename = "NodeID", default)]
    node: String,
    #[serde(default)]
    slot: u64,
    #[serde(default)]
    desired_state: String,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Status {
    state: String,
    container_status: Option<ContainerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    container: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Spec {
    placement: Option<Placement>,
    restart_policy: RestartPolicy,
    container_spec: ContainerSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ContainerSpec {
    /// Nanoseconds.
    stop_grace_period: Option<u64>,
}

/// What a task does not leave any more (SwarmKit, `api/types.proto`, `TaskState`).
const FINAL: [&str; 6] = [
    "complete", "failed", "shutdown", "rejected", "orphaned", "remove",
];

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Placement {
    constraints: Option<Vec<String>>,
}

/// What is left out counts as the engine says: always, without a limit.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy {
    condition: Option<String>,
    max_attempts: Option<u64>,
}

impl RestartPolicy {
    fn always(&self) -> bool {
        self.condition.as_deref().is_none_or(|word| word == "any")
            && self.max_attempts.unwrap_or_default() == 0
    }
}

/// Reads the engine's answer to `GET /tasks`.
///
/// # Errors
/// [`Kind::Invalid`] when it is something else.
pub fn parse_tasks(text: &str) -> Result<Vec<Task>> {
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|error| {
        Error::new(
            Kind::Invalid,
            "the engine's answer about its tasks cannot be read",
        )
        .because(error)
    })?;
    let task = |entry: Entry| Task {
        service: entry.service,
        node: entry.node,
        replicated: entry.slot > 0,
        running: entry.status.state == "running",
        container: entry
            .status
            .container_status
            .map(|status| status.container)
            .unwrap_or_default(),
        replaced: entry.spec.restart_policy.always(),
        grace: entry
            .spec
            .container_spec
            .stop_grace_period
            .map(Duration::from_nanos),
        job: entry.desired_state == "complete",
        constraints: entry
            .spec
            .placement
            .and_then(|placement| placement.constraints)
            .unwrap_or_default(),
    };
    let over = |task: &Entry| {
        task.desired_state == "complete" && FINAL.contains(&task.status.state.as_str())
    };
    Ok(entries
        .into_iter()
        .filter(|entry| !over(entry))
        .map(task)
        .collect())
}

/// One node's turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// Its machine.
    pub machine: String,
    /// Its id.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// What it is used for, before and after.
    pub availability: Availability,
    /// It is drained first.
    pub drain: bool,
    /// So many tasks move to other nodes before its engine restarts.
    pub moves: usize,
    /// So many have nowhere to go, and are started again with the engine.
    pub stops: usize,
    /// While its engine restarts the managers decide nothing; services go on.
    pub no_quorum: bool,
    /// So many services have all that runs of them here, and are silent until it runs elsewhere.
    pub silent: usize,
    /// The services that have tasks here, by id.
    #[serde(skip)]
    pub services: BTreeMap<String, Share>,
    /// Of each service that has several tasks here and none that runs elsewhere, one that goes ahead, so that the service
    /// answers when the others move.
    #[serde(skip)]
    pub ahead: Vec<Task>,
}

/// What runs of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// So many of its tasks run, here and elsewhere.
    pub running: usize,
    /// Its tasks move when the node is drained.
    pub moves: bool,
    /// The containers of those that run here.
    pub here: BTreeSet<String>,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = |count: usize| match count {
            1 => "1 task".to_owned(),
            count => format!("{count} tasks"),
        };
        let mut parts = Vec::new();
        if self.drain {
            parts.push(format!(
                "drained, {} to other nodes",
                match self.moves {
                    1 => "1 task moves".to_owned(),
                    count => format!("{count} tasks move"),
                }
            ));
        }
        match self.silent {
            0 => {}
            1 => parts.push("1 service is silent until it runs there".to_owned()),
            count => parts.push(format!("{count} services are silent until they run there")),
        }
        parts.push(match self.stops {
            0 => "its engine restarts".to_owned(),
            count => format!("its engine restarts, and {} with it", tasks(count)),
        });
        if self.no_quorum {
            parts.push("meanwhile the managers decide nothing".to_owned());
        }
        if self.drain {
            parts.push(format!(
                "then it is {} again",
                match self.availability {
                    Availability::Active => "active",
                    Availability::Pause => "paused",
                    Availability::Drain => "drained",
                }
            ));
        }
        write!(f, "{} ({}): {}", self.machine, self.role, parts.join("; "))
    }
}

/// The turns of the nodes in `wanted` (their machines by node id): workers, then managers, the one that leads last.
///
/// # Errors
/// [`Kind::Refused`] with the numbers when the managers would not decide any more.
pub fn plan(
    nodes: &[Node],
    tasks: &[Task],
    wanted: &BTreeMap<String, String>,
) -> Result<Vec<Turn>> {
    order(nodes, wanted)
        .into_iter()
        .map(|(node, machine)| turn(nodes, tasks, node, machine))
        .collect()
}

/// The machine whose turn is first, and its turn as things are now; `None` when none of the nodes in `wanted` is listed.
pub fn next(
    nodes: &[Node],
    tasks: &[Task],
    wanted: &BTreeMap<String, String>,
) -> Option<(String, Result<Turn>)> {
    let (node, machine) = order(nodes, wanted).into_iter().next()?;
    Some((machine.clone(), turn(nodes, tasks, node, machine)))
}

fn order<'a>(
    nodes: &'a [Node],
    wanted: &'a BTreeMap<String, String>,
) -> Vec<(&'a Node, &'a String)> {
    let mut chosen: Vec<(&Node, &String)> = nodes
        .iter()
        .filter_map(|node| Some((node, wanted.get(&node.id)?)))
        .collect();
    let rank = |node: &Node| match node.manager {
        None => 0,
        Some(Manager::Leader) => 2,
        Some(_) => 1,
    };
    chosen.sort_by_key(|(node, machine)| (rank(node), machine.len(), (*machine).clone()));
    chosen
}

fn turn(nodes: &[Node], tasks: &[Task], node: &Node, machine: &str) -> Result<Turn> {
    let no_quorum = may_restart(nodes, node)?;
    let own = tasks.iter().filter(|task| task.node == node.id);
    let (moving, staying): (Vec<&Task>, Vec<&Task>) =
        own.partition(|task| has_elsewhere(nodes, node, task));
    let drain = !moving.is_empty() && node.availability != Availability::Drain;
    let mut services = BTreeMap::new();
    for (own, moves) in [(&staying, false), (&moving, true)] {
        for task in own.iter().filter(|task| !task.job) {
            let share = share(tasks, &node.id, &task.service, moves);
            services.insert(task.service.clone(), share);
        }
    }
    let (ahead, silent) = if drain {
        ahead(&moving, &services)
    } else {
        (Vec::new(), 0)
    };
    Ok(Turn {
        machine: machine.to_owned(),
        node: node.id.clone(),
        role: if node.manager.is_some() {
            Role::Manager
        } else {
            Role::Worker
        },
        availability: node.availability,
        drain,
        moves: if drain { moving.len() } else { 0 },
        stops: staying.len(),
        no_quorum,
        silent,
        services,
        ahead,
    })
}

/// What runs of a service, of which the node has tasks.
fn share(tasks: &[Task], node: &str, service: &str, moves: bool) -> Share {
    let run = || {
        let own = |task: &&Task| task.service == service && task.running;
        tasks.iter().filter(own)
    };
    let here = run().filter(|task| task.node == node);
    Share {
        running: run().count(),
        moves,
        here: here.map(|task| task.container.clone()).collect(),
    }
}

/// Of the services of which nothing runs elsewhere: the tasks that go ahead, one of each that has others to follow, and how
/// many services have none that could.
fn ahead(moving: &[&Task], services: &BTreeMap<String, Share>) -> (Vec<Task>, usize) {
    let (mut ahead, mut silent) = (Vec::new(), 0);
    for (service, share) in services.iter().filter(|(_, share)| share.moves) {
        let own = |task: &&&Task| task.service == *service && task.running;
        let here: Vec<&Task> = moving.iter().filter(own).copied().collect();
        if here.is_empty() || here.len() < share.running {
            continue;
        }
        let goes = |task: &&&Task| task.replaced && !task.container.is_empty();
        match here.iter().find(goes).filter(|_| here.len() > 1) {
            Some(task) => ahead.push(Task::clone(task)),
            None => silent += 1,
        }
    }
    (ahead, silent)
}

/// Whether the managers decide nothing while this node's engine restarts; of one or two nothing else can be had.
///
/// # Errors
/// [`Kind::Refused`] where managers are missing, and the quorum is lost without this one.
pub fn may_restart(nodes: &[Node], node: &Node) -> Result<bool> {
    let Consensus {
        managers,
        reachable,
        needed,
        leader,
    } = consensus(nodes);
    let takes_part = matches!(node.manager, Some(Manager::Leader | Manager::Reachable));
    let left = reachable - u32::from(takes_part);
    if reachable >= needed && leader {
        if left >= needed || !takes_part {
            return Ok(false);
        }
        if reachable == managers {
            return Ok(true);
        }
    }
    Err(Error::new(
        Kind::Refused,
        format!("the engine of node `{}` must not restart now", node.hostname),
    )
    .because(format!(
        "{reachable} of {managers} managers take part, {left} without it, and {needed} are needed"
    ))
    .hint("bring the other managers back first: `forge cluster status` shows them, `forge cluster start` starts them"))
}

/// Whether another node can take the task.
fn has_elsewhere(nodes: &[Node], from: &Node, task: &Task) -> bool {
    task.replicated
        && !task.job
        && nodes.iter().any(|node| {
            node.id != from.id
                && node.health == Health::Ready
                && node.availability == Availability::Active
                && task.constraints.iter().all(|wish| allows(wish, node))
        })
}

/// Whether a constraint (docker/docs, `docker service create`, constraints) lets the task run there. One about what is not
/// known of nodes here counts as met: where no node takes the task, that shows.
fn allows(wish: &str, node: &Node) -> bool {
    let (key, value, equal) = match (wish.split_once("!="), wish.split_once("==")) {
        (Some((key, value)), _) => (key, value, false),
        (None, Some((key, value))) => (key, value, true),
        (None, None) => return true,
    };
    let zone = node.zone.map(|zone| zone.to_string());
    let is = match key.trim() {
        "node.id" => node.id.as_str(),
        "node.hostname" => node.hostname.as_str(),
        "node.role" if node.manager.is_some() => "manager",
        "node.role" => "worker",
        "node.labels.zone" => zone.as_deref().unwrap_or_default(),
        _ => return true,
    };
    (is.eq_ignore_ascii_case(value.trim())) == equal
}

/// Whether a task of this service runs on another node.
pub fn runs_elsewhere(tasks: &[Task], node: &str, service: &str) -> bool {
    tasks
        .iter()
        .any(|task| task.service == service && task.running && task.node != node)
}

/// Why the tasks that are to leave the node have not left it, in words; `None` when as many run elsewhere as ran before.
pub fn still_there(
    tasks: &[Task],
    node: &str,
    services: &BTreeMap<String, Share>,
) -> Option<String> {
    let moves = |service: &str| services.get(service).is_some_and(|share| share.moves);
    let here = tasks
        .iter()
        .filter(|task| task.replicated && task.node == node && moves(&task.service))
        .count();
    let missing: usize = services
        .iter()
        .filter(|(_, share)| share.moves)
        .map(|(service, share)| missing(tasks, service, share))
        .sum();
    match (here, missing) {
        (0, 0) => None,
        (0, missing) => Some(format!("{missing} of its tasks do not run elsewhere yet")),
        (here, _) => Some(format!("{here} of its tasks are still there")),
    }
}

/// Whether a service that had tasks on a node is what it was before the engine there restarted. Those that stay there run in
/// other containers then: managers list the earlier ones until the engine tells them.
pub fn is_back(tasks: &[Task], node: &str, service: &str, before: &Share) -> bool {
    if before.moves {
        return missing(tasks, service, before) == 0;
    }
    let mut own = tasks
        .iter()
        .filter(|task| task.service == service)
        .peekable();
    before.here.is_empty()
        || own.peek().is_none()
        || own
            .any(|task| task.running && task.node == node && !before.here.contains(&task.container))
}

/// How many tasks of the service ran before and do not now. One that is wished no longer, and one that did not run before
/// either, is not waited for.
fn missing(tasks: &[Task], service: &str, before: &Share) -> usize {
    let own = || tasks.iter().filter(|task| task.service == service);
    let running = own().filter(|task| task.running).count();
    before.running.min(own().count()).saturating_sub(running)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
