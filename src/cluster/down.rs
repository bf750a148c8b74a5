//! `cluster down`, `start`, `stop`.

use std::time::Duration;

use forge_driver::{Error, Kind, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::look::{look, place_of};
use super::record::{self, ClusterRecord, members};
use super::spec::ClusterName;
use super::status::{Status, status_of};
use super::zones::Role;
use crate::interrupt;
use crate::machine::{Forge, Record, destroy, power};
use crate::store::lock::{Guarded, Lock, acquire, acquire_machines};
use crate::tasks;

/// The locks of a cluster and of all of its machines, in their order; and the machines, by name.
///
/// # Errors
/// When a lock is not had in time, or a record cannot be read.
pub async fn locked(forge: &Forge, name: &ClusterName) -> Result<(Lock, Vec<Lock>, Vec<Record>)> {
    let cluster = acquire(
        &forge.store,
        &Guarded::Cluster(name.to_string()),
        forge.patience,
        &forge.events,
    )
    .await?;
    let names: Vec<String> = members(&forge.store, name)?
        .into_iter()
        .map(|record| record.name)
        .collect();
    let machines = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
    // Read again: what was read before the locks were had may have changed.
    Ok((cluster, machines, members(&forge.store, name)?))
}

/// Removes a cluster with all of its machines and their disks. The intent is on disk first; what was cut
/// off goes on. How many machines were removed.
///
/// With `force` also a cluster whose record cannot be read: what carries its name is removed.
///
/// # Errors
/// When a machine could not be removed: it and the cluster stay listed.
pub async fn down(forge: &Forge, name: &ClusterName, force: bool) -> Result<usize> {
    let recorded = || match ClusterRecord::load(&forge.store, name) {
        Err(error) if force && error.kind() == Kind::Corrupt => Ok(None),
        record => record.map(Some),
    };
    // Nobody waits for a cluster that is not there; what counts is read when nobody else writes it.
    recorded()?;
    let (_cluster, _machines, members) = locked(forge, name).await?;
    let record = recorded()?;
    if let Some(mut record) = record
        && !record.leaving
    {
        record.leaving = true;
        record.save(&forge.store)?;
    }
    let count = members.len();
    each(forge, members, "remove", |forge, record| async move {
        destroy::destroy(&forge, record).await.map(|()| true)
    })
    .await?;
    record::forget(&forge.store, name)?;
    Ok(count)
}

/// Shuts a cluster down: workers first, managers after them. How many machines were on.
///
/// # Errors
/// When a machine does not go down in time.
pub async fn stop(forge: &Forge, name: &ClusterName) -> Result<usize> {
    ClusterRecord::load(&forge.store, name)?;
    let (_cluster, _machines, members) = locked(forge, name).await?;
    let (managers, workers): (Vec<Record>, Vec<Record>) = members.into_iter().partition(|record| {
        record
            .member
            .as_ref()
            .is_some_and(|member| member.role == Role::Manager)
    });
    let mut changed = 0;
    let mut failures = Vec::new();
    // A worker that does not go down keeps no manager from going down cleanly.
    for group in [workers, managers] {
        let done = each(forge, group, "stop", |forge, record| async move {
            power::stop(&forge, &record).await
        });
        match done.await {
            Ok(count) => changed += count,
            Err(error) => failures.push(error),
        }
    }
    tasks::first_of(failures).map_or(Ok(changed), Err)
}

/// Starts all machines of a cluster and waits until it is whole again: the same id, a quorum, every node
/// ready. How many machines were off.
///
/// # Errors
/// [`Kind::Timeout`] with what is missing.
pub async fn start(forge: &Forge, name: &ClusterName) -> Result<(usize, Status)> {
    ClusterRecord::load(&forge.store, name)?;
    let (_cluster, _machines, members) = locked(forge, name).await?;
    let record = ClusterRecord::load(&forge.store, name)?;
    let changed = each(forge, members, "start", |forge, record| async move {
        power::start(&forge, &record).await
    })
    .await?;
    let deadline = Instant::now() + forge.patience;
    forge
        .events
        .step(
            "verifying the cluster",
            "every node to be ready",
            Some(deadline),
        )
        .await;
    loop {
        interrupt::check()?;
        let seen = look(forge, name, Some(&record)).await?;
        let status = status_of(&record, &seen);
        if status.whole() {
            return Ok((changed, status));
        }
        let trouble = Error::new(Kind::Unavailable, status.trouble.join("; "));
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "cluster `{name}` is not whole after {} s",
                    forge.patience.as_secs()
                ),
            )
            .because(trouble)
            .hint(format!("`forge cluster status {name}` shows every node")));
        }
        forge.events.trouble(&trouble).await;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Does the same to many machines at once. How many were changed.
async fn each<F, Fut>(forge: &Forge, records: Vec<Record>, verb: &str, work: F) -> Result<usize>
where
    F: Fn(Forge, Record) -> Fut,
    Fut: Future<Output = Result<bool>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for record in records {
        let name = record.name.clone();
        let work = work(forge.of(&name), record);
        running.spawn(async move { (name, work.await) });
    }
    let mut changed = 0;
    let mut failures = Vec::new();
    while let Some(done) = running.join_next().await {
        match done {
            Ok((_, Ok(did))) => changed += usize::from(did),
            Ok((name, Err(error))) => {
                failures.push(error.context(format!("failed to {verb} machine `{name}`")));
            }
            Err(error) => failures.push(tasks::broke_off(error)),
        }
    }
    tasks::first_of(failures).map_or(Ok(changed), Err)
}

/// The machines of a cluster in the order of their places.
///
/// # Errors
/// When a record cannot be read.
pub fn in_order(forge: &Forge, name: &ClusterName) -> Result<Vec<Record>> {
    let mut members = members(&forge.store, name)?;
    members.sort_by_key(|record| place_of(record).map(|place| (place.role, place.index)));
    Ok(members)
}
