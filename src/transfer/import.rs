//! Machines out of a sealed file, into a store.
//!
//! ```text
//! whole file verified → records looked at, names compared, refused or not → disks aside → tried, refused or not
//!   → what will be there (journal) → certificate authority → machine by machine: files, driver, record → clusters → journal away
//! ```
//!
//! A machine is there once its record is, which is the last of it that is written. After a kill the same command goes on;
//! an import of another file clears away first what the one before began and did not end.

mod arrivals;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use forge_driver::{
    BaseImage, Claim, Context, Error, Forward, Kind, Nic, Result, Seed, Spec, atomic,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::archive::{self, Interruptible, Manifest, Small, Smalls, WHAT};
use crate::ca;
use crate::machine::{Forge, Record, record, renew};
use crate::registry;
use crate::seal::{Key, Sealed};
use crate::secret::Secret;
use crate::store::addresses::{self, Placement};
use crate::store::lock::{Guarded, acquire, acquire_all, try_acquire};
use crate::store::{self, Store, read_json, write_file, write_json};

use arrivals::{Arrival, MACHINE, arrivals, below, check_clusters, new_clusters, new_here};

/// Where an import keeps what is on its way.
const FOLDER: &str = ".import";
/// Where that goes once all is here.
const OVER: &str = ".import.over";
/// What it has begun.
const JOURNAL: &str = "import.json";

/// A file that was verified to its last byte, and the key that opens it again.
pub struct Verified {
    path: PathBuf,
    key: Key,
}

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// The machines, and whether each came with its disk.
    pub machines: Vec<(String, bool)>,
    /// Machines that were here already, from the same file.
    pub there: Vec<String>,
    /// The clusters.
    pub clusters: Vec<String>,
    /// Machines whose certificates another authority than this store's has signed.
    pub strangers: Vec<String>,
}

/// What an import has begun.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    archive: Uuid,
    machines: Vec<Begun>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    name: String,
    claim: Claim,
    driver: String,
    config: Value,
    /// The driver is to be asked to remove what it has made for it.
    disk: bool,
}

/// Opens a file and reads all of it, so that nothing is begun that cannot be ended. `passphrase` is asked for once the file
/// is known to be an export.
///
/// # Errors
/// [`Kind::Refused`] for another passphrase, [`Kind::Corrupt`] with where it is damaged.
pub fn verify(path: &Path, passphrase: impl FnOnce() -> Result<Secret>) -> Result<Verified> {
    let context = |error: Error| error.context(format!("failed to open `{}`", path.display()));
    let sealed = sealed(path)?;
    let secret = passphrase()?;
    let key = sealed.key(&secret).map_err(context)?;
    sealed
        .unlock(&key)
        .map_err(context)?
        .verify()
        .map_err(context)?;
    Ok(Verified {
        path: path.to_owned(),
        key,
    })
}

fn sealed(path: &Path) -> Result<Sealed<File>> {
    let failed = || format!("failed to open `{}`", path.display());
    let kind = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        _ => Kind::Io,
    };
    let file =
        File::open(path).map_err(|error| Error::new(kind(&error), failed()).because(error))?;
    if !file.metadata().or_fail(Kind::Io, failed)?.is_file() {
        return Err(Error::new(Kind::Usage, failed()).because(
            "it is no file: it is read twice, and nothing is begun before its end was seen",
        ));
    }
    Sealed::read(file, WHAT).map_err(|error| error.context(failed()))
}

/// Takes the machines of a file into the store.
///
/// # Errors
/// [`Kind::Precheck`] with what keeps them from working here: nothing was changed. Otherwise what failed; the machines
/// that are here then are whole.
pub async fn import(forge: &Forge, verified: &Verified) -> Result<Imported> {
    let store = &forge.store;
    let aside = store.root().join(FOLDER);
    let _turn = acquire(store, &Guarded::Imports, forge.patience, &forge.events).await?;
    let done = imported(forge, verified, &aside).await;
    if done.is_ok() {
        // It ends in one step: half a folder would tell nobody that all is here.
        let over = store.root().join(OVER);
        store::forget(&over, JOURNAL)?;
        atomic::gone(fs::rename(&aside, &over), &aside)?;
        store::forget(&over, JOURNAL)?;
    } else {
        // The first error is the one to report; what stays, the next import clears away.
        let _ = undo(forge, &aside).await;
    }
    done
}

async fn imported(forge: &Forge, verified: &Verified, aside: &Path) -> Result<Imported> {
    let store = &forge.store;
    let (manifest, smalls) = contents(verified, None)?;
    let found = arrivals(&manifest, &smalls)?;
    check_clusters(&manifest)?;
    let before: Option<Journal> = read_json(&journal(aside))?;
    clear(forge, before.as_ref()).await?;
    let names: Vec<String> = manifest
        .machines
        .iter()
        .map(|item| item.name.clone())
        .collect();
    let _locks = acquire_all(
        store,
        &manifest.clusters,
        &names,
        forge.patience,
        &forge.events,
    )
    .await?;
    let again = before.is_some_and(|before| before.archive == manifest.id);
    let (coming, there) = new_here(store, found, again)?;
    let clusters = new_clusters(store, &manifest, &smalls, again)?;
    let disks = put_aside(verified, store, aside, &manifest, &coming)?;
    let strangers = settle(forge, &manifest, &smalls, aside, coming, &disks).await?;
    for cluster in &clusters {
        cluster.save(store)?;
    }
    Ok(Imported {
        machines: manifest
            .machines
            .iter()
            .filter(|item| !there.contains(&item.name))
            .map(|item| (item.name.clone(), item.disk.is_some()))
            .collect(),
        there,
        clusters: manifest.clusters.clone(),
        strangers,
    })
}

/// The machines of an import that was cut off and not gone on with: those that are not here yet, of which parts may be.
/// `None` while there is none, or one that is under way.
///
/// # Errors
/// What the file system reports.
pub fn cut_off(store: &Store) -> Result<Option<Vec<String>>> {
    let aside = store.root().join(FOLDER);
    if !aside.is_dir() || try_acquire(store, &Guarded::Imports)?.is_none() {
        return Ok(None);
    }
    let before: Option<Journal> = read_json(&journal(&aside))?;
    let mut missing = Vec::new();
    for begun in before.map(|before| before.machines).unwrap_or_default() {
        let here = Record::find(store, &begun.name);
        if !here.is_ok_and(|here| here.is_some_and(|here| here.claim == begun.claim)) {
            missing.push(begun.name);
        }
    }
    Ok(Some(missing))
}

/// What is said of an import that was cut off.
pub fn left_over(missing: &[String]) -> String {
    let machines = match missing {
        [] => String::new(),
        names => format!(" of {}", names.join(", ")),
    };
    format!("an import{machines} was cut off: what it had begun takes room, and is listed nowhere")
}

/// How one goes on with it.
pub const GO_ON: &str =
    "`forge import FILE` with the same file goes on; with another one it clears that away first";

/// Removes what an import that failed has made of machines that are not whole, and the disks that it put aside. Its journal
/// stays where machines came in: the same file goes on.
async fn undo(forge: &Forge, aside: &Path) -> Result<()> {
    let before: Option<Journal> = read_json(&journal(aside))?;
    let stays = clear(forge, before.as_ref()).await?;
    let Ok(entries) = fs::read_dir(aside) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if !stays || entry.file_name() != JOURNAL {
            store::remove_file(&entry.path())?;
        }
    }
    if !stays {
        atomic::gone(fs::remove_dir(aside), aside)?;
    }
    Ok(())
}

fn journal(aside: &Path) -> PathBuf {
    aside.join(JOURNAL)
}

type Disks = BTreeMap<Claim, PathBuf>;

/// All small files of an archive, and its disks where they are wanted.
fn contents(
    verified: &Verified,
    disk: Option<archive::TakeDisk<'_>>,
) -> Result<(Manifest, Smalls)> {
    let context =
        |error: Error| error.context(format!("failed to read `{}`", verified.path.display()));
    let opened = sealed(&verified.path)?
        .unlock(&verified.key)
        .map_err(context)?;
    archive::read(opened, disk).map_err(context)
}

/// Puts the disks of the machines that are to come aside, once there is room for them.
fn put_aside(
    verified: &Verified,
    store: &Store,
    aside: &Path,
    manifest: &Manifest,
    coming: &[Arrival],
) -> Result<Disks> {
    let wanted: BTreeSet<Claim> = coming
        .iter()
        .filter(|arrival| arrival.disk)
        .map(|arrival| arrival.record.claim)
        .collect();
    let mut disks = Disks::new();
    if wanted.is_empty() {
        return Ok(disks);
    }
    atomic::private_folder(aside)?;
    let sizes = manifest
        .machines
        .iter()
        .filter(|item| wanted.contains(&item.claim))
        .filter_map(|item| item.disk);
    room(store, sizes.fold(0, u64::saturating_add))?;
    let (same, _) = contents(
        verified,
        Some(&mut |claim, from| {
            if wanted.contains(&claim) {
                crate::fault::point("putting a disk aside");
                let path = aside.join(claim.to_string());
                put(&path, from)?;
                disks.insert(claim, path);
            }
            Ok(())
        }),
    )?;
    if same != *manifest {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "`{}` became another file while it was read",
                verified.path.display()
            ),
        ));
    }
    Ok(disks)
}

fn put(path: &Path, from: &mut dyn Read) -> Result<()> {
    let failed = || format!("failed to write `{}`", path.display());
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| atomic::full(error, &failed()))?;
    std::io::copy(&mut Interruptible::of(from), &mut file)
        .and_then(|_| file.sync_all())
        .map_err(|error| archive::unwrapped(error, &failed()))
}

/// Refuses disks that there is no room for.
fn room(store: &Store, bytes: u64) -> Result<()> {
    let Ok(found) = rustix::fs::statvfs(store.root()) else {
        return Ok(());
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "the disks in the file need {} MiB, and {} MiB are free in the store",
            bytes >> 20,
            free >> 20
        ),
    )
    .hint("free some space, or set FORGE_HOME to a folder where there is more"))
}

/// Removes what an earlier import began and did not end: machines without a record. One that somebody works on is that
/// command's own. Whether any stays.
async fn clear(forge: &Forge, before: Option<&Journal>) -> Result<bool> {
    let mut stays = false;
    for begun in before.map_or(&[][..], |before| &before.machines) {
        let guarded = Guarded::Machine(begun.name.clone());
        let Some(_lock) = try_acquire(&forge.store, &guarded)? else {
            stays = true;
            continue;
        };
        let found = Record::find(&forge.store, &begun.name)?;
        if found
            .as_ref()
            .is_some_and(|found| found.claim == begun.claim)
        {
            stays = true;
            continue;
        }
        if begun.disk {
            let driver = registry::open(forge, &begun.driver, &begun.config)?;
            driver.destroy(begun.claim).await?;
        } else {
            // The machine itself stays where it is: only what its driver was to remember of it goes.
            let folder = forge.store.driver_dir(&begun.driver);
            store::forget(&folder.join(begun.claim.to_string()), MACHINE)?;
        }
        if found.is_none() {
            store::forget(&forge.store.machine_dir(&begun.name), MACHINE)?;
        }
    }
    Ok(stays)
}

/// Brings the machines in. The names of those whose certificates are not of this store's authority.
async fn settle(
    forge: &Forge,
    manifest: &Manifest,
    smalls: &Smalls,
    aside: &Path,
    coming: Vec<Arrival>,
    disks: &Disks,
) -> Result<Vec<String>> {
    let store = &forge.store;
    let addresses = acquire(store, &Guarded::Addresses, forge.patience, &forge.events).await?;
    let mut taken = record::taken(store)?;
    let mut placed = Vec::new();
    for mut arrival in coming {
        place(store, &mut arrival, &taken).map_err(|error| refused(&arrival.record.name, error))?;
        taken.add(&arrival.record.placement, &arrival.record.published);
        placed.push(arrival);
    }
    for arrival in placed.iter().filter(|arrival| arrival.disk) {
        let driver = forge.driver(&arrival.record)?;
        let spec = spec(forge, arrival, disks)?;
        let name = &arrival.record.name;
        driver
            .check(&[spec])
            .await
            .map_err(|error| refused(name, error))?;
        let known = driver.list().await?;
        if let Some((claim, other)) = known
            .iter()
            .find(|(claim, _)| *claim == arrival.record.claim)
        {
            return Err(refused(
                name,
                Error::new(
                    Kind::Precheck,
                    format!("the provider has a machine `{other}` with the claim {claim} already"),
                ),
            ));
        }
    }
    atomic::private_folder(aside)?;
    let begun = |arrival: &Arrival| Begun {
        name: arrival.record.name.clone(),
        claim: arrival.record.claim,
        driver: arrival.record.driver.clone(),
        config: arrival.record.config.clone(),
        disk: arrival.disk,
    };
    let intent = Journal {
        archive: manifest.id,
        machines: placed.iter().map(begun).collect(),
    };
    write_json(&journal(aside), &intent)?;
    authority(forge, smalls).await?;
    let ours = ca::ensure(store, forge.patience, &forge.events).await?;
    let mut strangers = Vec::new();
    for arrival in placed {
        let name = arrival.record.name.clone();
        let tls = arrival.record.tls.as_ref();
        if !arrival.disk && tls.is_some_and(|tls| tls.authority != ours.fingerprint()) {
            strangers.push(name.clone());
        }
        let forge = forge.of(&name);
        enter(&forge, arrival, disks, &ours)
            .await
            .map_err(|error| error.context(format!("failed to import machine `{name}`")))?;
        forge.events.finished("imported", true).await;
    }
    drop(addresses);
    Ok(strangers)
}

fn refused(name: &str, error: Error) -> Error {
    error
        .of_kind(Kind::Precheck)
        .context(format!("machine `{name}` would not work here"))
}

/// Where the host reaches a machine. One that stays where it is keeps its place.
fn place(store: &Store, arrival: &mut Arrival, taken: &addresses::Taken) -> Result<()> {
    let record = &mut arrival.record;
    let there = record.placement.clone();
    if !arrival.disk {
        if let Some(nic) = &there.nic {
            addresses::join(store, &nic.network, taken)?;
        }
        return keeps(&there, taken);
    }
    record.placement = addresses::move_in(store, &there, taken)?;
    let mut taken = addresses::Taken {
        ports: taken.ports.clone(),
        ..addresses::Taken::default()
    };
    taken.add(&record.placement, &[]);
    let host = record
        .placement
        .loopback
        .unwrap_or(std::net::Ipv4Addr::LOCALHOST);
    let mut published: Vec<Forward> = Vec::new();
    for forward in &record.published {
        let at = addresses::published_at(host, forward, &taken)?;
        taken.ports.insert(at.host);
        published.push(at);
    }
    record.published = published;
    Ok(())
}

/// Refuses a place that a machine of this store has.
fn keeps(there: &Placement, taken: &addresses::Taken) -> Result<()> {
    let address = there.nic.as_ref().map(|nic: &Nic| nic.address);
    let both = address
        .filter(|address| taken.internal.contains(address))
        .or(there
            .loopback
            .filter(|address| taken.loopback.contains(address)));
    both.map_or(Ok(()), |address| {
        Err(Error::new(
            Kind::Precheck,
            format!("its address {address} belongs to another machine of this store"),
        )
        .hint("import it into a store of its own"))
    })
}

/// What the driver makes of the disk.
fn spec(forge: &Forge, arrival: &Arrival, disks: &Disks) -> Result<Spec> {
    let record = &arrival.record;
    let disk = disks.get(&record.claim).ok_or_else(|| {
        Error::new(
            Kind::Corrupt,
            format!("the disk of machine `{}` is not in the file", record.name),
        )
    })?;
    // An accelerator is tried with a kernel; that of any base image will do.
    let kernel = forge.images().any_kernel();
    Ok(Spec {
        claim: record.claim,
        name: record.name.clone(),
        image: BaseImage {
            disk: disk.clone(),
            kernel,
            size: 0,
        },
        seed: Seed {
            user_data: String::new(),
            meta_data: String::new(),
            network_config: String::new(),
        },
        nic: record.placement.nic.clone(),
        outer_mac: record.placement.outer_mac,
        forwards: record
            .placement
            .forwards()
            .into_iter()
            .chain(record.published.iter().copied())
            .collect(),
    })
}

/// A store that has no authority takes that of the file: the machines trust it, and no other.
async fn authority(forge: &Forge, smalls: &Smalls) -> Result<()> {
    let store = &forge.store;
    let _lock = acquire(store, &Guarded::Ca, forge.patience, &forge.events).await?;
    let folder = store.certs_dir();
    if folder.join("ca.pem").exists() {
        return Ok(());
    }
    let theirs = below(smalls, "certs/");
    for name in ["cert.pem", "key.pem", "ca-key.pem", "ca.pem"] {
        if let Some(file) = theirs.get(name) {
            write_file(&folder.join(name), &file.bytes, file.mode)?;
        }
    }
    Ok(())
}

/// Brings one machine in: its record is the last of it.
async fn enter(
    forge: &Forge,
    arrival: Arrival,
    disks: &Disks,
    authority: &ca::Authority,
) -> Result<()> {
    let store = &forge.store;
    let spec = if arrival.disk {
        Some(spec(forge, &arrival, disks)?)
    } else {
        None
    };
    let mut record = arrival.record;
    if let Some(imported) = &mut record.imported {
        // Its secrets stayed in the keyring or the sealed file that they are in.
        imported.secrets.values_mut().for_each(|kept| *kept = None);
    }
    let folder = store.machine_dir(&record.name);
    // Keys without a record are nobody's.
    store::forget(&folder, MACHINE)?;
    atomic::private_folder(&folder)?;
    put_all(&folder, &arrival.files)?;
    let Some(spec) = spec else {
        let folder = store
            .driver_dir(&record.driver)
            .join(record.claim.to_string());
        if !arrival.driver_files.is_empty() {
            atomic::private_folder(&store.driver_dir(&record.driver))?;
            atomic::private_folder(&folder)?;
            put_all(&folder, &arrival.driver_files)?;
        }
        return record.save(store);
    };
    forge.events.step("taking its disk in", "", None).await;
    let driver = forge.driver(&record)?;
    if let Some(nic) = &spec.nic {
        driver.ensure_shared(&nic.network).await?;
    }
    record.instance = Some(driver.unpack(&spec).await?);
    // Its address is another one now: it is given a certificate for it when it is started.
    let (record, papers) = renew::papers(forge, record, authority)?;
    if papers.fresh {
        return Ok(());
    }
    record.save(store)
}

fn put_all(folder: &Path, files: &BTreeMap<String, Small>) -> Result<()> {
    files
        .iter()
        .try_for_each(|(name, file)| write_file(&folder.join(name), &file.bytes, file.mode))
}
