//! `cluster up`: looked at, planned, then brought about.
//!
//! The acting is in [`super::forming`].

use std::collections::BTreeMap;

use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::forming::Forming;
use super::look::{Seen, look, place_of};
use super::node::Node;
use super::plan::{Plan, plan};
use super::pool;
use super::record::{ClusterRecord, members};
use super::spec::ClusterSpec;
use super::zones::{Place, Role, Zone};
use crate::engine_options::EngineOptions;
use crate::machine::create::{self, Wish};
use crate::machine::{Forge, Member, Record};
use crate::registry::{self, Site};
use crate::store::addresses;
use crate::store::lock::{Guarded, acquire, acquire_machines};

/// What a user wishes.
#[derive(Clone, Debug)]
pub struct Request {
    /// The cluster.
    pub spec: ClusterSpec,
    /// The driver of its machines.
    pub driver: &'static str,
    /// The driver's resolved configuration.
    pub config: Value,
    /// Where each value of it came from.
    pub origins: BTreeMap<String, String>,
    /// The id of the base image.
    pub image: String,
    /// The range between the machines.
    pub network: Option<Ipv4Net>,
    /// The hosts of the zones, as the driver's configuration names them.
    pub sites: Vec<Site>,
    /// What the engines of machines that are made are told.
    pub engine: EngineOptions,
    /// What their certificates carry besides their own names.
    pub sans: Vec<String>,
    /// What this command says of engines and certificates: machines that are there have to have been told it.
    pub said: (EngineOptions, Vec<String>),
}

impl Request {
    /// The host of a zone, where the configuration names one.
    fn site(&self, zone: Zone) -> Option<&Site> {
        match self.sites.as_slice() {
            [one] => Some(one),
            many => many.get(usize::try_from(zone.0).ok()?.checked_sub(1)?),
        }
    }

    /// What a machine in this zone is made with.
    fn config(&self, zone: Zone) -> &Value {
        self.site(zone).map_or(&self.config, |site| &site.config)
    }

    /// The names of the hosts.
    fn hosts(&self) -> Vec<String> {
        self.sites.iter().map(|site| site.at.clone()).collect()
    }

    /// The ranges between the machines.
    fn networks(&self) -> Vec<Ipv4Net> {
        match self.sites.as_slice() {
            [] => self.network.into_iter().collect(),
            sites => sites.iter().filter_map(|site| site.network).collect(),
        }
    }
}

/// What `up` came to.
#[derive(Clone, Debug, Serialize)]
pub struct Formed {
    /// The swarm's own id.
    pub cluster_id: String,
    /// How many things were changed.
    pub changed: usize,
    /// The nodes, as the managers list them.
    pub nodes: Vec<Node>,
}

/// Plans without touching anything.
///
/// # Errors
/// When the wish makes no sense, or what is there cannot be read.
pub async fn dry_run(forge: &Forge, request: &Request) -> Result<Plan> {
    check_room(request)?;
    let record = ClusterRecord::find(&forge.store, &request.spec.name)?;
    let mut seen = look(forge, &request.spec.name, record.as_ref()).await?;
    seen.asked()?;
    seen.observed.hosts = request.hosts();
    same_hosts(request, &seen)?;
    same_engines(request, &seen)?;
    let plan = plan(
        &request.spec,
        &seen.observed,
        pool_for(request, record.as_ref())?,
    )?;
    let places = request.spec.places(&existing(forge, request)?)?;
    let fresh = fresh(forge, request, &places.nodes, &seen)?;
    let fresh: Vec<Zone> = fresh
        .iter()
        .filter_map(|wish| Some(wish.member.as_ref()?.zone))
        .collect();
    if !fresh.is_empty() {
        check_hosts(forge, request, &fresh).await?;
    }
    Ok(plan)
}

/// What can be said of each host before there is an image to make machines in these zones from.
///
/// # Errors
/// What the driver's pre-check says.
pub async fn check_hosts(forge: &Forge, request: &Request, fresh: &[Zone]) -> Result<()> {
    if request.sites.is_empty() {
        return create::check_host(forge, request.driver, &request.config, fresh.len()).await;
    }
    for site in &request.sites {
        let here = fresh.iter().filter(|zone| {
            request
                .site(**zone)
                .is_some_and(|other| other.at == site.at)
        });
        let count = here.count();
        if count > 0 {
            create::check_host(forge, request.driver, &site.config, count).await?;
        }
    }
    check_together(forge, request).await
}

/// The hosts go together: what a driver can tell of all of them at once.
async fn check_together(forge: &Forge, request: &Request) -> Result<()> {
    if request.sites.len() < 2 {
        return Ok(());
    }
    let driver = registry::open(forge, request.driver, &request.config)?;
    driver.check(&[]).await
}

/// Machines stay where they are: a zone that has machines keeps its host.
fn same_hosts(request: &Request, seen: &Seen) -> Result<()> {
    let entry = registry::find(request.driver)?;
    for record in seen.records.values() {
        let Some(zone) = place_of(record).map(|place| place.zone) else {
            continue;
        };
        if record.driver != request.driver {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "machine `{}` of the cluster is one of the driver `{}`, and `{}` is asked for",
                    record.name, record.driver, request.driver
                ),
            )
            .because("machines of two drivers have no network in common")
            .hint("leave out `--driver` and the other driver's options, or `forge cluster down` first"));
        }
        let was = (entry.sites)(&record.config)?.into_iter().next();
        let (Some(was), Some(now)) = (was, request.site(zone)) else {
            continue;
        };
        if was.at != now.at {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "machine `{}` of zone `{zone}` is at `{}`, and the zone would be at `{}`",
                    record.name, was.at, now.at
                ),
            )
            .hint("machines stay where they are: name the hosts as before, or remove that machine first"));
        }
    }
    Ok(())
}

/// Machines that are there keep what their engines were told: to tell it is a restart of each, one after another.
fn same_engines(request: &Request, seen: &Seen) -> Result<()> {
    let (engine, sans) = &request.said;
    let told = |record: &&Record| {
        let as_said = record.engine.clone().with(engine) == record.engine;
        as_said && sans.iter().all(|name| record.sans.contains(name))
    };
    let others: Vec<&str> = seen
        .records
        .values()
        .filter(|record| !told(record))
        .map(|record| record.name.as_str())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!(
            "other options of engines are wished than these machines of cluster `{}` were made with: {}",
            request.spec.name,
            others.join(", ")
        ),
    )
    .because("their engines would be restarted, and `cluster up` changes nothing that is there")
    .hint(format!(
        "`forge provision {}` with these options tells them, one after another; then this command goes on",
        others.join(" ")
    )))
}

/// The machines that are still to be made.
///
/// # Errors
/// [`Kind::Exists`] when one of their names is taken by a machine that is not the cluster's.
fn fresh(forge: &Forge, request: &Request, places: &[Place], seen: &Seen) -> Result<Vec<Wish>> {
    let fresh: Vec<Wish> = places
        .iter()
        .map(|place| wish(request, *place))
        .filter(|wish| !seen.records.contains_key(&wish.name))
        .collect();
    for wish in &fresh {
        if Record::find(&forge.store, &wish.name)?.is_some() {
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "machine `{}` exists and is not part of cluster `{}`",
                    wish.name, request.spec.name
                ),
            )
            .hint("give the cluster another name, or remove that machine first"));
        }
    }
    Ok(fresh)
}

/// The plan for a cluster that no store knows yet.
///
/// # Errors
/// When the wish makes no sense.
pub fn first_plan(request: &Request) -> Result<Plan> {
    check_room(request)?;
    let observed = super::plan::Observed {
        hosts: request.hosts(),
        ..Default::default()
    };
    plan(&request.spec, &observed, pool_for(request, None)?)
}

/// Refuses more machines than the network between them could ever have addresses for.
fn check_room(request: &Request) -> Result<()> {
    let places = request.spec.check()?.nodes;
    for network in request.networks() {
        let here = |place: &&Place| match request.site(place.zone) {
            Some(site) => site.network == Some(network),
            None => true,
        };
        let wished = places.iter().filter(here).count();
        let room = addresses::capacity(network);
        if wished > room {
            return Err(Error::new(
                Kind::Usage,
                format!("{wished} machines do not fit into the network {network}, which has room for {room}"),
            )
            .hint("ask for fewer machines, or choose a larger range; the driver's options are in `forge cluster up --driver NAME --help`"));
        }
    }
    Ok(())
}

/// Where overlay networks are taken from: as recorded, as wished, or the first free range.
fn pool_for(request: &Request, record: Option<&ClusterRecord>) -> Result<Ipv4Net> {
    if let Some(record) = record {
        return match request.spec.address_pool {
            Some(wished) if wished != record.pool => Err(Error::new(
                Kind::Usage,
                format!(
                    "cluster `{}` was founded with the address pool {} and cannot change to {wished}",
                    request.spec.name, record.pool
                ),
            )),
            _ => Ok(record.pool),
        };
    }
    let mut taken = pool::host_networks()?;
    taken.extend(pool::GUEST_NETWORKS);
    taken.extend(request.networks());
    match request.spec.address_pool {
        Some(wished) => pool::check(wished, &taken),
        None => pool::choose(&taken),
    }
}

/// Brings the cluster up: what is missing is made, what is there stays. `told` hears the plan before
/// anything is touched.
///
/// # Errors
/// The first thing that failed on each machine; everything done is saved, and the same command goes on.
pub async fn up(
    forge: &Forge,
    request: &Request,
    told: &(dyn Fn(&Plan) + Send + Sync),
) -> Result<Formed> {
    let name = &request.spec.name;
    let _cluster = acquire(
        &forge.store,
        &Guarded::Cluster(name.to_string()),
        forge.patience,
        &forge.events,
    )
    .await?;
    let found = ClusterRecord::find(&forge.store, name)?;
    if let Some(record) = &found
        && record.leaving
    {
        return Err(Error::new(
            Kind::Conflict,
            format!("the removal of cluster `{name}` has begun and did not end"),
        )
        .hint(format!("`forge cluster down {name}` goes on with it")));
    }
    check_room(request)?;
    let pool = pool_for(request, found.as_ref())?;
    forge.events.step("looking", "", None).await;
    let places = request.spec.places(&existing(forge, request)?)?;
    let names: Vec<String> = places
        .nodes
        .iter()
        .map(|place| request.spec.machine(*place))
        .collect();
    // Members that are not wished any more stay, and have to know the newcomers.
    let mut locked = names.clone();
    locked.extend(
        members(&forge.store, name)?
            .into_iter()
            .map(|record| record.name),
    );
    let _machines = acquire_machines(&forge.store, &locked, forge.patience, &forge.events).await?;
    let mut seen = look(forge, name, found.as_ref()).await?;
    seen.asked()?;
    seen.observed.hosts = request.hosts();
    same_hosts(request, &seen)?;
    same_engines(request, &seen)?;
    if let Some(leaving) = seen.records.values().find(|record| record.leaving) {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "the removal of machine `{}` has begun and did not end",
                leaving.name
            ),
        )
        .hint(format!("`forge rm -f {}` goes on with it", leaving.name)));
    }
    let plan = plan(&request.spec, &seen.observed, pool)?;
    told(&plan);
    for warning in &plan.warnings {
        forge.events.warning(warning.clone()).await;
    }
    let wishes: Vec<(Place, Wish)> = places
        .nodes
        .iter()
        .map(|place| (*place, wish(request, *place)))
        .collect();
    let fresh = fresh(forge, request, &places.nodes, &seen)?;
    create::check(forge, &fresh).await?;
    if !fresh.is_empty() {
        check_together(forge, request).await?;
    }
    let record = ClusterRecord {
        spec: request.spec.clone(),
        driver: request.driver.to_owned(),
        config: request.config.clone(),
        origins: request.origins.clone(),
        image: request.image.clone(),
        engine: request.engine.clone(),
        sans: request.sans.clone(),
        ..found.unwrap_or_else(|| ClusterRecord {
            spec: request.spec.clone(),
            created: Timestamp::now(),
            driver: String::new(),
            config: Value::Null,
            origins: BTreeMap::new(),
            image: String::new(),
            engine: EngineOptions::default(),
            sans: Vec::new(),
            pool,
            founder: None,
            cluster_id: None,
            unsettled: false,
            renewing: None,
            leaving: false,
        })
    };
    record.save(&forge.store)?;
    let mut machines = Vec::new();
    for (place, wish) in &wishes {
        // What the engine of one that is there was told is judged already, and stays.
        let mut wish = wish.clone();
        if let Some(record) = seen.records.get(&wish.name) {
            wish.engine = record.engine.clone();
            wish.sans.clone_from(&record.sans);
        }
        machines.push((*place, create::claim(forge, &wish).await?));
    }
    Forming::new(forge, record, &plan, &seen, names.into_iter().collect())
        .run(machines)
        .await
}

fn existing(forge: &Forge, request: &Request) -> Result<Vec<Place>> {
    let spec = &request.spec;
    Ok(members(&forge.store, &spec.name)?
        .iter()
        .filter_map(place_of)
        .filter(|place| {
            place.index
                <= match place.role {
                    Role::Manager => spec.managers,
                    Role::Worker => spec.workers,
                }
        })
        .collect())
}

fn wish(request: &Request, place: Place) -> Wish {
    Wish {
        name: request.spec.machine(place),
        driver: request.driver,
        config: request.config(place.zone).clone(),
        origins: request.origins.clone(),
        image: request.image.clone(),
        publish: Vec::new(),
        engine: request.engine.clone(),
        sans: request.sans.clone(),
        adopting: None,
        member: Some(Member {
            cluster: request.spec.name.to_string(),
            role: place.role,
            zone: place.zone,
        }),
    }
}
