//! A machine whose address has changed: found by whoever uses it next, with no step by hand.
//!
//! Addresses that were decided before the provider was asked do not change, and nobody is asked about them. Where a
//! server of the network gives them, the provider tells the one of now; it is saved, and what follows from the record
//! with it. A new certificate is made only where clients go by the address, and not by a stable name, and the certificate
//! does not carry it; on the way the containers of a machine outside a swarm keep running.

use std::net::SocketAddr;
use std::time::Duration;

use forge_driver::{Error, Instance, Kind, Result};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Forge, Record, Stage, create, provision, seen};
use crate::cluster;
use crate::store::lock::{Guarded, acquire, try_acquire};

/// An SSH server that is up begins to speak within this time …
const KNOCK: Duration = Duration::from_secs(2);
/// … and a provider says within this time where the machine is.
const LOOK: Duration = Duration::from_secs(10);

/// The record with the address that the machine's provider has just told. It is saved, unless another command works on
/// the machine: that one, or the next, saves it.
///
/// # Errors
/// When the record cannot be read or saved.
pub async fn told(forge: &Forge, record: Record, seen: Option<&Instance>) -> Result<Record> {
    let Some(now) = seen.filter(|now| moved(&record, now)) else {
        return Ok(record);
    };
    let before = record.instance.clone();
    let in_memory = Record {
        instance: Some(now.clone()),
        ..record
    };
    let name = in_memory.name.clone();
    let Some(_lock) = try_acquire(&forge.store, &Guarded::Machine(name.clone()))? else {
        return Ok(in_memory);
    };
    // What was read before the lock was had may have changed.
    let saved = match again(
        &in_memory,
        before.as_ref(),
        Record::load(&forge.store, &name)?,
    ) {
        Again::Moved(record) => *record,
        Again::Told(record) => return Ok(*record),
        Again::Another => return Ok(in_memory),
    };
    saved.save(&forge.store)?;
    if named(&saved) {
        provision::follow(forge, &saved).await;
    }
    Ok(saved)
}

/// What the record on disk is to an observation that was made before the lock was had.
enum Again {
    /// The observation is news to it: with it.
    Moved(Box<Record>),
    /// Somebody else has been told since, or nothing is to be told.
    Told(Box<Record>),
    /// The machine that was observed is gone; another one has its name.
    Another,
}

/// `seen` is the record with what was observed, `before` what it had when that was asked.
fn again(seen: &Record, before: Option<&Instance>, loaded: Record) -> Again {
    if loaded.claim != seen.claim {
        return Again::Another;
    }
    match &seen.instance {
        Some(now) if loaded.instance.as_ref() == before && moved(&loaded, now) => {
            Again::Moved(Box::new(Record {
                instance: seen.instance.clone(),
                ..loaded
            }))
        }
        _ => Again::Told(Box::new(loaded)),
    }
}

/// Whether the provider tells another address than the recorded one.
pub(super) fn moved(record: &Record, now: &Instance) -> bool {
    let known = record.instance.as_ref().map(|known| &known.endpoints);
    let settled = record.stage >= Stage::Launched && !record.leaving;
    settled && !record.placement.decided() && now.located() && known != Some(&now.endpoints)
}

/// The record with the address that the machine has now, for commands that ask no provider while an SSH server answers
/// at the recorded one. Where nobody can tell, the record is what there is.
pub async fn knocked(forge: &Forge, record: Record) -> Record {
    if record.placement.decided() || answers(forge, &record).await {
        return record;
    }
    sought(forge, record).await
}

async fn answers(forge: &Forge, record: &Record) -> bool {
    match forge.access(record) {
        Ok(access) => matches!(timeout(KNOCK, access.knock(record)).await, Ok(Ok(_))),
        Err(_) => false,
    }
}

/// The same, for whom the recorded address does not answer.
pub async fn sought(forge: &Forge, record: Record) -> Record {
    let look = async {
        let seen = seen(&*forge.driver(&record)?, &record).await?;
        told(forge, record.clone(), seen.1.as_ref()).await
    };
    match timeout(LOOK, look).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => record.clone(),
    }
}

/// Whether something accepts connections at the address of a machine's SSH server: cheaper than [`knocked`], for those
/// who are about to connect.
pub async fn accepts(address: SocketAddr) -> bool {
    matches!(timeout(KNOCK, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// Whether the certificate carries the address, or the stable name, that clients go by.
pub fn named(record: &Record) -> bool {
    let imported = record.imported.as_ref();
    if imported.is_some_and(|imported| !imported.certified) {
        // It is docker-machine's still, and nothing is made anew unasked: the handshake tells what it is worth.
        return true;
    }
    let (Some(tls), Ok(host)) = (&record.tls, record.engine_host()) else {
        // There is none to compare.
        return true;
    };
    tls.names.contains(&host)
}

/// The record of a machine that is on, whose certificate carries the address that clients go by: made anew where it
/// does not.
///
/// # Errors
/// When the lock is not had, or the machine or its engine does not answer.
pub async fn certified(forge: &Forge, record: Record) -> Result<Record> {
    if record.placement.decided() || named(&record) {
        return Ok(record);
    }
    let name = record.name.clone();
    let machine = Guarded::Machine(name.clone());
    let _lock = acquire(&forge.store, &machine, forge.patience, &forge.events).await?;
    // Another command may have done it while this one waited.
    let loaded = Record::load(&forge.store, &name)?;
    if loaded.claim != record.claim {
        return Err(Error::new(
            Kind::Conflict,
            format!("machine `{name}` is another one now: it was removed and made anew"),
        )
        .hint("run the command again"));
    }
    let record = match &record.instance {
        Some(now) if moved(&loaded, now) => Record {
            instance: record.instance,
            ..loaded
        },
        _ => loaded,
    };
    if named(&record) {
        return Ok(record);
    }
    let peers = cluster::record::peers(&forge.store, &record)?;
    let up = create::bring_up(forge, record, None, &peers).await?;
    Ok(up.record)
}

#[cfg(test)]
mod tests {
    use forge_driver::Claim;

    use super::*;

    #[test]
    fn an_observation_that_is_out_of_date_is_not_saved() {
        let text = include_str!("recorded/format-1.json");
        let mut old: Record = serde_json::from_str(text).expect("a record");
        old.placement.nic = None;
        old.placement.ssh = None;
        old.placement.leased = true;
        old.leaving = false;
        let at = |last: u8| {
            let mut instance = old.instance.clone().expect("an instance");
            instance.endpoints.ssh.set_ip([10, 1, 1, last].into());
            Some(instance)
        };
        let with = |instance: Option<Instance>| Record {
            instance,
            ..old.clone()
        };
        let (before, seen) = (at(1), with(at(2)));
        let judged = |loaded: Record| again(&seen, before.as_ref(), loaded);
        assert!(
            matches!(judged(with(at(1))), Again::Moved(record) if record.instance == at(2)),
            "it is news"
        );
        assert!(
            matches!(judged(with(at(3))), Again::Told(record) if record.instance == at(3)),
            "somebody else has asked later"
        );
        assert!(matches!(judged(with(at(2))), Again::Told(_)));
        let mut leaving = with(at(1));
        leaving.leaving = true;
        assert!(matches!(judged(leaving), Again::Told(record) if record.leaving));
        let mut another = with(at(1));
        another.claim = Claim::random();
        assert!(matches!(judged(another), Again::Another));
    }
}
