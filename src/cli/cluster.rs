//! `forge cluster …`

mod down;
mod env;
mod ls;
mod power;
mod publish;
mod ssh;
mod status;
mod up;

use clap::{ArgMatches, Args, Subcommand};
use forge::cluster::spec::{ClusterName, DEFAULT_NAME};
use forge_driver::Result;

use super::{Outcome, Session};

/// What can be done with clusters.
#[derive(Subcommand)]
pub enum Cluster {
    Up(Box<up::Up>),
    Ls(ls::Ls),
    Status(status::Status),
    Start(power::Start),
    Stop(power::Stop),
    Restart(power::Restart),
    Env(env::Env),
    Ssh(ssh::Ssh),
    Publish(publish::Publish),
    Down(down::Down),
}

/// The name of a cluster.
#[derive(Args)]
pub struct Named {
    /// The cluster
    #[arg(default_value = DEFAULT_NAME)]
    name: String,
}

impl Named {
    /// The name, found sound.
    ///
    /// # Errors
    /// When it cannot be a cluster's.
    pub fn parse(&self) -> Result<ClusterName> {
        self.name.parse()
    }
}

impl Cluster {
    /// Runs the subcommand.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        match self {
            Self::Up(command) => command.run(session, matches).await,
            Self::Ls(command) => command.run(session).await,
            Self::Status(command) => command.run(session).await,
            Self::Start(command) => command.run(session).await,
            Self::Stop(command) => command.run(session).await,
            Self::Restart(command) => command.run(session).await,
            Self::Env(command) => command.run(session).await,
            Self::Ssh(command) => command.run(session).await,
            Self::Publish(command) => command.run(session).await,
            Self::Down(command) => command.run(session).await,
        }
    }
}
