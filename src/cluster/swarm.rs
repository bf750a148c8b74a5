//! One swarm, through its engines: what it says of itself, and the few changes that form it.
//!
//! The truth is what the managers list, never the exit code of a command: a join may be reported as
//! failed and still go on. Every command has a deadline in the machine itself, because a hanging engine
//! outlives the connection that asked it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use forge_driver::assets::Assets;
use forge_driver::{Error, Kind, Result, process};

use super::api::Request;
use super::node::{self, Availability, Health, Manager, Membership, Node};
use super::pool;
use super::zones::{Role, Zone};
use crate::interrupt;
use crate::playbook::{self, Report, Secrets, StepResult, Vars};
use crate::remote::Guest;
use crate::secret::Secret;

/// The port on which managers take joins (docker/docs, engine/swarm/swarm-tutorial).
pub const MANAGEMENT_PORT: u16 = 2377;

/// How long the engine is given for an answer, in the machine.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a playbook may take in all.
pub(super) const PLAYBOOK: Duration = Duration::from_secs(240);

/// The pause between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(500);

/// Where playbooks come from, and who is told of their steps.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    /// The files.
    pub assets: &'a Assets,
    /// Called at the end of each step.
    pub on_step: &'a (dyn Fn(&StepResult) + Send + Sync),
}

impl Books<'_> {
    async fn run(
        &self,
        guest: &dyn Guest,
        name: &str,
        vars: Vars,
        secrets: Secrets,
    ) -> Result<Report> {
        let book = playbook::load(self.assets, name)?;
        let job = playbook::compile(&[(&book, &vars)], &secrets, false)?;
        playbook::run(guest, &job, PLAYBOOK, self.on_step).await
    }
}

/// Asks the engine with one command, whose words are literals or quoted; returns what it printed.
///
/// # Errors
/// [`Kind::Timeout`] when it does not answer, [`Kind::Failed`] with the end of its complaint.
pub(super) async fn docker(
    guest: &dyn Guest,
    words: &str,
    input: &[u8],
    within: Duration,
) -> Result<String> {
    let seconds = within.as_secs().max(1);
    let command = format!("timeout -k 5 {seconds} docker {words}");
    let output = guest
        .exec(&command, input, within + Duration::from_secs(15))
        .await?;
    let what = words
        .split(['\'', '|', ';', '>'])
        .next()
        .unwrap_or_default()
        .trim();
    match output.status {
        0 => Ok(output.text()),
        124 | 137 => Err(Error::new(
            Kind::Timeout,
            format!("`docker {what}` did not answer within {seconds} s"),
        )),
        127 => Err(Error::new(
            Kind::Unavailable,
            "`docker` is not installed on the machine",
        )),
        _ => Err(Error::new(Kind::Failed, format!("`docker {what}` failed"))
            .because(process::tail(&output.error_text(), 5))),
    }
}

/// What the machine's engine says of its own part in a swarm.
///
/// # Errors
/// When the engine does not answer.
pub async fn state(guest: &dyn Guest) -> Result<Membership> {
    node::parse_membership(&Request::get("/info").send(guest).await?)
}

/// The nodes, as the manager on this machine lists them.
///
/// # Errors
/// When the machine is no manager, or the managers have no quorum.
pub async fn nodes(guest: &dyn Guest) -> Result<Vec<Node>> {
    node::parse_nodes(&Request::get("/nodes").send(guest).await?)
}

/// A founded swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founded {
    /// The cluster's id: recorded, and never expected to change.
    pub cluster_id: String,
    /// The first node's id.
    pub node_id: String,
    /// Whether it was founded now.
    pub changed: bool,
}

/// Founds a swarm on this machine, or finds the one that it is part of.
///
/// The caller has made sure that no other machine reports a cluster id, and records the one returned.
/// Afterwards `ingress` lies inside `pool`: engines differ in whether they put it there by themselves
/// (moby#39228), and it can only be moved while no service publishes a port.
///
/// # Errors
/// When the engine refuses.
pub async fn init(
    guest: &dyn Guest,
    books: Books<'_>,
    address: Ipv4Addr,
    data: Ipv4Addr,
    pool: Ipv4Net,
) -> Result<Founded> {
    let vars = Vars::new()
        .with("address", address)
        .with("data_address", data)
        .with("pool", pool)
        .with("prefix", pool::NETWORK_PREFIX);
    let report = books.run(guest, "swarm/init", vars, Secrets::new()).await?;
    let value = |name: &str| report.outputs.get(name).cloned().unwrap_or_default();
    if !ingress_within(guest, pool).await? {
        let vars = Vars::new().with("subnet", pool::ingress(pool));
        books
            .run(guest, "swarm/ingress", vars, Secrets::new())
            .await?;
    }
    Ok(Founded {
        cluster_id: value("cluster_id"),
        node_id: value("node_id"),
        changed: report.changed() > 0,
    })
}

/// Whether the network of published ports lies inside `pool`.
async fn ingress_within(guest: &dyn Guest, pool: Ipv4Net) -> Result<bool> {
    let end = Instant::now() + ANSWER;
    loop {
        interrupt::check()?;
        // It appears a moment after the swarm.
        match Request::get("/networks/ingress").ask(guest).await {
            Ok(network) => {
                let mut subnets = network["IPAM"]["Config"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|range| range["Subnet"].as_str()?.parse::<Ipv4Net>().ok())
                    .peekable();
                if subnets.peek().is_some() {
                    return Ok(subnets.all(|subnet| pool.contains(&subnet)));
                }
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => {}
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}

/// The token that makes a member in this role. Fetched when needed, never stored.
///
/// # Errors
/// When the machine is no manager, or its answer is no token.
pub async fn token(guest: &dyn Guest, role: Role) -> Result<Secret> {
    // A manager that has just come back answers when there is a leader again.
    let swarm = until(ANSWER, "no join token was given", &|_| {}, || async {
        Request::get("/swarm").ask(guest).await.map(Ok)
    })
    .await?;
    let token = match role {
        Role::Manager => &swarm["JoinTokens"]["Manager"],
        Role::Worker => &swarm["JoinTokens"]["Worker"],
    }
    .as_str()
    .unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !token.starts_with("SWMTKN-") || !token.bytes().all(plain) {
        return Err(Error::new(
            Kind::Invalid,
            format!("the engine's answer is not a join token for a {role}"),
        ));
    }
    Ok(Secret::new(token))
}

/// Makes all earlier join tokens worthless. Members stay members.
///
/// # Errors
/// When the machine is no manager.
pub async fn rotate_tokens(guest: &dyn Guest) -> Result<()> {
    again(|| async {
        let swarm = Request::get("/swarm").ask(guest).await?;
        let path = format!(
            "/swarm/update?version={}&rotateWorkerToken=true&rotateManagerToken=true",
            swarm["Version"]["Index"]
        );
        Request::post(path, &swarm["Spec"]).send(guest).await
    })
    .await
    .map(|_| ())
}

/// Changes something that is read first: a change by somebody else in between makes the engine refuse
/// ("update out of sequence"), and it is read again.
async fn again<T, F>(change: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + ANSWER;
    loop {
        match change().await {
            Err(error)
                if Instant::now() < end
                    && error
                        .causes()
                        .iter()
                        .any(|why| why.contains("out of sequence")) => {}
            done => return done,
        }
        sleep(PAUSE).await;
    }
}

/// What a join needs to know.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The machine's address between the machines.
    pub address: Ipv4Addr,
    /// Its address for overlay traffic.
    pub data: Ipv4Addr,
    /// Managers that answer.
    pub managers: Vec<Ipv4Addr>,
    /// Stands for the role.
    pub token: Secret,
}

/// A machine that is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its node id.
    pub node_id: String,
    /// Whether it became one now.
    pub changed: bool,
}

/// Makes this machine a member, unless it is one. Whether it is fully in, [`wait`] asks the managers.
///
/// # Errors
/// When the engine refuses, or does not get in within its deadline.
pub async fn join(guest: &dyn Guest, books: Books<'_>, joining: &Joining) -> Result<Joined> {
    let managers: Vec<SocketAddrV4> = joining
        .managers
        .iter()
        .map(|&address| SocketAddrV4::new(address, MANAGEMENT_PORT))
        .collect();
    let vars = Vars::new()
        .with("address", joining.address)
        .with("data_address", joining.data)
        .with("managers", managers);
    let secrets = Secrets::new().with("token", joining.token.clone());
    let report = books.run(guest, "swarm/join", vars, secrets).await?;
    Ok(Joined {
        node_id: report.outputs.get("node_id").cloned().unwrap_or_default(),
        changed: report.changed() > 0,
    })
}

/// What a node is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The machine, for messages.
    pub machine: &'a str,
    /// Its node.
    pub node_id: &'a str,
    /// Its role.
    pub role: Role,
}

/// Why `expected` is not met, in words; `None` when it is.
#[must_use]
pub fn missing(nodes: &[Node], expected: &[Expected<'_>]) -> Option<String> {
    let wrong = |expected: &Expected<'_>| {
        let name = expected.machine;
        let Some(node) = nodes.iter().find(|node| node.id == expected.node_id) else {
            return Some(format!("`{name}` is not listed"));
        };
        match (expected.role, node.manager) {
            _ if node.health != Health::Ready => {
                Some(format!("`{name}` is {}", health(node.health)))
            }
            (Role::Manager, None) => Some(format!("`{name}` is no manager yet")),
            (Role::Manager, Some(Manager::Unreachable)) => {
                Some(format!("manager `{name}` is unreachable"))
            }
            _ => None,
        }
    };
    let wrong: Vec<String> = expected.iter().filter_map(wrong).collect();
    if !wrong.is_empty() {
        return Some(wrong.join(", "));
    }
    let counted = node::consensus(nodes);
    if counted.reachable < counted.needed {
        return Some(format!(
            "{} of {} managers are reachable, {} are needed",
            counted.reachable, counted.managers, counted.needed
        ));
    }
    (!counted.leader).then(|| "no manager leads".to_owned())
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Unknown => "in an unknown state",
        Health::Down => "down",
        Health::Ready => "ready",
        Health::Disconnected => "disconnected",
    }
}

/// Waits until the managers list every expected node as ready (managers as reachable), with a quorum
/// and a leader, and returns the list. `on_trouble` hears what is still missing.
///
/// # Errors
/// [`Kind::Timeout`] with what was missing last.
pub async fn wait(
    guest: &dyn Guest,
    expected: &[Expected<'_>],
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<Vec<Node>> {
    until(
        deadline,
        "the swarm is not complete",
        on_trouble,
        || async {
            let nodes = nodes(guest).await?;
            Ok(match missing(&nodes, expected) {
                None => Ok(nodes),
                Some(why) => Err(why),
            })
        },
    )
    .await
}

/// Looks again and again; errors of a look are reasons to look once more, too.
pub(super) async fn until<T, F>(
    deadline: Duration,
    what: &str,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
    mut look: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    let end = Instant::now() + deadline;
    loop {
        interrupt::check()?;
        let why = match look().await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(why)) => why,
            Err(error) => error.line(),
        };
        on_trouble(&why);
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::Timeout,
                format!("{what} after {} s", deadline.as_secs()),
            )
            .because(why));
        }
        sleep(PAUSE).await;
    }
}

/// Labels nodes, by id, with their zones; runs on a manager. Returns whether anything was changed.
///
/// # Errors
/// When a node does not exist, or the managers have no quorum.
pub async fn label(guest: &dyn Guest, zones: &BTreeMap<String, Zone>) -> Result<bool> {
    if zones.is_empty() {
        return Ok(false);
    }
    again(|| async {
        let mut changed = false;
        let nodes = Request::get("/nodes").ask(guest).await?;
        for (id, zone) in zones {
            let node = node_of(&nodes, id)?;
            let mut spec = node["Spec"].clone();
            let zone = Value::from(zone.to_string());
            if spec["Labels"][node::ZONE_LABEL] == zone {
                continue;
            }
            if spec["Labels"].is_null() {
                spec["Labels"] = json!({});
            }
            spec["Labels"][node::ZONE_LABEL] = zone;
            let path = format!("/nodes/{id}/update?version={}", node["Version"]["Index"]);
            Request::post(path, &spec).send(guest).await?;
            changed = true;
        }
        Ok(changed)
    })
    .await
}

/// The node of this id in the list of an engine's API.
fn node_of<'a>(nodes: &'a Value, id: &str) -> Result<&'a Value> {
    nodes
        .as_array()
        .into_iter()
        .flatten()
        .find(|node| node["ID"].as_str() == Some(id))
        .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no node `{id}`")))
}

/// Sets what nodes, by id, are used for; runs on a manager. Returns whether anything was changed.
///
/// # Errors
/// When a node does not exist, or the managers have no quorum.
pub async fn set_availability(
    guest: &dyn Guest,
    books: Books<'_>,
    nodes: &[&str],
    availability: Availability,
) -> Result<bool> {
    if nodes.is_empty() {
        return Ok(false);
    }
    let vars = Vars::new()
        .with("nodes", nodes)
        .with("availability", availability);
    Ok(books
        .run(guest, "swarm/availability", vars, Secrets::new())
        .await?
        .changed()
        > 0)
}

/// Sets what one node, by id, is used for; runs on a manager. No program is started there.
///
/// # Errors
/// When the node does not exist, or the managers have no quorum.
pub async fn set_use(guest: &dyn Guest, id: &str, availability: Availability) -> Result<()> {
    again(|| async {
        let nodes = Request::get("/nodes").ask(guest).await?;
        let node = node_of(&nodes, id)?;
        let mut spec = node["Spec"].clone();
        let wished = json!(availability);
        if spec["Availability"] == wished {
            return Ok(());
        }
        spec["Availability"] = wished;
        let path = format!("/nodes/{id}/update?version={}", node["Version"]["Index"]);
        Request::post(path, &spec).send(guest).await.map(|_| ())
    })
    .await
}

/// Makes a worker a manager; runs on a manager. Returns whether anything was changed.
///
/// # Errors
/// When the node does not exist, or the managers have no quorum.
pub async fn promote(guest: &dyn Guest, books: Books<'_>, node_id: &str) -> Result<bool> {
    let vars = Vars::new()
        .with("node", node_id)
        .with("role", Role::Manager);
    Ok(books
        .run(guest, "swarm/role", vars, Secrets::new())
        .await?
        .changed()
        > 0)
}

/// Takes a node out: demote, wait, drain, wait, leave, drop. Repeating it after it was cut off goes on.
///
/// `manager` is another machine, a manager that stays. `leaving` is the node's own machine where it still
/// answers. When it is done, the node has no part in the consensus, no task and no entry.
///
/// # Errors
/// [`Kind::Refused`] when the quorum would not hold, before anything was changed; [`Kind::Timeout`].
pub async fn remove(
    manager: &dyn Guest,
    leaving: Option<&dyn Guest>,
    books: Books<'_>,
    node_id: &str,
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<()> {
    let listed = nodes(manager).await?;
    let Some(found) = listed.iter().find(|node| node.id == node_id) else {
        return match leaving {
            Some(guest) => books
                .run(guest, "swarm/leave", Vars::new(), Secrets::new())
                .await
                .map(|_| ()),
            None => Ok(()),
        };
    };
    node::may_remove(&listed, node_id)?;
    let name = found.hostname.as_str();
    if found.manager.is_some() || found.wants_manager {
        let vars = Vars::new().with("node", node_id).with("role", Role::Worker);
        books
            .run(manager, "swarm/role", vars, Secrets::new())
            .await?;
        until(
            deadline,
            &format!("`{name}` is still a manager"),
            on_trouble,
            || async {
                let listed = nodes(manager).await?;
                let still = listed
                    .iter()
                    .any(|node| node.id == node_id && node.manager.is_some());
                Ok(if still {
                    Err(format!("`{name}` is still a manager"))
                } else {
                    Ok(())
                })
            },
        )
        .await?;
    }
    set_availability(manager, books, &[node_id], Availability::Drain).await?;
    if let Some(guest) = leaving {
        until(
            deadline,
            &format!("`{name}` still runs tasks"),
            on_trouble,
            || async {
                Ok(match running_tasks(manager, node_id).await? {
                    0 => Ok(()),
                    count => Err(format!("`{name}` still runs {count} tasks")),
                })
            },
        )
        .await?;
        books
            .run(guest, "swarm/leave", Vars::new(), Secrets::new())
            .await?;
    }
    // By force: the managers take a quarter of a minute to notice that a node has left.
    let vars = Vars::new().with("node", node_id).with("force", true);
    books
        .run(manager, "swarm/remove", vars, Secrets::new())
        .await?;
    Ok(())
}

/// How many tasks of services run on the node.
async fn running_tasks(manager: &dyn Guest, node_id: &str) -> Result<usize> {
    let words = format!(
        "node ps --format '{{{{.CurrentState}}}}' {}",
        playbook::quote(node_id)
    );
    let text = docker(manager, &words, b"", ANSWER).await?;
    Ok(text
        .lines()
        .filter(|line| line.starts_with("Running") || line.starts_with("Starting"))
        .count())
}

/// Takes this machine out of its swarm with the swarm going down as a whole: by force, without regard
/// for a quorum. For `down` alone.
///
/// # Errors
/// When the engine does not answer.
pub async fn disband(guest: &dyn Guest) -> Result<()> {
    if state(guest).await?.local == node::LocalState::Inactive {
        return Ok(());
    }
    docker(guest, "swarm leave --force >/dev/null", b"", ANSWER * 2)
        .await
        .map(|_| ())
}

#[cfg(test)]
#[path = "swarm_tests.rs"]
mod tests;
