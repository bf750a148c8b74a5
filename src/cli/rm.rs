//! `forge rm`

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use forge::cluster::peers;
use forge::cluster::spec::ClusterName;
use forge::machine::{Forge, Record, destroy};
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::{Error, Fact, Kind, Result};

use super::ask::confirm;
use super::names::distinct;
use super::outcome::{Done, FAN_OUT, finish, summary};
use super::persona::Persona;
use super::sudo::passwords;
use super::{Outcome, Session, report};

/// Remove machines with their disks
#[derive(Args)]
pub struct Rm {
    /// The machines
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Do not ask, succeed for machines that do not exist, and remove also what is damaged or belongs to a cluster; what
    /// the provider could not remove is forgotten here, and told
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Removes them all at once.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let names = distinct(self.names);
        if names.is_empty() {
            return Err(Error::new(Kind::Usage, "no machine is named").fact(Fact::NoName));
        }
        let none_yet = session.existing()?.is_none();
        let sure = self.yes || self.force;
        let in_other_words = session.persona() == Persona::DockerMachine && !session.json();
        if in_other_words && !session.persona().may_remove(&names, sure)? {
            return Ok(Outcome::Done);
        }
        if none_yet && self.force {
            let nothing: Vec<_> = names.into_iter().map(|name| (name, Ok(false))).collect();
            if session.json() {
                println!("{}", summary(&nothing));
            }
            if in_other_words {
                tell_missing(&nothing);
            }
            return Ok(Outcome::Done);
        }
        session.reader()?;
        if !sure && !in_other_words {
            confirm(&format!(
                "Remove {} and all data on their disks?",
                names.join(", ")
            ))?;
        }
        let sudo = match passwords(&session.reader()?, &names, None).await {
            // What cannot be undone on a host is told then.
            Err(error) if self.force && error.kind() != Kind::Interrupted => Arc::default(),
            sudo => sudo?,
        };
        let (mut forge, drawing) = session.worker("rm")?;
        forge.sudo = sudo;
        let clusters = clusters_of(&forge, &names);
        let done = remove_all(&forge, &names, self.force).await;
        for cluster in clusters.into_iter().filter(|_| done.is_ok()) {
            // They go on without; the next `cluster up` does the same.
            if let Err(error) = peers::after_removal(&forge, &cluster).await {
                let why = error.line();
                forge
                    .events
                    .warning(format!("the other machines of cluster `{cluster}` still let the removed ones in: {why}; `forge cluster up {cluster}` tells them"))
                    .await;
            }
        }
        drawing.finish(forge).await;
        let done = done?;
        if in_other_words && self.force {
            tell_missing(&done);
        }
        finish(session, done)
    }
}

/// docker-machine told of machines that were not there, also where it was to succeed.
fn tell_missing(done: &[(String, Result<bool>)]) {
    for (name, result) in done {
        if matches!(result, Ok(false)) {
            let missing = Error::new(Kind::NotFound, format!("machine `{name}` does not exist"));
            report::write(&missing.fact(Fact::NoMachine(name.clone())), None);
            report::note(&format!("Can't remove {name:?}"));
        }
    }
}

/// The clusters that these machines belong to.
fn clusters_of(forge: &Forge, names: &[String]) -> BTreeSet<ClusterName> {
    names
        .iter()
        .filter_map(|name| Record::load(&forge.store, name).ok()?.member)
        .filter_map(|member| member.cluster.parse().ok())
        .collect()
}

/// Removes machines, each under its lock.
///
/// # Errors
/// When locks are not had.
pub async fn remove_all(forge: &Forge, names: &[String], force: bool) -> Result<Done<bool>> {
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let mut running = tokio::task::JoinSet::new();
    let room = tasks::Room::of(FAN_OUT);
    let mut done = Vec::new();
    for name in names {
        match Record::load(&forge.store, name) {
            Ok(record) => {
                if let Some(member) = &record.member
                    && !force
                    && !record.leaving
                {
                    let error = Error::new(
                        Kind::Conflict,
                        format!("machine `{name}` is a {} of cluster `{}`", member.role, member.cluster),
                    )
                    .hint(format!("`forge cluster down {}` removes the cluster; `forge rm -f {name}` only this machine", member.cluster));
                    done.push((name.clone(), Err(error)));
                    continue;
                }
                let forge = forge.of(name);
                let room = room.clone();
                running.spawn(async move {
                    let _turn = room.turn().await;
                    let name = record.name.clone();
                    let removed = if force {
                        destroy::destroy_regardless(&forge, record).await
                    } else {
                        destroy::destroy(&forge, record).await
                    };
                    let done = removed.map(|()| true).map_err(|error| {
                        error.context(format!("failed to remove machine `{name}`"))
                    });
                    (name, done)
                });
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let left = forge.store.machine_dir(name).exists()
                    && forge::machine::record::valid_name(name);
                if left {
                    done.push((
                        name.clone(),
                        destroy::destroy_damaged(&forge.of(name), name, force)
                            .await
                            .map(|()| true),
                    ));
                } else {
                    done.push((name.clone(), if force { Ok(false) } else { Err(error) }));
                }
            }
            Err(_) if force => {
                done.push((
                    name.clone(),
                    destroy::destroy_damaged(&forge.of(name), name, force)
                        .await
                        .map(|()| true),
                ));
            }
            Err(error) => done.push((name.clone(), Err(error))),
        }
    }
    done.extend(tasks::all(running).await?);
    done.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(done)
}
