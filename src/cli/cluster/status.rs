//! `forge cluster status`

use clap::Args;
use forge::cluster::node::Node;
use forge::cluster::status::{self, Row};
use forge_driver::Result;
use serde::Serialize;

use super::super::table::table;
use super::super::{Outcome, Session, report};
use super::Named;

/// Show every node of a cluster and whether its quorum holds
///
/// Exit code 1 when anything is not as it should be.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    named: Named,
    /// Also ask a published port of every node from another node: a service is made for it and removed
    #[arg(long)]
    probe: bool,
}

impl Status {
    /// Prints the nodes, the quorum and what is wrong.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let name = self.named.parse()?;
        let reader = session.reader()?;
        let status = if self.probe && !session.json() {
            let (forge, drawing) = session.worker("cluster-status")?;
            let done = status::status(&forge, &name, true).await;
            drawing.finish(forge).await;
            done?
        } else {
            // With JSON the report is one document.
            status::status(&reader, &name, self.probe).await?
        };
        let code = Outcome::Code(u8::from(!status.whole()));
        if session.json() {
            println!("{}", serde_json::json!(status));
            return Ok(code);
        }
        let rows: Vec<Vec<String>> = status.nodes.iter().map(cells).collect();
        print!(
            "{}",
            table(
                &[
                    "NAME",
                    "ROLE",
                    "ZONE",
                    "STATE",
                    "NODE",
                    "AVAILABILITY",
                    "MANAGER",
                    "ADDRESS"
                ],
                &rows
            )
        );
        println!(
            "quorum: {} of {} managers take part, {} needed: {}",
            status.reachable,
            status.managers,
            status.needed,
            if status.quorum { "holds" } else { "lost" }
        );
        if let Some(probe) = &status.probe {
            for answer in &probe.answers {
                let outcome = answer.error.as_deref().unwrap_or("answered");
                println!(
                    "published port {} of {}, asked from {}: {outcome}",
                    probe.port, answer.target, answer.asker
                );
            }
        }
        for trouble in &status.trouble {
            report::note(&format!("trouble: {trouble}"));
        }
        Ok(code)
    }
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.name.clone(),
        row.role.to_string(),
        row.zone.to_string(),
        row.state.to_string(),
        word(row.health.as_ref()),
        word(row.availability.as_ref()),
        word(row.manager.as_ref()),
        row.address
            .map(|address| address.to_string())
            .unwrap_or_default(),
    ]
}

/// The word that JSON uses for a value.
fn word(value: Option<&impl Serialize>) -> String {
    value
        .and_then(|value| serde_json::to_value(value).ok())
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_else(|| "-".to_owned())
}

/// Nodes as the managers list them.
pub fn nodes_table(nodes: &[Node]) -> String {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                node.hostname.clone(),
                word(Some(&node.health)),
                word(Some(&node.availability)),
                word(node.manager.as_ref()),
                node.zone.map(|zone| zone.to_string()).unwrap_or_default(),
                node.address.clone(),
                node.id.clone(),
            ]
        })
        .collect();
    table(
        &[
            "NODE",
            "STATUS",
            "AVAILABILITY",
            "MANAGER",
            "ZONE",
            "ADDRESS",
            "ID",
        ],
        &rows,
    )
}
