//! The end of `cluster up`: what the swarm is to be, once its machines are in it, and what it says it is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use forge_driver::{Error, Kind, Result};
use tokio::time::Instant;

use super::{Forming, address, listener};
use crate::cluster::node::{Availability, Health, Node};
use crate::cluster::plan::Action;
use crate::cluster::probe;
use crate::cluster::swarm::{self, Books, Expected};
use crate::cluster::up::Formed;
use crate::cluster::zones::Zone;
use crate::machine::access::Connection;

impl Forming<'_> {
    /// Lost entries, labels, availability, tokens; then the cluster is asked what it is.
    pub(super) async fn settle(&mut self) -> Result<Formed> {
        let entry = self.entry().ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("no manager of cluster `{}` answers", self.record.spec.name),
            )
        })?;
        let forge = self.forge;
        let on_step = listener(&forge.events);
        let books = Books {
            assets: &forge.assets,
            on_step: &on_step,
        };
        let told = forge.events.clone();
        let on_trouble = move |why: &str| told.progress(&format!("verifying: {why}"));
        forge
            .events
            .step(
                "verifying the cluster",
                "every node to be ready",
                Some(Instant::now() + forge.patience),
            )
            .await;
        for action in &self.plan.actions {
            if let Action::Forget { node, .. } = action {
                swarm::remove(
                    &*entry.guest,
                    None,
                    books,
                    node,
                    forge.patience,
                    &on_trouble,
                )
                .await?;
                self.changed += 1;
            }
        }
        let expected: Vec<Expected<'_>> = self
            .members
            .iter()
            .filter_map(|(name, member)| {
                Some(Expected {
                    machine: name,
                    node_id: member.node.as_deref()?,
                    role: member.place.role,
                })
            })
            .collect();
        for wanted in &expected {
            if self.plan.actions.iter().any(
                |action| matches!(action, Action::Promote { machine } if machine == wanted.machine),
            ) {
                self.changed +=
                    usize::from(swarm::promote(&*entry.guest, books, wanted.node_id).await?);
            }
        }
        let nodes = swarm::wait(&*entry.guest, &expected, forge.patience, &on_trouble).await?;
        if let Some(left) = self.record.renewing.take() {
            // A command that was cut off has left it drained.
            let there = nodes.iter().any(|node| node.id == left.node);
            if there {
                swarm::set_use(&*entry.guest, &left.node, left.availability).await?;
            }
            self.record.save(&forge.store)?;
            self.changed += usize::from(there);
        }
        let labels: BTreeMap<String, Zone> = self
            .members
            .values()
            .filter_map(|member| Some((member.node.clone()?, member.place.zone)))
            .filter(|(id, zone)| {
                nodes
                    .iter()
                    .any(|node| node.id == *id && node.zone != Some(*zone))
            })
            .collect();
        if self.record.spec.drain_managers {
            let drained: Vec<&str> = nodes
                .iter()
                .filter(|node| node.manager.is_some() && node.availability != Availability::Drain)
                .map(|node| node.id.as_str())
                .collect();
            self.changed += usize::from(
                swarm::set_availability(&*entry.guest, books, &drained, Availability::Drain)
                    .await?,
            );
        }
        let joined = self.joined > 0 || self.record.unsettled;
        if joined {
            self.changed += self.drop_strays(&entry, &nodes).await?;
        }
        let finish = async {
            let labelled = swarm::label(&*entry.guest, &labels).await?;
            if joined {
                swarm::rotate_tokens(&*entry.guest).await?;
            }
            Ok::<_, Error>(labelled)
        };
        let begun = self.begun().await;
        let machines = self.probed();
        // What the probe waits for (a task that starts) costs the manager nothing.
        let check = async {
            if !joined {
                return Ok(());
            }
            probe::announce(&forge.events, forge.patience).await;
            let peers: Vec<probe::Peer<'_>> = machines.iter().map(Probed::peer).collect();
            let entry = &*entry.guest;
            let done = match begun {
                Some(begun) => {
                    probe::finish(entry, &peers, begun, forge.patience, &on_trouble).await?
                }
                None => probe::probe(entry, &peers, forge.patience, &on_trouble).await?,
            };
            done.judge()
        };
        let (labelled, checked) = tokio::join!(finish, check);
        self.changed += usize::from(labelled?);
        checked?;
        if self.record.unsettled {
            self.record.unsettled = false;
            self.record.save(&forge.store)?;
        }
        let nodes = if labels.is_empty() && !joined {
            nodes
        } else {
            swarm::nodes(&*entry.guest).await?
        };
        let cluster_id = match &self.record.cluster_id {
            Some(id) => id.clone(),
            None => {
                let id = swarm::state(&*entry.guest)
                    .await?
                    .cluster_id
                    .unwrap_or_default();
                self.record.cluster_id = Some(id.clone());
                self.record.save(&forge.store)?;
                id
            }
        };
        Ok(Formed {
            cluster_id,
            changed: self.changed,
            nodes,
        })
    }

    /// Removes what attempts to join that came to nothing left in the list: entries that are not ready
    /// and have no name, or the name of a machine that is a member under another id.
    async fn drop_strays(&self, entry: &Connection, nodes: &[Node]) -> Result<usize> {
        let on_step = listener(&self.forge.events);
        let books = Books {
            assets: &self.forge.assets,
            on_step: &on_step,
        };
        let member = |id: &str| {
            self.members
                .values()
                .any(|member| member.node.as_deref() == Some(id))
        };
        let mut dropped = 0;
        for node in nodes {
            let ours = node.hostname.is_empty() || self.wished.contains(&node.hostname);
            if ours && node.health != Health::Ready && !member(&node.id) {
                swarm::remove(
                    &*entry.guest,
                    None,
                    books,
                    &node.id,
                    self.forge.patience,
                    &|_| {},
                )
                .await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    fn probed(&self) -> Vec<Probed> {
        self.members
            .iter()
            .filter_map(|(name, member)| {
                Some(Probed {
                    name: name.clone(),
                    node_id: member.node.clone()?,
                    address: address(&member.record).ok()?,
                    connection: member.connection.clone(),
                })
            })
            .collect()
    }
}

/// A member that the probe asks and is asked at.
pub(in crate::cluster) struct Probed {
    pub(in crate::cluster) name: String,
    pub(in crate::cluster) node_id: String,
    pub(in crate::cluster) address: Ipv4Addr,
    pub(in crate::cluster) connection: Connection,
}

impl Probed {
    pub(in crate::cluster) fn peer(&self) -> probe::Peer<'_> {
        probe::Peer {
            machine: &self.name,
            node_id: &self.node_id,
            address: self.address,
            guest: &*self.connection.guest,
        }
    }
}
