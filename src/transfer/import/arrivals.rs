//! What is in a file, and whether all of it can come into a store: looked at before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use forge_driver::{Error, Kind, Result};

use crate::cluster::record::ClusterRecord;
use crate::cluster::spec::ClusterName;
use crate::machine::{Record, Stage, companions, record};
use crate::registry::{self, Travel};
use crate::store::{self, Store};
use crate::transfer::archive::{Manifest, Small, Smalls};
use crate::transfer::enters_by_key;

/// The records' file names.
pub(super) const MACHINE: &str = "machine.json";
const CLUSTER: &str = "cluster.json";

/// One machine of a file.
pub(super) struct Arrival {
    pub(super) record: Record,
    pub(super) files: BTreeMap<String, Small>,
    pub(super) driver_files: BTreeMap<String, Small>,
    pub(super) disk: bool,
}

/// The machines of a file, each checked to be what the manifest says.
pub(super) fn arrivals(manifest: &Manifest, smalls: &Smalls) -> Result<Vec<Arrival>> {
    let strange = |why: String| {
        Error::new(Kind::Corrupt, "the archive is not what it should be").because(why)
    };
    let mut found: Vec<Arrival> = Vec::new();
    let mut seen = BTreeSet::new();
    for item in &manifest.machines {
        let name = &item.name;
        if !record::valid_name(name) || !seen.insert(name.clone()) {
            return Err(strange(format!(
                "`{}` names no machine",
                name.escape_debug()
            )));
        }
        let mut files = below(smalls, &format!("machines/{name}/"));
        let text = files
            .remove(MACHINE)
            .ok_or_else(|| strange(format!("machine `{name}` has no record")))?;
        let record: Record = store::parse(
            Path::new(&format!("machines/{name}/{MACHINE}")),
            &text.bytes,
        )?;
        let travel = (registry::find(&record.driver)?.travel)(&record.config)?;
        let as_said = record.name == *name
            && record.claim == item.claim
            && record.stage == Stage::Ready
            && !record.leaving
            && !record.ssh.key.contains('/')
            // A machine that stays where it is may have no SSH.
            && (item.disk.is_none() && !enters_by_key(&record)
                || files.contains_key(&record.ssh.key))
            && (travel == Travel::Disk) == item.disk.is_some()
            && !matches!(travel, Travel::Never(_));
        if !as_said {
            return Err(strange(format!(
                "the record of machine `{name}` is not the one that was exported"
            )));
        }
        files.retain(|file, _| !companions::is_one(file, &record));
        let driver_files = below(
            smalls,
            &format!("drivers/{}/{}/", record.driver, record.claim),
        );
        found.push(Arrival {
            record,
            files,
            driver_files,
            disk: item.disk.is_some(),
        });
    }
    if found.is_empty() {
        return Err(strange("there is no machine in it".to_owned()));
    }
    Ok(found)
}

/// The files directly below a folder, by name.
pub(super) fn below(smalls: &Smalls, folder: &str) -> BTreeMap<String, Small> {
    smalls
        .iter()
        .filter_map(|(path, small)| Some((path.strip_prefix(folder)?, small)))
        .filter(|(name, _)| !name.contains('/'))
        .map(|(name, small)| (name.to_owned(), small.clone()))
        .collect()
}

/// The machines that are to come, and the names of those that an earlier attempt has brought.
pub(super) fn new_here(
    store: &Store,
    arrivals: Vec<Arrival>,
    again: bool,
) -> Result<(Vec<Arrival>, Vec<String>)> {
    let here = Record::all(store)?;
    let (mut coming, mut there, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for arrival in arrivals {
        let name = &arrival.record.name;
        let claim = arrival.record.claim;
        let same = here.iter().find(|(other, _)| other == name);
        let twin = here
            .iter()
            .find(|(_, other)| other.as_ref().is_ok_and(|other| other.claim == claim));
        match (same, twin) {
            (None, None) => coming.push(arrival),
            (Some((_, Ok(other))), _) if again && other.claim == claim => there.push(name.clone()),
            (Some(_), _) => taken.push(format!("`{name}`")),
            (None, Some((other, _))) => taken.push(format!("`{name}` (here it is `{other}`)")),
        }
    }
    if taken.is_empty() {
        return Ok((coming, there));
    }
    Err(Error::new(
        Kind::Precheck,
        format!("machines of these names are in this store already: {}", taken.join(", ")),
    )
    .hint("import into another store: `forge --storage-path DIR import FILE`; or remove them here first"))
}

/// Refuses names that are none of clusters, or are there twice, before they are locked.
pub(super) fn check_clusters(manifest: &Manifest) -> Result<()> {
    let mut seen = BTreeSet::new();
    let odd = manifest
        .clusters
        .iter()
        .find(|name| name.parse::<ClusterName>().is_err() || !seen.insert(*name));
    odd.map_or(Ok(()), |name| {
        Err(
            Error::new(Kind::Corrupt, "the archive is not what it should be")
                .because(format!("`{}` names no cluster", name.escape_debug())),
        )
    })
}

/// The clusters of a file, none of which is here, but for those of an earlier attempt.
pub(super) fn new_clusters(
    store: &Store,
    manifest: &Manifest,
    smalls: &Smalls,
    again: bool,
) -> Result<Vec<ClusterRecord>> {
    let mut found = Vec::new();
    for name in &manifest.clusters {
        let path = format!("clusters/{name}/{CLUSTER}");
        let text = smalls.get(&path).ok_or_else(|| {
            Error::new(Kind::Corrupt, "the archive is not what it should be")
                .because(format!("cluster `{}` has no record", name.escape_debug()))
        })?;
        let cluster: ClusterRecord = store::parse(Path::new(&path), &text.bytes)?;
        if cluster.spec.name.as_str() != name {
            return Err(
                Error::new(Kind::Corrupt, "the archive is not what it should be")
                    .because(format!("the record of cluster `{name}` is another's")),
            );
        }
        match ClusterRecord::find(store, &cluster.spec.name)? {
            Some(there) if again && there.cluster_id == cluster.cluster_id => {}
            Some(_) => {
                return Err(Error::new(
                    Kind::Precheck,
                    format!("a cluster `{name}` is in this store already"),
                )
                .hint("import into another store: `forge --storage-path DIR import FILE`"));
            }
            None => found.push(cluster),
        }
    }
    Ok(found)
}
