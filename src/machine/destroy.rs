//! Removal: the mirror of creation, resumed the same way.

use std::fs;

use forge_driver::{Claim, Driver, Error, Kind, Result};

use super::{Forge, Record, adopt, record};
use crate::context;
use crate::registry;
use crate::store;
use crate::transfer::docker_machine::keep;

/// Removes a machine: first what the provider has, then what is remembered. The intent is on disk
/// first, so a removal that was cut off is visible and goes on. The caller holds the machine's lock.
///
/// # Errors
/// When the provider cannot remove it; the record then stays.
pub async fn destroy(forge: &Forge, mut record: Record) -> Result<()> {
    begin(forge, &mut record).await?;
    at_the_provider(forge, &record).await?;
    here(forge, &record).await
}

/// Removes a machine also where its provider cannot: what stays there is told, with the claim that it carries, since
/// nothing here knows of it any more. The caller holds the machine's lock.
///
/// # Errors
/// When the store cannot be written, or the user interrupted.
pub async fn destroy_regardless(forge: &Forge, mut record: Record) -> Result<()> {
    begin(forge, &mut record).await?;
    if let Err(error) = at_the_provider(forge, &record).await {
        left_behind(
            forge,
            &record.name,
            &record.driver,
            Some(record.claim),
            error,
        )
        .await?;
    }
    here(forge, &record).await
}

/// Saves the intent.
async fn begin(forge: &Forge, record: &mut Record) -> Result<()> {
    forge.events.step("removing", "", None).await;
    if !record.leaving {
        record.leaving = true;
        record.save(&forge.store)?;
    }
    Ok(())
}

/// Removes what is remembered, and tells what was never forge's to remove.
async fn here(forge: &Forge, record: &Record) -> Result<()> {
    leave_docker(forge, &record.name).await;
    forget(forge, &record.name)?;
    if let Some(imported) = &record.imported {
        if let Err(error) = keep::forget(forge, &record.name, imported).await {
            let text = format!("secrets of `{}` stay: {}", record.name, error.line());
            forge.events.warning(text).await;
        }
        forge.events.warning(imported.left(record)).await;
    }
    forge.events.finished("removed", true).await;
    Ok(())
}

/// Removes what the provider has.
async fn at_the_provider(forge: &Forge, record: &Record) -> Result<()> {
    adopt::leave(forge, record).await?;
    let driver = forge.driver(record)?;
    driver.destroy(record.claim).await?;
    // Before the record goes: without it nobody would know of the network any more.
    if let Some(nic) = &record.placement.nic
        && !used_by_others(forge, nic.network.id, &record.name)?
    {
        driver.release_shared(&nic.network).await?;
    }
    Ok(())
}

/// Tells what a provider may still have; an interrupted removal is none that the provider refused.
async fn left_behind(
    forge: &Forge,
    name: &str,
    driver: &str,
    claim: Option<Claim>,
    error: Error,
) -> Result<()> {
    if error.kind() == Kind::Interrupted {
        return Err(error);
    }
    let carrying = claim.map_or_else(
        || "no claim of it is known".to_owned(),
        |claim| format!("it carries the claim {claim}"),
    );
    forge
        .events
        .warning(format!(
            "machine `{name}` is removed here alone; what driver `{driver}` has of it may be left, {carrying}: {}",
            error.line()
        ))
        .await;
    Ok(())
}

/// Removes a machine whose record cannot be read, as far as anything of it can be found; `regardless` of what its
/// provider could not remove, which is told.
///
/// # Errors
/// When files cannot be removed, or a provider's remains could not be.
pub async fn destroy_damaged(forge: &Forge, name: &str, regardless: bool) -> Result<()> {
    forge.events.step("removing what is left", "", None).await;
    let (claim, id) = salvage(forge, name);
    for entry in registry::all()
        .iter()
        .filter(|entry| id.as_deref().is_none_or(|id| id == entry.id))
    {
        match remains(forge, entry, name, claim).await {
            Err(error) if regardless => left_behind(forge, name, entry.id, claim, error).await?,
            removed => removed?,
        }
    }
    leave_docker(forge, name).await;
    forget(forge, name)?;
    forge.events.finished("removed", true).await;
    Ok(())
}

/// Takes the machine out of docker's contexts. What lies in docker's folder keeps no machine from going.
async fn leave_docker(forge: &Forge, name: &str) {
    if let Err(error) = context::forget(&forge.store, name) {
        let text = format!(
            "docker's context of machine `{name}` stays: {}",
            error.line()
        );
        forge.events.warning(text).await;
    }
}

/// Removes what one driver has of a machine whose record cannot be read.
async fn remains(
    forge: &Forge,
    entry: &registry::Entry,
    name: &str,
    claim: Option<Claim>,
) -> Result<()> {
    let config = (entry.default)().unwrap_or(serde_json::Value::Null);
    let driver = registry::open(forge, entry.id, &config)?;
    let claims = match claim {
        Some(claim) => vec![claim],
        None => lost(forge, &*driver, name).await?,
    };
    for claim in claims {
        driver.destroy(claim).await?;
    }
    Ok(())
}

/// The machines that a driver made under this name and that no record knows.
async fn lost(forge: &Forge, driver: &dyn Driver, name: &str) -> Result<Vec<Claim>> {
    let known: Vec<Claim> = Record::all(&forge.store)?
        .into_iter()
        .filter_map(|(_, record)| Some(record.ok()?.claim))
        .collect();
    let made = driver.list().await?;
    Ok(made
        .into_iter()
        .filter(|(claim, made)| made == name && !known.contains(claim))
        .map(|(claim, _)| claim)
        .collect())
}

/// The claim and the driver that a damaged record still shows.
fn salvage(forge: &Forge, name: &str) -> (Option<Claim>, Option<String>) {
    let bytes = fs::read(forge.store.machine_dir(name).join("machine.json")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let after = |key: &str| -> Option<String> {
        let rest = text.split_once(&format!("\"{key}\""))?.1;
        let rest = rest
            .trim_start()
            .strip_prefix(':')?
            .trim_start()
            .strip_prefix('"')?;
        Some(rest.split('"').next()?.to_owned())
    };
    (
        after("claim").and_then(|claim| claim.parse().ok()),
        after("driver"),
    )
}

/// Removes the folder of a machine, its record last: while anything is left, it is listed.
fn forget(forge: &Forge, name: &str) -> Result<()> {
    if !record::valid_name(name) {
        return Err(Error::new(
            Kind::Usage,
            format!("`{name}` is not the name of a machine"),
        ));
    }
    store::forget(&forge.store.machine_dir(name), "machine.json")
}

fn used_by_others(forge: &Forge, network: uuid::Uuid, name: &str) -> Result<bool> {
    Ok(Record::all(&forge.store)?
        .into_iter()
        .filter(|(other, _)| other != name)
        .any(|(_, record)| match record {
            // Of two that leave at the same time, one has to be the last.
            Ok(record) => {
                !record.leaving
                    && record
                        .placement
                        .nic
                        .is_some_and(|nic| nic.network.id == network)
            }
            // What cannot be read may use it.
            Err(_) => true,
        }))
}
