//! `forge cluster ssh`

use std::ffi::OsString;

use clap::Args;
use forge_driver::Result;

use super::super::{Outcome, Session, ssh};
use super::Named;
use super::env::running_manager;

/// Open a shell on a manager of a cluster, or run a command there and end with its exit code
#[derive(Args)]
pub struct Ssh {
    #[command(flatten)]
    named: Named,
    /// The command and its words, after `--`; options of OpenSSH may come first
    #[arg(last = true)]
    words: Vec<OsString>,
}

impl Ssh {
    /// Runs the session on the first manager that runs.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let manager = running_manager(&forge, &self.named.parse()?).await?;
        ssh::enter(session, &forge, &manager, &self.words).await
    }
}
