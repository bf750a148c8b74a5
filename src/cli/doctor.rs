//! `forge doctor`

use clap::Args;
use forge::doctor::{self, Report, fix};
use forge::event::Events;
use forge::registry;
use forge::store::Store;
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::ask::confirm;
use super::{Outcome, Session, report};

/// Say what is missing on this host for which driver, and install it with --fix
///
/// Exit code 1 when something is missing.
#[derive(Args)]
pub struct Doctor {
    /// Install the packages that are missing, and close a store that others may enter
    #[arg(long)]
    fix: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Count what this driver needs [default: the drivers of the machines that there are, and the one that `forge create` takes]
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "FORGE_DRIVER",
        hide_env_values = true
    )]
    driver: Vec<String>,
}

impl Doctor {
    /// Examines, and with `--fix` mends and examines again.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let wished = self
            .driver
            .iter()
            // An empty variable names none.
            .filter(|name| !name.is_empty())
            .map(|name| registry::find(name).map(|entry| entry.id))
            .collect::<Result<Vec<_>>>()?;
        let mut found = examine(session, &wished).await?;
        if self.fix && !found.ok {
            let plan = fix::plan(&found, &session.root()?).await?;
            for line in &plan.by_hand {
                report::note(&format!("to do by hand: {line}"));
            }
            if !plan.steps.is_empty() {
                for step in &plan.steps {
                    report::note(&format!("will run: {}", step.line()));
                }
                if !self.yes {
                    confirm("Go ahead?")?;
                }
                fix::apply(&plan, &|step| {
                    report::note(&format!("running: {}", step.line()));
                })
                .await?;
                found = examine(session, &wished).await?;
            }
        }
        if session.json() {
            println!("{}", json!(found));
        } else {
            show(&found);
        }
        if self.fix && !found.ok {
            return Err(Error::new(
                Kind::Unavailable,
                "something is still missing; see above",
            ));
        }
        Ok(Outcome::Code(u8::from(!found.ok)))
    }
}

/// Looks at the host; a store is not made for it.
async fn examine(session: &Session, wished: &[&str]) -> Result<Report> {
    let root = session.root()?;
    let drivers = match Store::existing(&root) {
        Ok(Some(store)) => {
            registry::findings(&session.forge(store, Events::silent()), wished).await?
        }
        // Without a store, or with a damaged one, the drivers are asked in an empty one of the moment.
        Ok(None) | Err(_) => registry::findings(&session.passing()?.forge, wished).await?,
    };
    Ok(doctor::examine(&root, drivers).await)
}

fn show(found: &Report) {
    let mut area = "";
    for entry in &found.findings {
        if entry.area != area {
            area = &entry.area;
            println!("{area}");
        }
        println!(
            "  {} {}: {}",
            match (entry.finding.ok, entry.needed) {
                (true, _) => "ok     ",
                (false, true) => "missing",
                (false, false) => "unused ",
            },
            entry.finding.what,
            entry.finding.detail
        );
        if !entry.finding.ok && !entry.finding.packages.is_empty() {
            println!("          packages: {}", entry.finding.packages.join(" "));
        }
        if let Some(remedy) = &entry.remedy {
            println!("          {remedy}");
        }
    }
    if !found.ok {
        report::note("`forge doctor --fix` installs what packages can give");
    }
}
