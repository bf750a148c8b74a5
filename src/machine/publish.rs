//! Published ports: reached from the host on the machine's own address.

use std::net::{IpAddr, Ipv4Addr};

use forge_driver::{ENGINE_PORT, Error, Forward, Kind, Result, SSH_PORT};

use super::{Forge, Record, record};
use crate::store::addresses::{self, Placement, Taken};
use crate::store::lock::{Guarded, acquire};

/// Refuses words that no machine can publish, before anything is touched.
///
/// # Errors
/// [`Kind::Usage`] with the first of them.
pub fn check(words: &[String]) -> Result<()> {
    words
        .iter()
        .try_for_each(|words| reachable(addresses::ports(words)?.1))
}

/// Refuses the ports that every machine is reached at anyway.
fn reachable(guest: u16) -> Result<()> {
    if [SSH_PORT, ENGINE_PORT].contains(&guest) {
        return Err(Error::new(
            Kind::Usage,
            format!("port {guest} of every machine is reachable already"),
        )
        .hint("`forge ip` and `forge url` show where"));
    }
    Ok(())
}

/// Resolves the words of one port for a machine placed there.
///
/// # Errors
/// When the words are not a port, or the machine is not reached through ports of the host.
pub(super) fn forward(words: &str, placement: &Placement, taken: &Taken) -> Result<Forward> {
    let Some(ssh) = placement.ssh else {
        return Err(Error::new(
            Kind::Usage,
            "this machine has an address of its own: its ports need not be published",
        ));
    };
    let host = placement
        .loopback
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4);
    let forward = addresses::publish(words, host, taken, ssh.host.port() != SSH_PORT)?;
    reachable(forward.guest)?;
    Ok(forward)
}

/// Publishes ports of a machine, besides those that are. The record is saved first, so a port survives
/// a kill here and is put back at the next start. The caller holds the machine's lock.
///
/// # Errors
/// [`Kind::Conflict`] when a port is taken, naming its owner: nothing is recorded then.
pub async fn publish(
    forge: &Forge,
    record: &Record,
    words: &[String],
) -> Result<(Record, Vec<Forward>)> {
    let _lock = acquire(
        &forge.store,
        &Guarded::Addresses,
        forge.patience,
        &forge.events,
    )
    .await?;
    let mut taken = record::taken(&forge.store)?;
    let mut next = record.clone();
    let mut shown = Vec::new();
    for words in words {
        let guest = words.rsplit(':').next().unwrap_or_default();
        let known = record
            .published
            .iter()
            .find(|forward| forward.guest.to_string() == guest && !words.contains(':'));
        if let Some(known) = known {
            shown.push(*known);
            continue;
        }
        let new = forward(words, &record.placement, &taken)?;
        if record.published.contains(&new) {
            shown.push(new);
            continue;
        }
        if let Some(owner) = next
            .published
            .iter()
            .find(|forward| forward.host == new.host)
        {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "port {} of {} is taken by machine `{}` itself, for its port {}",
                    new.host.port(),
                    new.host.ip(),
                    record.name,
                    owner.guest
                ),
            )
            .hint(format!(
                "`forge publish {} {} --remove` frees it",
                record.name, owner.guest
            )));
        }
        taken.ports.insert(new.host);
        next.published.push(new);
        shown.push(new);
    }
    apply(forge, record, next).await.map(|next| (next, shown))
}

/// Takes published ports back. Ports that are not published are no error.
///
/// # Errors
/// When the provider cannot be asked.
pub async fn withdraw(forge: &Forge, record: &Record, ports: &[u16]) -> Result<Record> {
    let mut next = record.clone();
    next.published
        .retain(|forward| !ports.contains(&forward.guest));
    apply(forge, record, next).await
}

/// Publishes exactly what was published before, on a machine whose record is `now`.
///
/// # Errors
/// When the provider cannot be asked.
pub async fn restore(forge: &Forge, now: &Record, before: &[Forward]) -> Result<Record> {
    let next = Record {
        published: before.to_vec(),
        ..now.clone()
    };
    apply(forge, now, next).await
}

async fn apply(forge: &Forge, before: &Record, next: Record) -> Result<Record> {
    let driver = forge.driver(&next)?;
    if next.published != before.published {
        next.save(&forge.store)?;
    }
    // Also when nothing is new: an earlier call may have been cut off behind its save.
    if let Err(error) = driver.forward(next.claim, &next.published).await {
        if next.published != before.published {
            before.save(&forge.store)?;
        }
        return Err(error.context(format!(
            "failed to publish ports of machine `{}`",
            next.name
        )));
    }
    Ok(next)
}
