//! What a cluster is now: every machine, every node, and whether the quorum holds.

use forge_driver::{Result, State};
use serde::Serialize;

use super::forming::Probed;
use super::look::{Seen, look, place_of};
use super::node::{Availability, Health, Manager, Membership, consensus};
use super::probe;
use super::record::ClusterRecord;
use super::spec::ClusterName;
use super::zones::{Role, Zone, quorum};
use crate::machine::{Forge, Stage};
use crate::store::lock::{Guarded, acquire};

/// A cluster, now.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub cluster: String,
    /// The swarm's own id.
    pub cluster_id: Option<String>,
    /// Its machines.
    pub nodes: Vec<Row>,
    /// Managers that count.
    pub managers: u32,
    /// Managers that take part, as far as can be seen.
    pub reachable: u32,
    /// How many must take part.
    pub needed: u32,
    /// Whether the managers can decide.
    pub quorum: bool,
    /// What is not as it should be, in words.
    pub trouble: Vec<String>,
    /// Published ports that were asked for, when the probe was wished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<probe::Probed>,
}

/// One machine.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its zone.
    pub zone: Zone,
    /// Its power state.
    pub state: State,
    /// Its node id.
    pub node: Option<String>,
    /// Whether the managers see it.
    pub health: Option<Health>,
    /// What it is used for.
    pub availability: Option<Availability>,
    /// Its part in the consensus.
    pub manager: Option<Manager>,
    /// Its address between the machines.
    pub address: Option<std::net::IpAddr>,
}

impl Status {
    /// Whether everything is as it should be.
    pub fn whole(&self) -> bool {
        self.quorum && self.trouble.is_empty()
    }
}

/// Looks at a cluster, and with `probing` asks a published port from every node.
///
/// # Errors
/// When there is no such cluster or it cannot be read; that it is broken is an answer.
pub async fn status(forge: &Forge, name: &ClusterName, probing: bool) -> Result<Status> {
    let record = ClusterRecord::load(&forge.store, name)?;
    // What the probe makes and removes is nobody else's business meanwhile.
    let guarded = Guarded::Cluster(name.to_string());
    let _lock = if probing {
        Some(acquire(&forge.store, &guarded, forge.patience, &forge.events).await?)
    } else {
        None
    };
    let seen = look(forge, name, Some(&record)).await?;
    let mut status = status_of(&record, &seen);
    if probing
        && status.quorum
        && let Some(manager) = seen.manager()
    {
        let machines: Vec<Probed> = seen
            .records
            .values()
            .filter_map(|record| {
                let connection = seen.connections.get(&record.name)?;
                let place = place_of(record)?;
                let membership = membership(&seen, place.role, place.index)?;
                Some(Probed {
                    name: record.name.clone(),
                    node_id: membership.node_id.clone(),
                    address: record.address()?,
                    connection: connection.clone(),
                })
            })
            .collect();
        probe::announce(&forge.events, forge.patience).await;
        let told = forge.events.clone();
        let on_trouble = move |why: &str| told.progress(&format!("probing: {why}"));
        let peers: Vec<probe::Peer<'_>> = machines.iter().map(Probed::peer).collect();
        match probe::probe(&*manager.guest, &peers, forge.patience, &on_trouble).await {
            Ok(done) => {
                if let Err(error) = done.judge() {
                    status.trouble.push(error.line());
                }
                status.probe = Some(done);
            }
            Err(error) => status
                .trouble
                .push(format!("published ports: {}", error.line())),
        }
    }
    Ok(status)
}

fn membership(seen: &Seen, role: Role, index: u32) -> Option<&Membership> {
    seen.observed
        .machines
        .iter()
        .find(|machine| (machine.place.role, machine.place.index) == (role, index))?
        .membership
        .as_ref()
}

/// What was seen, judged.
pub fn status_of(record: &ClusterRecord, seen: &Seen) -> Status {
    let mut trouble = Vec::new();
    let mut rows = Vec::new();
    let mut managers_up = 0;
    let mut wished_managers = 0;
    for machine in &seen.observed.machines {
        let place = machine.place;
        let Some(name) = seen.name_of(place) else {
            continue;
        };
        let stored = &seen.records[name];
        let membership = machine.membership.as_ref();
        let node = membership
            .filter(|membership| membership.belongs())
            .map(|membership| membership.node_id.clone())
            .or_else(|| {
                seen.observed
                    .nodes
                    .iter()
                    .find(|node| node.hostname == name)
                    .map(|node| node.id.clone())
            });
        let listed = node
            .as_ref()
            .and_then(|id| seen.observed.nodes.iter().find(|node| node.id == *id));
        if place.role == Role::Manager {
            wished_managers += 1;
            managers_up += u32::from(membership.is_some_and(|membership| membership.manager));
        }
        if stored.leaving {
            trouble.push(format!("`{name}` is being removed"));
        } else if stored.stage != Stage::Ready {
            trouble.push(format!("`{name}` is not finished: it is {}", stored.stage));
        } else if let Some(why) = seen.troubles.get(name) {
            trouble.push(format!("`{name}`: {why}"));
        } else if machine.state != State::Running {
            trouble.push(format!(
                "`{name}` is {}",
                machine.state.to_string().to_lowercase()
            ));
        } else if !seen.connections.contains_key(name) {
            trouble.push(format!("`{name}` runs and does not answer"));
        } else if node.is_none() {
            trouble.push(format!("`{name}` is not part of the swarm"));
        } else if let Some(listed) = listed
            && !listed.healthy()
        {
            trouble.push(format!("`{name}` is not seen as ready by the managers"));
        }
        rows.push(Row {
            name: name.to_owned(),
            role: place.role,
            zone: place.zone,
            state: machine.state,
            node,
            health: listed.map(|node| node.health),
            availability: listed.map(|node| node.availability),
            manager: listed.and_then(|node| node.manager),
            address: stored.address().map(Into::into),
        });
    }
    rows.sort_by(|a, b| {
        a.role
            .cmp(&b.role)
            .then_with(|| a.name.len().cmp(&b.name.len()))
            .then_with(|| a.name.cmp(&b.name))
    });
    let missing = (record.spec.managers + record.spec.workers)
        .saturating_sub(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    if missing > 0 {
        trouble.push(format!(
            "{missing} of its machines were never made, or were removed"
        ));
    }
    let (managers, reachable, needed, holds) = if seen.observed.nodes.is_empty() {
        let managers = wished_managers.max(record.spec.managers);
        (managers, managers_up, quorum(managers), false)
    } else {
        let counted = consensus(&seen.observed.nodes);
        (
            counted.managers,
            counted.reachable,
            counted.needed,
            counted.reachable >= counted.needed && counted.leader,
        )
    };
    if !holds {
        trouble.push(format!(
            "no quorum: {reachable} of {managers} managers take part, {needed} are needed"
        ));
    }
    Status {
        cluster: record.spec.name.to_string(),
        cluster_id: record.cluster_id.clone(),
        nodes: rows,
        managers,
        reachable,
        needed,
        quorum: holds,
        trouble,
        probe: None,
    }
}
