//! A swarm's nodes, typed, as the engine reports them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use forge_driver::{Error, Kind, Result};

use super::zones::{Zone, quorum};

/// The label that holds a node's zone.
pub const ZONE_LABEL: &str = "zone";

/// What an engine says of its own part in a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalState {
    /// It is part of none.
    #[default]
    Inactive,
    /// It is on its way in, or back.
    Pending,
    /// It is part of one.
    Active,
    /// It was part of one and cannot go on.
    Error,
    /// It waits for the unlock key.
    Locked,
}

/// An engine's answer about its swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// Its part in a swarm.
    pub local: LocalState,
    /// Its node id; empty when it never was a member.
    pub node_id: String,
    /// Whether it is a manager.
    pub manager: bool,
    /// The cluster's id: managers that see a leader report it.
    pub cluster_id: Option<String>,
    /// What the engine complains about.
    pub error: String,
}

impl Membership {
    /// Whether it is or was admitted to a swarm. A first join that is still under way is not enough.
    #[must_use]
    pub fn belongs(&self) -> bool {
        self.local == LocalState::Locked
            || (self.local != LocalState::Inactive && !self.node_id.is_empty())
    }
}

/// Whether a node answers the managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known, as after a change of leader.
    Unknown,
    /// It does not answer.
    Down,
    /// It answers and takes tasks, as far as its availability goes.
    Ready,
    /// It left or was cut off.
    Disconnected,
}

/// What a node is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It takes tasks.
    Active,
    /// It keeps the tasks that it has.
    Pause,
    /// It has none.
    Drain,
}

/// A manager's part in the consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// It leads.
    Leader,
    /// It takes part.
    Reachable,
    /// It counts for the quorum and does not take part.
    Unreachable,
}

/// A member, as the managers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Its machine's host name.
    pub hostname: String,
    /// Its address between the machines.
    pub address: String,
    /// Whether it answers.
    pub health: Health,
    /// What it is used for.
    pub availability: Availability,
    /// Whether it is wished to be a manager.
    pub wants_manager: bool,
    /// Its part in the consensus; `None` for workers.
    pub manager: Option<Manager>,
    /// Its zone label.
    pub zone: Option<Zone>,
}

impl Node {
    /// Whether it does all that its role asks for.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.health == Health::Ready
            && matches!(
                self.manager,
                None | Some(Manager::Leader | Manager::Reachable)
            )
    }
}

/// The consensus, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Consensus {
    /// Managers that count.
    pub managers: u32,
    /// Managers that take part.
    pub reachable: u32,
    /// How many must take part.
    pub needed: u32,
    /// Whether one of them leads.
    pub leader: bool,
}

/// Counts the managers in `nodes`.
#[must_use]
pub fn consensus(nodes: &[Node]) -> Consensus {
    let count = |wanted: &[Manager]| {
        let matching = nodes
            .iter()
            .filter_map(|node| node.manager)
            .filter(|manager| wanted.contains(manager));
        u32::try_from(matching.count()).unwrap_or(u32::MAX)
    };
    let managers = count(&[Manager::Leader, Manager::Reachable, Manager::Unreachable]);
    Consensus {
        managers,
        reachable: count(&[Manager::Leader, Manager::Reachable]),
        needed: quorum(managers),
        leader: count(&[Manager::Leader]) > 0,
    }
}

/// Says whether the swarm still decides when the node `id` is taken out.
///
/// Two quorums have to hold: that of the managers before (they agree on the removal) and that of those
/// that stay. The last manager can never be taken out.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such node, [`Kind::Refused`] with the numbers when it must stay.
pub fn may_remove(nodes: &[Node], id: &str) -> Result<()> {
    let node = nodes
        .iter()
        .find(|node| node.id == id)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("the swarm has no node `{id}`")))?;
    if node.manager.is_none() {
        return Ok(());
    }
    let refused = |reason: String| {
        Error::new(
            Kind::Refused,
            format!("the manager `{}` must stay", node.hostname),
        )
        .because(reason)
        .hint("add or repair managers first: `forge cluster up`")
    };
    let now = consensus(nodes);
    let rest: Vec<Node> = nodes
        .iter()
        .filter(|other| other.id != id)
        .cloned()
        .collect();
    let after = consensus(&rest);
    if after.managers == 0 {
        return Err(refused("it is the only one".to_owned()));
    }
    for (when, counted) in [("now", now), ("without it", after)] {
        if counted.reachable < counted.needed {
            return Err(refused(format!(
                "{when} {} of {} managers are reachable, and the quorum needs {}",
                counted.reachable, counted.managers, counted.needed,
            )));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply<T> {
    Answer(T),
    Refusal { message: String },
}

fn reply<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    match serde_json::from_str(text.trim()) {
        Ok(Reply::Answer(answer)) => Ok(answer),
        Ok(Reply::Refusal { message }) => Err(Error::new(
            Kind::Failed,
            format!("the engine does not tell {what}"),
        )
        .because(message)),
        Err(error) => Err(Error::new(
            Kind::Invalid,
            format!("the engine's answer about {what} cannot be read"),
        )
        .because(error)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    swarm: SwarmPart,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SwarmPart {
    #[serde(rename = "NodeID", default)]
    node_id: String,
    #[serde(default)]
    local_node_state: String,
    #[serde(default)]
    control_available: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    #[serde(rename = "ID", default)]
    id: String,
}

/// Reads the engine's answer to `GET /info` (Docker Engine API, `SystemInfo`).
///
/// # Errors
/// [`Kind::Failed`] with the engine's words when it refuses, [`Kind::Invalid`] when the answer is
/// something else.
pub fn parse_membership(text: &str) -> Result<Membership> {
    let what = "its part in a swarm";
    let swarm = reply::<Info>(text, what)?.swarm;
    let local = match swarm.local_node_state.as_str() {
        "" | "inactive" => LocalState::Inactive,
        "pending" => LocalState::Pending,
        "active" => LocalState::Active,
        "error" => LocalState::Error,
        "locked" => LocalState::Locked,
        other => {
            return Err(Error::new(
                Kind::Invalid,
                format!("the engine's answer about {what} cannot be read"),
            )
            .because(format!("`{other}` is no state of a node")));
        }
    };
    Ok(Membership {
        local,
        node_id: swarm.node_id,
        manager: swarm.control_available,
        cluster_id: swarm
            .cluster
            .map(|cluster| cluster.id)
            .filter(|id| !id.is_empty()),
        error: swarm.error,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ID")]
    id: String,
    spec: SpecPart,
    #[serde(default)]
    description: Description,
    status: StatusPart,
    manager_status: Option<ManagerPart>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Description {
    hostname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecPart {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    role: String,
    availability: Availability,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StatusPart {
    state: Health,
    #[serde(default)]
    addr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerPart {
    #[serde(default)]
    leader: bool,
    #[serde(default)]
    reachability: String,
}

/// Reads the engine's answer to `GET /nodes` (Docker Engine API, `Node`); sorted by host name, then id.
///
/// # Errors
/// Those of [`parse_membership`].
pub fn parse_nodes(text: &str) -> Result<Vec<Node>> {
    let entries: Vec<Entry> = reply(text, "the nodes of its swarm")?;
    let mut nodes: Vec<Node> = entries.into_iter().map(node).collect();
    nodes.sort_by(|a, b| (&a.hostname, &a.id).cmp(&(&b.hostname, &b.id)));
    Ok(nodes)
}

fn node(entry: Entry) -> Node {
    Node {
        id: entry.id,
        hostname: entry.description.hostname,
        address: entry.status.addr,
        health: entry.status.state,
        availability: entry.spec.availability,
        wants_manager: entry.spec.role == "manager",
        manager: entry
            .manager_status
            .map(|manager| match manager.reachability.as_str() {
                "reachable" if manager.leader => Manager::Leader,
                "reachable" => Manager::Reachable,
                _ => Manager::Unreachable,
            }),
        zone: entry
            .spec
            .labels
            .unwrap_or_default()
            .get(ZONE_LABEL)
            .and_then(|zone| zone.parse().ok()),
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
