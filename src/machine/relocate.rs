//! A machine whose address has changed: found by whoever uses it next, with no step by hand.
//!
//! Addresses that were decided before the provider was asked do not change, and nobody is asked about them. Where a
//! server of the network gives them, the provider tells the one of now; it is saved, and what follows from the record
//! with it. A new certificate is made only where clients go by the address and the certificate does not carry it; on the
//! way the containers of a machine outside a swarm keep running.

use std::net::SocketAddr;
use std::time::Duration;

use forge_driver::{Instance, Result};
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
    let in_memory = Record {
        instance: Some(now.clone()),
        ..record
    };
    let name = in_memory.name.clone();
    let Some(_lock) = try_acquire(&forge.store, &Guarded::Machine(name.clone()))? else {
        return Ok(in_memory);
    };
    // What was read before the lock was had may have changed.
    let saved = Record {
        instance: Some(now.clone()),
        ..Record::load(&forge.store, &name)?
    };
    saved.save(&forge.store)?;
    if named(&saved) {
        provision::follow(forge, &saved).await;
    }
    Ok(saved)
}

/// Whether the provider tells another address than the recorded one.
fn moved(record: &Record, now: &Instance) -> bool {
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

/// Whether the certificate carries the address that clients go by.
pub fn named(record: &Record) -> bool {
    if record.imported.is_some() {
        // It is not forge's to make anew: the handshake tells what it is worth.
        return true;
    }
    let (Some(tls), Ok(endpoints)) = (&record.tls, record.endpoints()) else {
        // There is none to compare.
        return true;
    };
    tls.names.contains(&endpoints.engine.ip().to_string())
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
    let record = Record {
        instance: record.instance,
        ..Record::load(&forge.store, &name)?
    };
    if named(&record) {
        return Ok(record);
    }
    let peers = cluster::record::peers(&forge.store, &record)?;
    let up = create::bring_up(forge, record, None, &peers).await?;
    Ok(up.record)
}
