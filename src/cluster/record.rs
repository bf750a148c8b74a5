//! What is remembered of one cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use forge_driver::{Claim, Error, Kind, Result, atomic};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::renew::Renewing;
use super::spec::{ClusterName, ClusterSpec};
use crate::engine_options::EngineOptions;
use crate::machine::Record;
use crate::store::{self, Store, read_json, write_json};

/// `clusters/<name>/cluster.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// What is wished.
    pub spec: ClusterSpec,
    /// When it was wished first.
    pub created: Timestamp,
    /// The driver of its machines.
    pub driver: String,
    /// The driver's resolved configuration.
    pub config: Value,
    /// Where each value of it came from.
    pub origins: BTreeMap<String, String>,
    /// The id of the base image of its machines.
    pub image: String,
    /// What the engines of machines that are made for it are told.
    #[serde(default)]
    pub engine: EngineOptions,
    /// What the certificates of these machines carry besides their own names.
    #[serde(default)]
    pub sans: Vec<String>,
    /// Where its overlay networks are taken from: fixed when it is founded.
    pub pool: Ipv4Net,
    /// The machine that it is founded on; saved before it is founded.
    pub founder: Option<Claim>,
    /// The swarm's own id; saved as soon as it is known, and never expected to change.
    pub cluster_id: Option<String>,
    /// Machines were joining: tokens are to be replaced and published ports to be probed. Saved before
    /// the first join.
    #[serde(default)]
    pub unsettled: bool,
    /// A node is drained while its machine's certificate is made anew: what is to be put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewing: Option<Renewing>,
    /// Its removal has begun: it can only go on.
    #[serde(default)]
    pub leaving: bool,
}

impl ClusterRecord {
    /// The record of this cluster; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read as what it should be.
    pub fn find(store: &Store, name: &ClusterName) -> Result<Option<Self>> {
        read_json(&path(store, name)).map_err(|error| {
            if error.kind() == Kind::Corrupt {
                error.hint(format!("put the file back from a backup; `forge cluster down -f {name}` removes the cluster and all machines that carry its name"))
            } else {
                error
            }
        })
    }

    /// The record of this cluster.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none.
    pub fn load(store: &Store, name: &ClusterName) -> Result<Self> {
        Self::find(store, name)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("cluster `{name}` does not exist"))
                .hint("`forge cluster ls` shows the clusters; `forge cluster up` makes one")
        })
    }

    /// All clusters, sorted by name, each with what went wrong reading it.
    ///
    /// # Errors
    /// When the folder of the clusters cannot be listed.
    pub fn all(store: &Store) -> Result<Vec<(String, Result<Self>)>> {
        let mut found = Vec::new();
        for name in store.names("clusters")? {
            match read_json(&store.cluster_dir(&name).join("cluster.json")) {
                Ok(Some(record)) => found.push((name, Ok(record))),
                Ok(None) => {}
                Err(error) => found.push((name, Err(error))),
            }
        }
        Ok(found)
    }

    /// Saves this record. The caller holds the cluster's lock.
    ///
    /// # Errors
    /// What the file system reports; the old record is then untouched.
    pub fn save(&self, store: &Store) -> Result<()> {
        atomic::private_folder(&store.cluster_dir(self.spec.name.as_str()))?;
        write_json(&path(store, &self.spec.name), self)
    }
}

/// Removes the record of a cluster, damaged though it may be, last of all that there is of the cluster.
///
/// # Errors
/// What the file system reports.
pub fn forget(store: &Store, name: &ClusterName) -> Result<()> {
    store::forget(&store.cluster_dir(name.as_str()), "cluster.json")
}

fn path(store: &Store, name: &ClusterName) -> PathBuf {
    store.cluster_dir(name.as_str()).join("cluster.json")
}

/// The machines of a cluster, sorted by name.
///
/// # Errors
/// When the record of one that carries the cluster's name cannot be read.
pub fn members(store: &Store, name: &ClusterName) -> Result<Vec<Record>> {
    let mut members = Vec::new();
    for (machine, record) in Record::all(store)? {
        match record {
            Ok(record)
                if record
                    .member
                    .as_ref()
                    .is_some_and(|member| member.cluster == name.as_str()) =>
            {
                members.push(record);
            }
            Ok(_) => {}
            Err(error) if name.parse_machine(&machine).is_some() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(members)
}

/// The addresses that cluster traffic of this machine comes from: those of all machines of its cluster.
///
/// # Errors
/// When the record of another machine cannot be read.
pub fn peers(store: &Store, record: &Record) -> Result<Vec<IpAddr>> {
    let Some(member) = &record.member else {
        return Ok(Vec::new());
    };
    Ok(addresses(&members(store, &member.cluster.parse()?)?))
}

/// The addresses of machines on the network between them.
pub fn addresses(members: &[Record]) -> Vec<IpAddr> {
    members
        .iter()
        .filter(|record| !record.leaving)
        .filter_map(|record| record.address().map(Into::into))
        .collect()
}
