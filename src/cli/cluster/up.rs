//! `forge cluster up`

use clap::{ArgMatches, Args};
use forge::cluster::plan::Plan;
use forge::cluster::record::ClusterRecord;
use forge::cluster::spec::ClusterSpec;
use forge::cluster::up::{self, Formed, Request};
use forge::cluster::zones::Zone;
use forge::engine::settings;
use forge::engine_options::EngineOptions;
use forge::event::Events;
use forge::registry;
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;
use serde_json::json;

use super::super::create::Choice;
use super::super::{Outcome, Session, engine, image, report};
use super::Named;
use super::status::nodes_table;

/// Form a cluster, or bring it to what is wished: machines are made, started, provisioned and joined
///
/// What is there stays; with nothing to do nothing is changed. Nothing is ever destroyed. Options of the engine are told to
/// all machines that are made for the cluster, also by later commands that do not repeat them. The overlay
/// networks are taken from the first of these ranges that overlaps no network of the machines or of this
/// host: 10.208.0.0/12, then other private ranges; `--address-pool` chooses another one.
#[derive(Args)]
pub struct Up {
    #[command(flatten)]
    named: Named,
    /// So many managers: an odd number, 3 survive the loss of one [default: 3]
    #[arg(long, value_name = "N")]
    managers: Option<u32>,
    /// So many workers [default: 0]
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Spread the machines over so many zones [default: as many as hosts are named, else 1]
    #[arg(long, value_name = "N")]
    zones: Option<u32>,
    /// Keep tasks off managers; needs workers
    #[arg(long)]
    drain_managers: bool,
    /// Take overlay networks from this range; fixed when the cluster is founded
    #[arg(long, value_name = "CIDR")]
    address_pool: Option<Ipv4Net>,
    #[command(flatten)]
    choice: Choice,
    /// Show the plan and touch nothing; exit code 2 when there is something to do
    #[arg(long)]
    dry_run: bool,
    /// Do not ask (nothing that `up` does needs asking today)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    engine: engine::Options,
    #[command(flatten)]
    source: engine::Source,
}

/// What is wished of the engines of a cluster, and of their certificates.
struct Engines {
    /// Of the machines that are made.
    engine: EngineOptions,
    sans: Vec<String>,
    /// On the command line, of all machines.
    said: (EngineOptions, Vec<String>),
}

/// What the options say, beside what is recorded of a cluster that is there: variables and settings are about new
/// clusters, as they are about new machines.
fn engines(
    options: engine::Options,
    source: engine::Source,
    record: Option<&ClusterRecord>,
    matches: &ArgMatches,
) -> Result<Engines> {
    let install = source.wished(matches)?;
    let from_line = source.is_said(matches);
    let said = options.clone().said(matches).wished()?;
    let (engine, sans) = match record {
        None => {
            let (engine, sans) = options.with_variables().wished()?;
            (EngineOptions { install, ..engine }, sans)
        }
        Some(record) => {
            let mut engine = record.engine.clone().with(&said.0);
            if from_line && install != engine.install {
                report::note(
                    "warning: only machines that are made from now on get their engines from there",
                );
                engine.install = install;
            }
            let mut sans = record.sans.clone();
            sans.extend(
                said.1
                    .iter()
                    .filter(|name| !record.sans.contains(name))
                    .cloned(),
            );
            (engine, sans)
        }
    };
    settings::check(&engine)?;
    settings::check_for_swarm(&engine)?;
    Ok(Engines { engine, sans, said })
}

impl Up {
    /// Plans, then brings the plan about.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let name = self.named.parse()?;
        let mut chosen = self.choice.resolve(session, matches)?;
        if chosen.driver.adopts {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "a cluster has machines that forge makes, and `{}` makes none",
                    chosen.driver.id
                ),
            )
            .hint("adopted hosts join a swarm by docker itself: `docker swarm join`"));
        }
        let existing = session.existing()?;
        let record = match &existing {
            Some(store) => ClusterRecord::find(store, &name)?,
            None => None,
        };
        let engines = engines(self.engine, self.source, record.as_ref(), matches)?;
        // What the environment says of a driver that nobody chose is not about this cluster.
        let another = |record: &ClusterRecord| {
            self.choice.named().is_none() && chosen.driver.id != record.driver
        };
        let origins = &chosen.resolved.1;
        let unsaid = origins.values().all(|origin| origin == "default")
            || (record.as_ref().is_some_and(another)
                && origins.values().all(|origin| origin != "flag"));
        let (config, origins) = match &record {
            Some(record) if unsaid && self.choice.named().is_none_or(|id| id == record.driver) => {
                chosen.driver = registry::find(&record.driver)?;
                (record.config.clone(), record.origins.clone())
            }
            _ => chosen.resolved.clone(),
        };
        let sites = (chosen.driver.sites)(&config)?;
        let earlier = record.as_ref().map(|record| &record.spec);
        let spec = ClusterSpec {
            name,
            managers: self
                .managers
                .or(earlier.map(|spec| spec.managers))
                .unwrap_or(3),
            workers: self
                .workers
                .or(earlier.map(|spec| spec.workers))
                .unwrap_or(0),
            zones: zones(self.zones, &sites)?
                .or(earlier.map(|spec| spec.zones))
                .unwrap_or(1),
            drain_managers: self.drain_managers || earlier.is_some_and(|spec| spec.drain_managers),
            address_pool: self
                .address_pool
                .or(earlier.and_then(|spec| spec.address_pool)),
        };
        let fresh: Vec<Zone> = match record {
            None => spec.check()?.nodes.iter().map(|place| place.zone).collect(),
            Some(_) => spec.check().map(|_| Vec::new())?,
        };
        if record.is_none() {
            chosen.tell(session);
        }
        let mut request = Request {
            spec,
            driver: chosen.driver.id,
            network: (chosen.driver.network)(&config)?,
            sites,
            config,
            origins,
            image: record
                .as_ref()
                .map(|record| record.image.clone())
                .unwrap_or_default(),
            engine: engines.engine,
            sans: engines.sans,
            said: engines.said,
        };
        if self.dry_run {
            let plan = match existing {
                Some(store) => {
                    up::dry_run(&session.forge(store, Events::silent()), &request).await?
                }
                None if request.sites.len() > 1 && request.sites.iter().any(|site| site.asked) => {
                    up::dry_run(&session.passing()?.forge, &request).await?
                }
                None => up::first_plan(&request)?,
            };
            show(session, &plan);
            return Ok(Outcome::Code(if plan.changed() { 2 } else { 0 }));
        }
        let (forge, drawing) = session.worker("cluster-up")?;
        let json = session.json();
        let told = move |plan: &Plan| {
            if !json && plan.changed() {
                report::note(&plan.to_string());
            }
        };
        let done = async {
            if request.image.is_empty() || chosen.image.is_some() {
                // Before minutes go into an image.
                up::check_hosts(&forge, &request, &fresh).await?;
                request.image = image::for_machines(&forge, chosen.image.as_deref()).await?;
            }
            up::up(&forge, &request, &told).await
        }
        .await;
        drawing.finish(forge).await;
        finish(session, &request, done?);
        Ok(Outcome::Done)
    }
}

/// The number of zones: as wished, or that of the hosts that the driver was given for them.
fn zones(wished: Option<u32>, sites: &[registry::Site]) -> Result<Option<u32>> {
    let hosts = u32::try_from(sites.len()).unwrap_or(u32::MAX);
    match wished {
        _ if hosts < 2 => Ok(wished),
        Some(wished) if wished != hosts => Err(Error::new(
            Kind::Usage,
            format!("{wished} zones are wished, and {hosts} hosts are named for them"),
        )
        .hint("each host is a zone: leave out `--zones`, or name as many")),
        _ => Ok(Some(hosts)),
    }
}

fn show(session: &Session, plan: &Plan) {
    if session.json() {
        println!(
            "{}",
            json!({"event": "plan", "changed": plan.changed(), "plan": plan})
        );
    } else {
        print!("{plan}");
    }
}

fn finish(session: &Session, request: &Request, formed: Formed) {
    let name = &request.spec.name;
    if session.json() {
        println!(
            "{}",
            json!({"event": "summary", "cluster": name, "cluster_id": formed.cluster_id, "changed": formed.changed, "nodes": formed.nodes})
        );
        return;
    }
    print!("{}", nodes_table(&formed.nodes));
    if formed.changed == 0 {
        report::note("nothing to change");
    } else {
        report::note(&format!(
            "cluster `{name}` is up. Go on with:\n  eval $(forge cluster env {name}) && docker node ls\n  forge cluster status {name}"
        ));
    }
}
