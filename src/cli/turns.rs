//! Machines by whether they are nodes of a cluster: the others are worked on side by side, nodes one after another.

use std::collections::{BTreeMap, BTreeSet};

use forge::cluster::spec::ClusterName;
use forge::machine::Forge;
use forge::store::lock::acquire_machines;
use forge::tasks;
use forge_driver::Result;
use tokio::task::JoinSet;

use super::outcome::{self, FAN_OUT};

/// The machines of each cluster.
pub type Clusters = BTreeMap<ClusterName, BTreeSet<String>>;

/// What each machine came to: whether it was changed.
pub type Done = outcome::Done<bool>;

/// Works on machines under their locks, on as many at once as there is room for.
///
/// # Errors
/// When a lock is not had: nothing was done then.
pub async fn side_by_side<W>(
    forge: &Forge,
    names: &[String],
    work: impl Fn(Forge, String) -> W,
) -> Result<Done>
where
    W: Future<Output = Result<bool>> + Send + 'static,
{
    let _locks = acquire_machines(&forge.store, names, forge.patience, &forge.events).await?;
    let room = tasks::Room::of(FAN_OUT);
    let mut running = JoinSet::new();
    for name in names {
        let (work, room, name) = (
            work(forge.of(name), name.clone()),
            room.clone(),
            name.clone(),
        );
        running.spawn(async move {
            let _turn = room.turn().await;
            (name, work.await)
        });
    }
    tasks::all(running).await
}

/// Adds what came of the machines of a cluster. What failed as a whole is told of the first of them.
pub fn add(done: &mut Done, of_cluster: Result<Done>, members: BTreeSet<String>, failed: &str) {
    match of_cluster {
        Ok(machines) => done.extend(machines),
        Err(error) => {
            let first = members.into_iter().next().unwrap_or_default();
            done.push((first, Err(error.context(failed.to_owned()))));
        }
    }
}
