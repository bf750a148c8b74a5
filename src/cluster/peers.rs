//! Whom the members of a cluster let in: the named set of their packet filters.

use std::net::IpAddr;

use forge_driver::Result;
use futures_util::future::join_all;

use super::look::{Seen, look};
use super::record::{addresses, members};
use super::spec::ClusterName;
use crate::machine::{Forge, Record, Stage, provision};
use crate::store::lock::acquire_machines;

/// Brings the machines of `who` that run and answer to these peers. The caller holds their locks.
///
/// # Errors
/// The first that could not be brought to them.
pub(super) async fn tell(
    forge: &Forge,
    seen: &Seen,
    peers: &[IpAddr],
    who: impl Fn(&Record) -> bool,
) -> Result<()> {
    let told = seen
        .records
        .values()
        .filter(|record| record.stage == Stage::Ready && !record.leaving && who(record))
        .filter_map(|record| {
            let open = seen.connections.get(&record.name)?;
            let forge = forge.of(&record.name);
            Some(async move { provision::apply(&forge, record.clone(), open, peers).await })
        });
    join_all(told)
        .await
        .into_iter()
        .try_for_each(|done| done.map(|_| ()))
}

/// Has the members that are left forget the addresses of those that were removed: another machine may get
/// them. Members that are off learn of it by the next `cluster up`.
///
/// # Errors
/// When a lock is not had, or a member could not be brought to it.
pub async fn after_removal(forge: &Forge, cluster: &ClusterName) -> Result<()> {
    let names: Vec<String> = members(&forge.store, cluster)?
        .into_iter()
        .map(|record| record.name)
        .collect();
    let _locks = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
    let seen = look(forge, cluster, None).await?;
    let peers = addresses(&members(&forge.store, cluster)?);
    tell(forge, &seen, &peers, |_| true).await
}
