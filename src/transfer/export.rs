//! Machines, or all that a store has, into one sealed file.
//!
//! The store that they are in stays as it is: nothing of it is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forge_driver::{Context, Error, Kind, Result, State, atomic};
use serde_json::Value;

use super::archive::{self, Item, Manifest, Smalls, WHAT, Writer, read_small};
use super::enters_by_key;
use crate::ca::rotation;
use crate::cluster::record::ClusterRecord;
use crate::machine::imported::Imported;
use crate::machine::{Forge, Record, companions, power, state};
use crate::registry::{self, Travel};
use crate::seal::Sealer;
use crate::secret::Secret;
use crate::store::Store;
use crate::store::lock::{Lock, acquire_all};

/// What is to be exported.
pub struct Wish {
    /// These machines; all where none are named.
    pub names: Vec<String>,
    /// Disks travel.
    pub with_disk: bool,
    /// The file that is made.
    pub out: PathBuf,
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    /// The machines, and whether their disks are among it.
    pub machines: Vec<(String, bool)>,
    /// The clusters.
    pub clusters: Vec<String>,
    /// Files that are not among it, and why.
    pub left: Vec<(PathBuf, String)>,
    /// The size of the file.
    pub bytes: u64,
}

/// What was chosen, and the locks that keep it as it is.
pub struct Chosen {
    machines: Vec<(Record, Travel)>,
    clusters: Vec<String>,
    _locks: Vec<Lock>,
}

/// Looks at what is to be exported, and says why it could not serve elsewhere. Asks for no passphrase.
///
/// # Errors
/// What keeps it from being exported, for all machines at once.
pub async fn choose(forge: &Forge, wish: &Wish) -> Result<Chosen> {
    let store = &forge.store;
    if rotation::under_way(store) {
        return Err(Error::new(
            Kind::Conflict,
            "the certificate authority of this store gives way to another",
        )
        .hint("`forge regenerate-certs --all` brings that to its end"));
    }
    if fs::symlink_metadata(&wish.out).is_ok() {
        return Err(
            Error::new(Kind::Exists, format!("`{}` exists", wish.out.display()))
                .hint("remove it, or choose another name"),
        );
    }
    let names = named(store, &wish.names)?;
    let clusters = clusters_of(store, &names)?;
    let locks = acquire_all(store, &clusters, &names, forge.patience, &forge.events).await?;
    if clusters_of(store, &names)? != clusters {
        return Err(Error::new(
            Kind::Conflict,
            "while the export waited for the machines, one of them came into a cluster or left it",
        )
        .hint("run the same command again"));
    }
    let mut machines = Vec::new();
    let mut refused = Vec::new();
    for name in &names {
        let record = Record::load(store, name)?;
        match travels(forge, &record, wish.with_disk).await {
            Ok(travel) => machines.push((record, travel)),
            Err(error) => refused.push(error),
        }
    }
    if let Some(error) = all_of(refused) {
        return Err(error);
    }
    whole_clusters(store, &machines)?;
    Ok(Chosen {
        machines,
        clusters,
        _locks: locks,
    })
}

/// Each machine once, sorted; all there are where none are named.
fn named(store: &Store, names: &[String]) -> Result<Vec<String>> {
    let mut chosen = BTreeSet::new();
    if names.is_empty() {
        for (name, record) in Record::all(store)? {
            record
                .map_err(|error| error.context(format!("machine `{name}` cannot be exported")))?;
            chosen.insert(name);
        }
    }
    for name in names {
        Record::load(store, name)?;
        chosen.insert(name.clone());
    }
    if chosen.is_empty() {
        return Err(Error::new(Kind::NotFound, "there is no machine to export"));
    }
    Ok(chosen.into_iter().collect())
}

/// The clusters of these machines.
fn clusters_of(store: &Store, names: &[String]) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for name in names {
        found.extend(
            Record::load(store, name)?
                .member
                .map(|member| member.cluster),
        );
    }
    Ok(found.into_iter().collect())
}

/// One error of several.
fn all_of(errors: Vec<Error>) -> Option<Error> {
    if errors.len() < 2 {
        return errors.into_iter().next();
    }
    let first = errors.first()?;
    let lines: Vec<String> = errors.iter().map(Error::line).collect();
    let all = Error::new(
        first.kind(),
        format!("{} machines cannot be exported", errors.len()),
    )
    .because(lines.join("; "));
    Some(match first.deepest_hint() {
        Some(hint) => all.hint(hint),
        None => all,
    })
}

/// What of a machine travels.
async fn travels(forge: &Forge, record: &Record, with_disk: bool) -> Result<Travel> {
    let name = &record.name;
    power::whole(record)?;
    if record.renewing.is_some() {
        return Err(Error::new(
            Kind::Conflict,
            format!("machine `{name}` is being given a new certificate"),
        )
        .hint(format!("`forge provision {name}` goes on with that")));
    }
    let travel = (registry::find(&record.driver)?.travel)(&record.config)?;
    let of_virtualbox = |imported: &Imported| imported.driver == "virtualbox";
    let travel = match travel {
        // Its import found no VirtualBox that knows it; it is one all the same.
        Travel::Records if record.imported.as_ref().is_some_and(of_virtualbox) => {
            Travel::Never("it is a machine of the VirtualBox on this host")
        }
        travel => travel,
    };
    match &travel {
        Travel::Records => {}
        Travel::Never(why) => {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "machine `{name}` of the driver `{}` would not work elsewhere",
                    record.driver
                ),
            )
            .because(*why));
        }
        Travel::Disk if !with_disk => {
            return Err(Error::new(
                Kind::Refused,
                format!("machine `{name}` would not work elsewhere: its disk lies in this store"),
            )
            .hint("`--with-disk` takes disks along"));
        }
        Travel::Disk => {
            let driver = forge.driver(record)?;
            let now = state(&*driver, record).await?;
            if now != State::Stopped {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "machine `{name}` is not stopped but {}: its disk would change while it is copied",
                        now.to_string().to_lowercase()
                    ),
                )
                .hint(format!("`forge stop {name}` shuts it down")));
            }
        }
    }
    Ok(travel)
}

/// Refuses a part of a cluster: its managers know each other by their addresses, and would go on without the rest.
fn whole_clusters(store: &Store, machines: &[(Record, Travel)]) -> Result<()> {
    let names: BTreeSet<&str> = machines.iter().map(|(record, _)| &*record.name).collect();
    let mut by_cluster: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, other) in Record::all(store)? {
        let Ok(other) = other else { continue };
        if let Some(member) = other.member
            && !names.contains(&*other.name)
        {
            by_cluster
                .entry(member.cluster)
                .or_default()
                .push(other.name);
        }
    }
    for (record, _) in machines {
        let Some(member) = &record.member else {
            continue;
        };
        let cluster = member.cluster.parse()?;
        if ClusterRecord::load(store, &cluster)?.leaving {
            return Err(Error::new(
                Kind::Conflict,
                format!("the removal of cluster `{cluster}` has begun and did not end"),
            )
            .hint(format!("`forge cluster down {cluster}` goes on with it")));
        }
        if let Some(missing) = by_cluster.get(&member.cluster) {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "the machines of cluster `{cluster}` travel together, and these are not named: {}",
                    missing.join(", ")
                ),
            )
            .hint("name them as well, or take `--all`"));
        }
    }
    Ok(())
}

/// Writes the file: aside, then renamed.
///
/// # Errors
/// What the drivers and the file system report; there is no file then.
pub async fn write(
    forge: &Forge,
    wish: &Wish,
    chosen: Chosen,
    passphrase: &Secret,
) -> Result<Exported> {
    let mut disks = Disks::new();
    let packed = pack(forge, &chosen, &mut disks).await;
    let done = packed.and_then(|()| written(forge, wish, &chosen, &disks, passphrase));
    for disk in disks.values() {
        // A copy that stays takes room and nothing else: the next export writes over it, and `rm` removes it.
        let _ = fs::remove_file(disk);
    }
    done
}

/// Copies of disks, by machine.
type Disks = BTreeMap<String, PathBuf>;

/// Copies the disks, each beside the one that it is read from.
async fn pack(forge: &Forge, chosen: &Chosen, disks: &mut Disks) -> Result<()> {
    for (record, travel) in &chosen.machines {
        if *travel != Travel::Disk {
            continue;
        }
        let name = &record.name;
        let forge = forge.of(name);
        forge.events.step("copying its disk", "", None).await;
        let packed = forge.driver(record)?.pack(record.claim).await;
        let packed = packed.map_err(|error| {
            error.context(format!("failed to copy the disk of machine `{name}`"))
        })?;
        disks.insert(name.clone(), packed);
    }
    Ok(())
}

fn written(
    forge: &Forge,
    wish: &Wish,
    chosen: &Chosen,
    disks: &Disks,
    passphrase: &Secret,
) -> Result<Exported> {
    let failed = || format!("failed to write `{}`", wish.out.display());
    let mut items = Vec::new();
    for (record, _) in &chosen.machines {
        let size = match disks.get(&record.name) {
            Some(path) => Some(fs::metadata(path).or_fail(Kind::Io, failed)?.len()),
            None => None,
        };
        items.push(Item {
            name: record.name.clone(),
            claim: record.claim,
            disk: size,
        });
    }
    let manifest = Manifest::new(forge.store.id(), items, chosen.clusters.clone());
    let folder = match wish.out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".new-export-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .map_err(|error| atomic::full(error, &failed()))?;
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut left = Vec::new();
    let smalls = smalls(&forge.store, chosen, &mut left)?;
    let mut writer = Writer::new(Sealer::new(out, WHAT, &Value::Null, passphrase)?, &manifest)?;
    for (path, small) in smalls {
        writer.small(&path, &small)?;
    }
    for item in &manifest.machines {
        if let (Some(size), Some(path)) = (item.disk, disks.get(&item.name)) {
            let disk = File::open(path).or_fail(Kind::Io, failed)?;
            writer.disk(item.claim, size, disk)?;
        }
    }
    let file = writer
        .finish()?
        .into_inner()
        .map_err(|error| atomic::full(error.into_error(), &failed()))?;
    file.as_file()
        .sync_all()
        .map_err(|error| atomic::full(error, &failed()))?;
    let bytes = file.as_file().metadata().or_fail(Kind::Io, failed)?.len();
    crate::fault::point("before the export appears");
    file.persist_noclobber(&wish.out)
        .map_err(|error| atomic::full(error.error, &failed()))?;
    atomic::sync_folder(folder)?;
    Ok(Exported {
        machines: manifest
            .machines
            .iter()
            .map(|item| (item.name.clone(), item.disk.is_some()))
            .collect(),
        clusters: manifest.clusters,
        left,
        bytes,
    })
}

/// The small files of an export, and those that are left out.
fn smalls(store: &Store, chosen: &Chosen, left: &mut Left) -> Result<Smalls> {
    let mut smalls = Smalls::new();
    for name in ["ca.pem", "ca-key.pem", "cert.pem", "key.pem"] {
        let path = store.certs_dir().join(name);
        if path.exists() {
            smalls.insert(format!("certs/{name}"), read_small(&path)?);
        }
    }
    for (record, travel) in &chosen.machines {
        let name = &record.name;
        let under = format!("machines/{name}");
        let theirs = |file: &str| !companions::is_one(file, record);
        add(&mut smalls, left, &under, &store.machine_dir(name), theirs)?;
        whole(&smalls, &under, record)?;
        if *travel == Travel::Records {
            let (driver, claim) = (&record.driver, record.claim.to_string());
            let folder = store.driver_dir(driver).join(&claim);
            let under = format!("drivers/{driver}/{claim}");
            add(&mut smalls, left, &under, &folder, |_| true)?;
        }
    }
    for name in &chosen.clusters {
        let under = format!("clusters/{name}");
        add(&mut smalls, left, &under, &store.cluster_dir(name), |_| {
            true
        })?;
    }
    Ok(smalls)
}

/// Refuses a machine whose key is not among its files: nobody would enter it elsewhere, and no import takes it.
fn whole(smalls: &Smalls, under: &str, record: &Record) -> Result<()> {
    if !enters_by_key(record) || smalls.contains_key(&format!("{under}/{}", record.ssh.key)) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("machine `{}` would not work elsewhere", record.name),
    )
    .because(format!("its SSH key `{}` is not there", record.ssh.key)))
}

/// What a driver may remember of a machine in one file.
const LARGEST: u64 = 4 << 20;

/// Files that do not travel, and why.
type Left = Vec<(PathBuf, String)>;

/// The files of a folder that are wanted; none where there is no folder. Sockets, locks, logs, folders and what is on its way
/// are no part of it; what else is left out is told.
fn add(
    smalls: &mut Smalls,
    left: &mut Left,
    under: &str,
    folder: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let failed = || format!("failed to list `{}`", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).or_fail(Kind::Io, failed),
    };
    for entry in entries {
        let entry = entry.or_fail(Kind::Io, failed)?;
        let found = fs::symlink_metadata(entry.path()).or_fail(Kind::Io, failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let passing = name.starts_with('.') || name.ends_with(".lock") || name.ends_with(".log");
        if passing || !(found.is_file() || found.is_symlink()) || !wanted(&name) {
            continue;
        }
        let path = format!("{under}/{name}");
        let why = if found.is_symlink() {
            "is a link".to_owned()
        } else if found.len() > LARGEST {
            format!("is larger than {} MiB", LARGEST >> 20)
        } else if entry.file_name().to_str().is_none() || !archive::plain(&path) {
            archive::ODD.to_owned()
        } else {
            smalls.insert(path, read_small(&entry.path())?);
            continue;
        };
        left.push((entry.path(), why));
    }
    left.sort();
    Ok(())
}
