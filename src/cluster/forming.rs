//! The acting half of `cluster up`.
//!
//! Machines are made at the same time, as many as the host has room for. The swarm is founded as soon as
//! the founder is up, while others still boot; managers join one after another, workers as they come.
//! What the cluster is in the end is asked of the cluster itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZero;

use forge_driver::{Error, Kind, Result};
use futures_util::{StreamExt, stream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

mod settle;

pub(in crate::cluster) use settle::Probed;

use super::look::Seen;
use super::node::Membership;
use super::peers;
use super::plan::{Action, Plan};
use super::probe;
use super::record::{ClusterRecord, addresses, members};
use super::swarm::{self, Books, Expected, Joining};
use super::up::Formed;
use super::zones::{Place, Role};
use crate::event::Events;
use crate::interrupt;
use crate::machine::access::Connection;
use crate::machine::create::{self, Up};
use crate::machine::{Forge, Record, Stage};
use crate::playbook::{Status, StepResult};
use crate::secret::Secret;
use crate::tasks;

/// So many machines boot at the same time: one more than keep this host's processors busy, for the moments
/// in which one waits. More of them are up later rather than sooner, least of all where they are emulated:
/// they drive each other out of the caches. The managers come first, and the swarm forms while the workers
/// boot.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get) + 1
}

/// A machine that is up, in the swarm or on its way into it.
struct Standing {
    place: Place,
    record: Record,
    connection: Connection,
    /// Its node id, once it is a member.
    node: Option<String>,
}

/// A cluster that is being brought to its plan.
pub(super) struct Forming<'a> {
    forge: &'a Forge,
    record: ClusterRecord,
    plan: &'a Plan,
    seen: &'a Seen,
    /// The names of the machines that are wished.
    wished: BTreeSet<String>,
    members: BTreeMap<String, Standing>,
    tokens: BTreeMap<Role, Secret>,
    /// The first half of the probe, which goes on while others boot.
    probing: Option<JoinHandle<Result<probe::Begun>>>,
    changed: usize,
    joined: usize,
}

impl<'a> Forming<'a> {
    pub(super) fn new(
        forge: &'a Forge,
        record: ClusterRecord,
        plan: &'a Plan,
        seen: &'a Seen,
        wished: BTreeSet<String>,
    ) -> Self {
        Self {
            forge,
            record,
            plan,
            seen,
            wished,
            members: BTreeMap::new(),
            tokens: BTreeMap::new(),
            probing: None,
            changed: 0,
            joined: 0,
        }
    }

    /// Raises the machines, forms the swarm while they come, and asks it what it is.
    ///
    /// # Errors
    /// The first thing that failed on each machine; everything done is saved.
    pub(super) async fn run(mut self, machines: Vec<(Place, Record)>) -> Result<Formed> {
        let formed = self.form(machines).await;
        if formed.is_err()
            && self.begun().await.is_some()
            && let Some(entry) = self.entry()
        {
            // The first error is the one to report; the next probe sweeps.
            let _ = probe::remove(&*entry.guest, &*entry.guest).await;
        }
        formed
    }

    async fn form(&mut self, machines: Vec<(Place, Record)>) -> Result<Formed> {
        let machines = self.locate(machines).await?;
        // Machines that are not wished any more are members until they are removed.
        let known = addresses(&members(&self.forge.store, &self.record.spec.name)?);
        let founder = self.founder(&machines);
        let mut rising = JoinSet::new();
        let (ready, fresh): (Vec<_>, Vec<_>) = machines
            .into_iter()
            .partition(|(_, record)| record.stage == Stage::Ready);
        if !fresh.is_empty() {
            // Members that are not wished any more: nobody else brings them up.
            peers::tell(self.forge, self.seen, &known, |record| {
                !self.wished.contains(&record.name)
            })
            .await?;
        }
        for (place, record) in ready {
            self.raise(&mut rising, place, record, &known);
        }
        let mut queue = VecDeque::from(fresh);
        let mut waiting: VecDeque<String> = VecDeque::new();
        let mut joining: JoinSet<(String, Result<swarm::Joined>)> = JoinSet::new();
        let mut manager_joins = false;
        let mut founded = founder.is_none();
        let mut failures: Vec<Error> = Vec::new();
        // Bounded by the number of machines: each turn ends one task or starts one.
        loop {
            // Interrupted: what is under way ends its step by itself, and nothing new begins.
            let going = interrupt::check().is_ok();
            while going
                && failures.is_empty()
                && rising.len() < at_once()
                && let Some((place, record)) = queue.pop_front()
            {
                self.raise(&mut rising, place, record, &known);
            }
            if going
                && !founded
                && failures.is_empty()
                && let Some(name) = &founder
                && self.members.contains_key(name)
            {
                match self.found(name.clone()).await {
                    Ok(()) => founded = true,
                    // What is under way ends its step by itself.
                    Err(error) => failures.push(error),
                }
            }
            // Members accept a newcomer's traffic once their own provisioning is over.
            let settled = self
                .seen_members()
                .all(|name| self.members.contains_key(name));
            if going && founded && settled && failures.is_empty() {
                match self
                    .begin_joins(&mut waiting, &mut joining, manager_joins)
                    .await
                {
                    Ok(began) => manager_joins |= began,
                    Err(error) => failures.push(error),
                }
            }
            tokio::select! {
                Some(done) = rising.join_next(), if !rising.is_empty() => {
                    match done {
                        Ok((place, Ok(up))) => {
                            let name = up.record.name.clone();
                            self.changed += up.changed;
                            let node = match self.known_node(&name) {
                                Some(node) => Some(node),
                                None if founder.as_ref() == Some(&name) => None,
                                None => self.node_now(&up.connection).await,
                            };
                            if node.is_none() && founder.as_ref() != Some(&name) {
                                waiting.push_back(name.clone());
                            }
                            self.members.insert(name, Standing {
                                place, record: up.record, connection: up.connection, node,
                            });
                        }
                        Ok((_, Err(error))) => failures.push(error),
                        Err(error) => failures.push(tasks::broke_off(error)),
                    }
                }
                Some(done) = joining.join_next(), if !joining.is_empty() => {
                    match done {
                        Ok((name, Ok(joined))) => {
                            if self.members.get(&name).is_some_and(|member| member.place.role == Role::Manager) {
                                manager_joins = false;
                            }
                            self.take_in(&name, joined);
                        }
                        Ok((name, Err(error))) => {
                            manager_joins = false;
                            failures.push(error.context(format!("machine `{name}` did not join cluster `{}`", self.record.spec.name)));
                        }
                        Err(error) => failures.push(tasks::broke_off(error)),
                    }
                }
                else => break,
            }
        }
        interrupt::check()?;
        if let Some(error) = tasks::first_of(failures) {
            return Err(error.hint(format!(
                "everything done is saved: `forge cluster up {}` goes on; `forge cluster status {}` shows what is there",
                self.record.spec.name, self.record.spec.name
            )));
        }
        self.settle().await
    }

    /// The machines with their addresses. Each has to know those of all others when it is provisioned, so those
    /// that a server of their network gives come first.
    async fn locate(&self, machines: Vec<(Place, Record)>) -> Result<Vec<(Place, Record)>> {
        let locating = machines.into_iter().map(|(place, record)| {
            let forge = self.forge.of(&record.name);
            async move {
                let name = record.name.clone();
                let found = create::locate(&forge, record).await;
                found
                    .map(|record| (place, record))
                    .map_err(|error| error.context(format!("failed to bring up machine `{name}`")))
            }
        });
        let done: Vec<Result<(Place, Record)>> =
            stream::iter(locating).buffered(at_once()).collect().await;
        let (found, failed): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
        match tasks::first_of(failed.into_iter().filter_map(Result::err)) {
            Some(error) => Err(error),
            None => Ok(found.into_iter().flatten().collect()),
        }
    }

    /// Starts the loop of a machine.
    fn raise(
        &self,
        rising: &mut JoinSet<(Place, Result<Up>)>,
        place: Place,
        record: Record,
        peers: &[IpAddr],
    ) {
        let forge = self.forge.of(&record.name);
        let open = self.seen.connections.get(&record.name).cloned();
        let peers = peers.to_vec();
        rising.spawn(async move { (place, create::bring_up(&forge, record, open, &peers).await) });
    }

    /// The machines that were members when the cluster was looked at, and are to stay.
    fn seen_members(&self) -> impl Iterator<Item = &str> {
        self.seen
            .observed
            .machines
            .iter()
            .filter(|machine| machine.membership.as_ref().is_some_and(Membership::belongs))
            .filter_map(|machine| self.seen.name_of(machine.place))
            .filter(|name| self.wished.contains(*name))
    }

    /// The node id that a machine had when it was looked at.
    fn known_node(&self, name: &str) -> Option<String> {
        let machine = self
            .seen
            .observed
            .machines
            .iter()
            .find(|machine| self.seen.name_of(machine.place) == Some(name))?;
        machine
            .membership
            .as_ref()
            .filter(|membership| membership.belongs())
            .map(|membership| membership.node_id.clone())
    }

    /// The machine that founds the swarm: as planned, or the one whose founding was cut off, which is then
    /// brought to its end.
    fn founder(&self, machines: &[(Place, Record)]) -> Option<String> {
        let planned = self.plan.actions.iter().find_map(|action| match action {
            Action::Init { machine, .. } => Some(machine.clone()),
            _ => None,
        });
        let begun = || {
            let claim = self
                .record
                .founder
                .filter(|_| self.record.cluster_id.is_none())?;
            let (_, record) = machines.iter().find(|(_, record)| record.claim == claim)?;
            Some(record.name.clone())
        };
        planned.or_else(begun)
    }

    /// The node id of a machine that was off, or silent, when the cluster was looked at.
    async fn node_now(&self, connection: &Connection) -> Option<String> {
        self.record.cluster_id.as_ref()?;
        // An engine that does not say what it is may join: the join finds out.
        let membership = swarm::state(&*connection.guest).await.ok()?;
        membership.belongs().then_some(membership.node_id)
    }

    /// Founds the swarm on the machine `name`; the intent and the id are on disk before and after.
    async fn found(&mut self, name: String) -> Result<()> {
        let member = self.member(&name)?;
        let address = address(&member.record)?;
        let (claim, connection) = (member.record.claim, member.connection.clone());
        let forge = self.forge.of(&name);
        self.record.founder = Some(claim);
        self.record.unsettled = true;
        self.record.save(&forge.store)?;
        forge
            .events
            .step(
                "founding the swarm",
                "the engine's answer",
                Some(Instant::now() + swarm::PLAYBOOK),
            )
            .await;
        let on_step = listener(&forge.events);
        let books = Books {
            assets: &forge.assets,
            on_step: &on_step,
        };
        let done = swarm::init(
            &*connection.guest,
            books,
            address,
            address,
            self.record.pool,
        )
        .await
        .map_err(|error| {
            error.context(format!(
                "failed to found cluster `{}` on `{name}`",
                self.record.spec.name
            ))
        })?;
        self.record.cluster_id = Some(done.cluster_id);
        self.record.save(&forge.store)?;
        self.changed += usize::from(done.changed);
        self.joined += usize::from(done.changed);
        if let Some(member) = self.members.get_mut(&name) {
            member.node = Some(done.node_id.clone());
        }
        forge.events.finished("leads the swarm", done.changed).await;
        if !self.record.spec.drain_managers {
            // Its task starts, and the nodes learn of its port, while the others are on their way.
            let host = Probed {
                name,
                node_id: done.node_id,
                address,
                connection,
            };
            self.probing = Some(tokio::spawn(async move {
                probe::begin(&*host.connection.guest, &host.peer()).await
            }));
        }
        Ok(())
    }

    /// The probe that was begun when the swarm was founded. One that failed is tried anew at the end.
    async fn begun(&mut self) -> Option<probe::Begun> {
        self.probing.take()?.await.ok()?.ok()
    }

    /// Begins every join that can go now: workers all, managers one at a time. Whether a manager's began.
    async fn begin_joins(
        &mut self,
        waiting: &mut VecDeque<String>,
        joining: &mut JoinSet<(String, Result<swarm::Joined>)>,
        manager_joins: bool,
    ) -> Result<bool> {
        let Some(entry) = self.entry() else {
            return Ok(false);
        };
        let mut began = false;
        for _ in 0..waiting.len() {
            let Some(name) = waiting.pop_front() else {
                break;
            };
            let member = self.member(&name)?;
            let (role, record, connection) = (
                member.place.role,
                member.record.clone(),
                member.connection.clone(),
            );
            if role == Role::Manager && (manager_joins || began) {
                waiting.push_back(name);
                continue;
            }
            if !self.record.unsettled {
                self.record.unsettled = true;
                self.record.save(&self.forge.store)?;
            }
            let token = match self.tokens.get(&role) {
                Some(token) => token.clone(),
                None => {
                    let token = swarm::token(&*entry.guest, role).await?;
                    self.tokens.insert(role, token.clone());
                    token
                }
            };
            let own = address(&record)?;
            let job = Joining {
                address: own,
                data: own,
                managers: self.managers(),
                token,
            };
            began |= role == Role::Manager;
            let (forge, entry) = (self.forge.of(&name), entry.clone());
            joining.spawn(async move {
                let done = join(&forge, &entry, &connection, &name, role, &job).await;
                (name, done)
            });
        }
        Ok(began)
    }

    fn take_in(&mut self, name: &str, joined: swarm::Joined) {
        self.changed += usize::from(joined.changed);
        self.joined += usize::from(joined.changed);
        if let Some(member) = self.members.get_mut(name) {
            member.node = Some(joined.node_id);
        }
    }

    fn member(&self, name: &str) -> Result<&Standing> {
        self.members
            .get(name)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("machine `{name}` is not up")))
    }

    /// A connection to a manager that is in the swarm.
    fn entry(&self) -> Option<Connection> {
        self.members
            .values()
            .find(|member| member.place.role == Role::Manager && member.node.is_some())
            .map(|member| member.connection.clone())
    }

    /// The addresses of the managers that are in the swarm.
    fn managers(&self) -> Vec<Ipv4Addr> {
        self.members
            .values()
            .filter(|member| member.place.role == Role::Manager && member.node.is_some())
            .filter_map(|member| address(&member.record).ok())
            .collect()
    }
}

/// One machine's way into the swarm, until the managers list it; asked of the entry.
async fn join(
    forge: &Forge,
    entry: &Connection,
    connection: &Connection,
    name: &str,
    role: Role,
    job: &Joining,
) -> Result<swarm::Joined> {
    let deadline = Instant::now() + swarm::PLAYBOOK + forge.patience;
    forge
        .events
        .step(
            "joining the swarm",
            "the managers to list it",
            Some(deadline),
        )
        .await;
    let on_step = listener(&forge.events);
    let books = Books {
        assets: &forge.assets,
        on_step: &on_step,
    };
    let done = swarm::join(&*connection.guest, books, job).await?;
    if role == Role::Manager {
        // The next manager joins when this one takes part: two at once can cost the quorum.
        let expected = [Expected {
            machine: name,
            node_id: &done.node_id,
            role,
        }];
        let told = forge.events.clone();
        let on_trouble = move |why: &str| told.progress(&format!("joining the swarm: {why}"));
        swarm::wait(&*entry.guest, &expected, forge.patience, &on_trouble).await?;
    }
    forge
        .events
        .finished(&format!("{role} of the swarm"), done.changed)
        .await;
    Ok(done)
}

/// Says each step of a playbook as an event.
fn listener(events: &Events) -> impl Fn(&StepResult) + Send + Sync + use<> {
    let events = events.clone();
    move |step| match step.status {
        Status::Waits => events.waits(&step.output),
        status => events.result(&step.step, &status.to_string()),
    }
}

/// A machine's address between the machines.
fn address(record: &Record) -> Result<Ipv4Addr> {
    record.address().ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            format!(
                "machine `{}` has no address on a network between the machines",
                record.name
            ),
        )
    })
}
