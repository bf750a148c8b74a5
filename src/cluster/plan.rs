//! What is to be done: wished and observed compared, as a value. Nothing here touches anything.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::Ipv4Net;
use serde::Serialize;

use forge_driver::{Error, Kind, Result, State};

use super::node::{Availability, Health, LocalState, Membership, Node};
use super::spec::ClusterSpec;
use super::zones::{Place, Places, Role, Zone, quorum, tolerates};

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// There is a record, but no machine with a working engine yet.
    Partly,
    /// Its engine has answered.
    Ready,
}

/// A machine of the cluster that the store has a record of.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its role, number and zone, as recorded.
    pub place: Place,
    /// How far it has come.
    pub made: Made,
    /// Its power state.
    pub state: State,
    /// What its engine says of itself; `None` when it does not answer.
    pub membership: Option<Membership>,
}

/// What was seen, by reading alone.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The cluster's id, as recorded.
    pub cluster_id: Option<String>,
    /// The machines with a record.
    pub machines: Vec<Machine>,
    /// The node list of a manager that answers; empty when there is none.
    pub nodes: Vec<Node>,
    /// The host of each zone, as its user names it; one alone is every zone's, and none is this host.
    pub hosts: Vec<String>,
}

/// One step. The order in a [`Plan`] is the order of execution; machines are made at the same time,
/// managers join one after another, workers at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Make a machine, or go on where making it was cut off, until its engine answers.
    Create {
        /// Which.
        machine: String,
        /// Its role.
        role: Role,
        /// Its zone.
        zone: Zone,
        /// A part of it is there already.
        resume: bool,
    },
    /// Switch a machine on.
    Start {
        /// Which.
        machine: String,
    },
    /// Found the swarm.
    Init {
        /// On which machine.
        machine: String,
        /// Where its networks are taken from.
        pool: Ipv4Net,
    },
    /// Drop the entry of a node whose machine is gone for good.
    Forget {
        /// The name that the node had.
        machine: String,
        /// The node's id.
        node: String,
        /// It was a manager: it is demoted first.
        manager: bool,
    },
    /// Make a machine part of the swarm.
    Join {
        /// Which.
        machine: String,
        /// As what.
        role: Role,
    },
    /// Make a manager of a worker.
    Promote {
        /// Which.
        machine: String,
    },
    /// Label a node with its zone.
    Label {
        /// Which.
        machine: String,
        /// The label's value.
        zone: Zone,
    },
    /// Keep tasks off a node.
    Drain {
        /// Which.
        machine: String,
    },
    /// Replace the join tokens: those that were used are worth nothing afterwards.
    RotateTokens,
}

/// The arithmetic of the managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Quorum {
    /// How many there will be.
    pub managers: u32,
    /// How many must agree.
    pub needed: u32,
    /// How many may be lost.
    pub tolerates: u32,
}

/// One zone, filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZoneRow {
    /// Which.
    pub zone: Zone,
    /// The host that it is, where zones are hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The managers in it.
    pub managers: Vec<String>,
    /// The workers in it.
    pub workers: Vec<String>,
    /// How many managers are left when it is lost.
    pub managers_left: u32,
    /// Whether the cluster goes on when it is lost.
    pub survives: bool,
}

/// Everything that `up` will do, and what is good to know before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The cluster's name.
    pub cluster: String,
    /// The steps, in order.
    pub actions: Vec<Action>,
    /// What goes ahead but is not what it may seem.
    pub warnings: Vec<String>,
    /// What is good to know.
    pub notes: Vec<String>,
    /// Machines that are there and not wished; they are left alone.
    pub surplus: Vec<String>,
    /// The arithmetic of the managers.
    pub quorum: Quorum,
    /// The zones.
    pub zones: Vec<ZoneRow>,
}

/// Compares the wish with what was seen.
///
/// The swarm is founded only when no machine that answers is part of one and none was ever recorded:
/// the loss of the first machine never makes a second swarm.
///
/// Machines that do not answer yet cannot say what they belong to; the plan then holds what is certain,
/// and planning again when they answer adds the rest.
///
/// # Errors
/// Those of [`ClusterSpec::places`]; [`Kind::Conflict`] when machines belong to different swarms, or
/// the recorded one is nowhere to be found.
pub fn plan(spec: &ClusterSpec, observed: &Observed, pool: Ipv4Net) -> Result<Plan> {
    let existing: Vec<Place> = observed
        .machines
        .iter()
        .map(|machine| machine.place)
        .collect();
    let (wished, surplus): (Vec<Place>, Vec<Place>) = existing.into_iter().partition(|place| {
        place.index
            <= match place.role {
                Role::Manager => spec.managers,
                Role::Worker => spec.workers,
            }
    });
    let places = spec.places(&wished)?;
    let founded = one_swarm(spec, observed)?;
    let seen = |place: Place| {
        observed
            .machines
            .iter()
            .find(|machine| (machine.place.role, machine.place.index) == (place.role, place.index))
    };

    let mut actions = Vec::new();
    for &place in &places.nodes {
        let machine = spec.machine(place);
        match seen(place) {
            Some(Machine {
                made: Made::Ready,
                state: State::Running | State::Starting,
                ..
            }) => {}
            Some(Machine {
                made: Made::Ready,
                state,
                ..
            }) if *state != State::Absent => {
                actions.push(Action::Start { machine });
            }
            other => actions.push(Action::Create {
                machine,
                role: place.role,
                zone: place.zone,
                resume: other.is_some(),
            }),
        }
    }

    let founder = (!founded).then(|| places.nodes[0]);
    if let Some(place) = founder {
        actions.push(Action::Init {
            machine: spec.machine(place),
            pool,
        });
    }
    actions.extend(forgotten(spec, observed));
    for &place in places.nodes.iter().filter(|&&place| Some(place) != founder) {
        actions.extend(membership(spec, observed, place, seen(place)));
    }
    let joins = actions
        .iter()
        .any(|action| matches!(action, Action::Init { .. } | Action::Join { .. }));
    for &place in &places.nodes {
        let machine = spec.machine(place);
        let node = seen(place).and_then(|seen| node_of(observed, seen));
        let fresh = actions.iter().any(|action| action.makes_member(&machine));
        if fresh || node.is_some_and(|node| node.zone != Some(place.zone)) {
            actions.push(Action::Label {
                machine: machine.clone(),
                zone: place.zone,
            });
        }
        let works = fresh || node.is_some_and(|node| node.availability != Availability::Drain);
        if spec.drain_managers && place.role == Role::Manager && works {
            actions.push(Action::Drain { machine });
        }
    }
    if joins {
        actions.push(Action::RotateTokens);
    }

    let surplus: Vec<String> = surplus
        .into_iter()
        .map(|place| spec.machine(place))
        .collect();
    let (warnings, notes) = remarks(spec, observed, &places, &surplus);
    Ok(Plan {
        cluster: spec.name.to_string(),
        actions,
        warnings,
        notes,
        surplus,
        quorum: Quorum {
            managers: spec.managers,
            needed: quorum(spec.managers),
            tolerates: tolerates(spec.managers),
        },
        zones: rows(spec, &places, &observed.hosts),
    })
}

/// Whether the swarm exists already.
fn one_swarm(spec: &ClusterSpec, observed: &Observed) -> Result<bool> {
    let mut reports: Vec<(String, &str)> = Vec::new();
    if let Some(id) = &observed.cluster_id {
        reports.push(("the record".to_owned(), id));
    }
    for machine in &observed.machines {
        if let Some(id) = machine
            .membership
            .as_ref()
            .and_then(|membership| membership.cluster_id.as_deref())
        {
            reports.push((format!("`{}`", spec.machine(machine.place)), id));
        }
    }
    let ids: BTreeSet<&str> = reports.iter().map(|&(_, id)| id).collect();
    if ids.len() > 1 {
        let shown: Vec<String> = reports
            .iter()
            .map(|(who, id)| format!("{who} says `{id}`"))
            .collect();
        return Err(Error::new(Kind::Conflict, format!("the machines of cluster `{}` belong to different swarms", spec.name))
            .because(shown.join(", "))
            .hint("look at each with `forge ssh NAME -- docker node ls`; make the wrong one leave with `docker swarm leave --force`, or remove its machine with `forge rm NAME`"));
    }
    let members = observed
        .machines
        .iter()
        .any(|machine| machine.membership.as_ref().is_some_and(Membership::belongs));
    let silent = observed
        .machines
        .iter()
        .any(|machine| machine.made == Made::Ready && machine.membership.is_none());
    if let Some(id) = &observed.cluster_id
        && !members
        && !silent
    {
        return Err(Error::new(Kind::Conflict, format!("no machine of cluster `{}` is part of its swarm `{id}` any more", spec.name))
            .because("a new swarm would not hold the services, networks and secrets of the old one")
            .hint(format!("if nothing of it is to be kept, run `forge cluster down {0}`, then `forge cluster up {0}`", spec.name)));
    }
    Ok(!ids.is_empty() || members)
}

/// The node that the machine's engine says it is.
fn node_of<'a>(observed: &'a Observed, machine: &Machine) -> Option<&'a Node> {
    let id = &machine.membership.as_ref()?.node_id;
    observed.nodes.iter().find(|node| &node.id == id)
}

/// Entries that nothing stands behind: the node is down, its name is that of one of our machines, and
/// that machine does not exist, or is there and says that it is another node or none.
fn forgotten(spec: &ClusterSpec, observed: &Observed) -> Vec<Action> {
    let gone = |node: &&Node| {
        let Some((role, index)) = spec.name.parse_machine(&node.hostname) else {
            return false;
        };
        if node.health != Health::Down {
            return false;
        }
        match observed
            .machines
            .iter()
            .find(|machine| (machine.place.role, machine.place.index) == (role, index))
        {
            None => true,
            Some(machine) if machine.state == State::Absent => true,
            Some(machine) => machine
                .membership
                .as_ref()
                .is_some_and(|membership| membership.node_id != node.id),
        }
    };
    let forget = |node: &Node| Action::Forget {
        machine: node.hostname.clone(),
        node: node.id.clone(),
        manager: node.manager.is_some(),
    };
    observed.nodes.iter().filter(gone).map(forget).collect()
}

/// What makes this machine a member in its role, if it is not.
fn membership(
    spec: &ClusterSpec,
    observed: &Observed,
    place: Place,
    seen: Option<&Machine>,
) -> Option<Action> {
    let machine = spec.machine(place);
    let Some(seen) = seen.filter(|seen| seen.made == Made::Ready && seen.state != State::Absent)
    else {
        return Some(Action::Join {
            machine,
            role: place.role,
        });
    };
    // One that does not answer may well be a member: what it needs shows when it does.
    let membership = seen.membership.as_ref()?;
    if !membership.belongs() {
        return Some(Action::Join {
            machine,
            role: place.role,
        });
    }
    let demoted = membership.local == LocalState::Active
        && !membership.manager
        && !struck_off(observed, membership);
    (place.role == Role::Manager && demoted).then_some(Action::Promote { machine })
}

/// Whether the managers have dropped the node that this engine takes itself for.
fn struck_off(observed: &Observed, membership: &Membership) -> bool {
    membership.belongs()
        && !observed.nodes.is_empty()
        && !observed
            .nodes
            .iter()
            .any(|node| node.id == membership.node_id)
}

fn remarks(
    spec: &ClusterSpec,
    observed: &Observed,
    places: &Places,
    surplus: &[String],
) -> (Vec<String>, Vec<String>) {
    let mut warnings = places.warnings.clone();
    let mut notes = Vec::new();
    if spec.zones > 1 {
        let host = match observed.hosts.as_slice() {
            [] => Some("on this one host".to_owned()),
            [one] => Some(format!("at `{one}`")),
            _ => None,
        };
        notes.extend(host.map(|host| {
            format!(
                "the zones are only labels: all machines run {host}, and losing it loses every zone"
            )
        }));
    }
    if !surplus.is_empty() {
        let names: Vec<String> = surplus.iter().map(|name| format!("`{name}`")).collect();
        warnings.push(format!(
            "{} not wished and left alone: remove with `forge rm`",
            match names.as_slice() {
                [one] => format!("{one} is"),
                many => format!("{} are", many.join(", ")),
            },
        ));
    }
    for machine in &observed.machines {
        let name = spec.machine(machine.place);
        let Some(membership) = &machine.membership else {
            continue;
        };
        if machine.place.role == Role::Worker && membership.manager {
            warnings.push(format!(
                "`{name}` is a worker by name and a manager in the swarm: it counts for the quorum"
            ));
        }
        if membership.local == LocalState::Locked {
            // A locked engine does not know its node id.
            warnings.push(format!(
                "`{name}` is locked: unlock it with `docker swarm unlock`"
            ));
        } else if struck_off(observed, membership) {
            warnings.push(format!(
                "`{name}` takes itself for a member, and the managers have dropped it: \
                 run `forge ssh {name} -- docker swarm leave --force`, then `forge cluster up` again"
            ));
        }
    }
    (warnings, notes)
}

fn rows(spec: &ClusterSpec, places: &Places, hosts: &[String]) -> Vec<ZoneRow> {
    let hosts = if hosts.len() > 1 { hosts } else { &[] };
    let hosts = hosts
        .iter()
        .cloned()
        .map(Some)
        .chain(std::iter::repeat(None));
    (1..=spec.zones)
        .map(Zone)
        .zip(hosts)
        .map(|(zone, at)| {
            let names = |role: Role| {
                let here = places
                    .nodes
                    .iter()
                    .filter(|place| place.zone == zone && place.role == role);
                here.map(|&place| spec.machine(place)).collect()
            };
            let left = places.without(zone);
            ZoneRow {
                zone,
                at,
                managers: names(Role::Manager),
                workers: names(Role::Worker),
                managers_left: left.managers,
                survives: left.keep_quorum(),
            }
        })
        .collect()
}

impl Action {
    fn makes_member(&self, name: &str) -> bool {
        matches!(self, Self::Init { machine, .. } | Self::Join { machine, .. } if machine == name)
    }
}

impl Plan {
    /// Whether anything is to be done.
    #[must_use]
    pub fn changed(&self) -> bool {
        !self.actions.is_empty()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create {
                machine,
                role,
                zone,
                resume,
            } => {
                let verb = if *resume { "go on creating" } else { "create" };
                write!(f, "{verb} `{machine}` ({role}, zone `{zone}`)")
            }
            Self::Start { machine } => write!(f, "start `{machine}`"),
            Self::Init { machine, pool } => write!(
                f,
                "found the swarm on `{machine}`, its networks from `{pool}`"
            ),
            Self::Forget { machine, node, .. } => {
                write!(f, "drop the entry `{node}` of the lost `{machine}`")
            }
            Self::Join { machine, role } => write!(f, "join `{machine}` as {role}"),
            Self::Promote { machine } => write!(f, "promote `{machine}` to manager"),
            Self::Label { machine, zone } => write!(f, "label `{machine}` with `zone={zone}`"),
            Self::Drain { machine } => write!(f, "keep tasks off `{machine}`"),
            Self::RotateTokens => f.write_str("rotate the join tokens"),
        }
    }
}

/// The plan as `--dry-run` shows it: zones, quorum, remarks, steps.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 4]> =
            std::iter::once(["zone", "managers", "workers", "when it is lost"].map(str::to_owned))
                .chain(self.zones.iter().map(|row| self.cells(row)))
                .collect();
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let (first, second, third) = (width(0), width(1), width(2));
        writeln!(f, "cluster `{}`", self.cluster)?;
        writeln!(f)?;
        for [zone, managers, workers, lost] in &rows {
            writeln!(
                f,
                "  {zone:first$}  {managers:second$}  {workers:third$}  {lost}"
            )?;
        }
        writeln!(f)?;
        let Quorum {
            managers,
            needed,
            tolerates,
        } = self.quorum;
        let plural = if managers == 1 { "manager" } else { "managers" };
        writeln!(
            f,
            "quorum: {needed} of {managers} {plural}, {tolerates} may be lost"
        )?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        writeln!(f)?;
        if self.actions.is_empty() {
            return writeln!(f, "nothing to do");
        }
        writeln!(f, "steps:")?;
        let digits = self.actions.len().to_string().len();
        for (index, action) in self.actions.iter().enumerate() {
            writeln!(f, "  {:digits$}. {action}", index + 1)?;
        }
        Ok(())
    }
}

impl Plan {
    fn cells(&self, row: &ZoneRow) -> [String; 4] {
        let names = |names: &[String]| {
            if names.is_empty() {
                "-".to_owned()
            } else {
                names.join(" ")
            }
        };
        let lost = format!(
            "{} of {} managers left",
            row.managers_left, self.quorum.managers
        );
        [
            match &row.at {
                Some(at) => format!("{} at `{at}`", row.zone),
                None => row.zone.to_string(),
            },
            names(&row.managers),
            names(&row.workers),
            if row.survives {
                format!("goes on: {lost}")
            } else {
                format!("stops: {lost}, {} needed", self.quorum.needed)
            },
        ]
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
