//! `forge cluster ls`

use clap::Args;
use forge::cluster::record::{ClusterRecord, members};
use forge::cluster::spec::ClusterName;
use forge_driver::Result;
use serde_json::json;

use super::super::table::table;
use super::super::{Outcome, Session};

/// List clusters
#[derive(Args)]
pub struct Ls {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

const HEADINGS: [&str; 7] = [
    "NAME", "MANAGERS", "WORKERS", "ZONES", "MACHINES", "SWARM", "ERRORS",
];

impl Ls {
    /// Prints the list; no provider and no machine is asked.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let mut rows = Vec::new();
        let mut list = Vec::new();
        if let Some(store) = session.existing()? {
            for (name, record) in ClusterRecord::all(&store)? {
                if self.quiet {
                    println!("{name}");
                    continue;
                }
                let machines = name
                    .parse::<ClusterName>()
                    .and_then(|name| members(&store, &name))
                    .map(|all| all.len());
                let error = match (&record, &machines) {
                    (Err(error), _) | (_, Err(error)) => error.message().to_owned(),
                    (Ok(record), _) if record.leaving => {
                        format!("being removed: `forge cluster down {name}` goes on")
                    }
                    (Ok(record), _) if record.cluster_id.is_none() => {
                        format!("not founded yet: `forge cluster up {name}` goes on")
                    }
                    _ => String::new(),
                };
                let spec = record.as_ref().ok().map(|record| &record.spec);
                let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
                rows.push(vec![
                    name.clone(),
                    number(spec.map(|spec| spec.managers)),
                    number(spec.map(|spec| spec.workers)),
                    number(spec.map(|spec| spec.zones)),
                    machines
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    record
                        .as_ref()
                        .ok()
                        .and_then(|record| record.cluster_id.clone())
                        .unwrap_or_default(),
                    error.clone(),
                ]);
                list.push(json!({"name": name, "spec": spec, "machines": machines.ok(),
                    "cluster_id": record.as_ref().ok().and_then(|record| record.cluster_id.clone()), "error": error}));
            }
        }
        if session.json() {
            println!("{}", serde_json::Value::Array(list));
        } else if !self.quiet {
            print!("{}", table(&HEADINGS, &rows));
        }
        Ok(Outcome::Done)
    }
}
