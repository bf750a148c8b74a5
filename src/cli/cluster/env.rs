//! `forge cluster env`

use clap::Args;
use forge::cluster::down::in_order;
use forge::cluster::record::ClusterRecord;
use forge::cluster::spec::ClusterName;
use forge::cluster::zones::Role;
use forge::machine::{Forge, Record, Stage, state};
use forge_driver::{Error, Kind, Result, State};

use super::super::env::{show, variables};
use super::super::shell::Shell;
use super::super::{Outcome, Session};
use super::Named;

/// Print the variables that lead `docker` to a manager of a cluster, for `eval`
///
/// On failure nothing is printed to standard output.
#[derive(Args)]
pub struct Env {
    #[command(flatten)]
    named: Named,
    /// Print for this shell [default: the one of $SHELL]
    #[arg(long, value_enum)]
    shell: Option<Shell>,
}

impl Env {
    /// Prints the lines.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let name = self.named.parse()?;
        let manager = running_manager(&forge, &name).await?;
        let lines = variables(session, &manager.name, false).await?;
        show(session, self.shell.unwrap_or_else(Shell::of_user), &lines);
        Ok(Outcome::Done)
    }
}

/// The first manager that runs.
///
/// # Errors
/// [`Kind::Unavailable`] when none does.
pub async fn running_manager(forge: &Forge, name: &ClusterName) -> Result<Record> {
    ClusterRecord::load(&forge.store, name)?;
    for record in in_order(forge, name)? {
        let manager = record
            .member
            .as_ref()
            .is_some_and(|member| member.role == Role::Manager);
        if manager
            && record.stage == Stage::Ready
            && !record.leaving
            && state(&*forge.driver(&record)?, &record).await? == State::Running
        {
            return Ok(record);
        }
    }
    Err(Error::new(
        Kind::Unavailable,
        format!("no manager of cluster `{name}` is running"),
    )
    .hint(format!(
        "`forge cluster start {name}` starts it, `forge cluster up {name}` mends it"
    )))
}
