//! One machine: what is remembered of it, and the loops that create, change and remove it.

pub mod access;
pub mod adopt;
pub mod companions;
pub mod create;
pub mod destroy;
pub mod engine;
#[cfg(feature = "lab")]
pub mod fake;
mod first_contact;
pub mod imported;
pub mod live;
pub mod power;
pub mod provision;
pub mod publish;
mod reach;
pub mod record;
pub mod relocate;
pub mod renew;
mod seed;
pub mod survey;
pub mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forge_driver::assets::Assets;
use forge_driver::{Driver, Instance, Result, State};

use crate::credentials::Credentials;
use crate::event::Events;
use crate::image::Images;
use crate::registry;
use crate::secret::Secret;
use crate::store::Store;

pub use record::{Adopted, Jump, Member, Record, SSH_KEY, SshAccess, Stage, Tls};

/// What every effect goes through, handed down by the command line.
#[derive(Clone)]
pub struct Forge {
    /// The store.
    pub store: Store,
    /// Templates and playbooks.
    pub assets: Assets,
    /// Who hears what happens.
    pub events: Events,
    /// How long one wait may take: `--timeout`.
    pub patience: Duration,
    /// What `sudo` asks for, by machine.
    pub sudo: Arc<BTreeMap<String, Secret>>,
    /// The secrets of providers and hosts.
    pub credentials: Credentials,
}

impl Forge {
    /// The same, for one machine: its events carry its name.
    #[must_use]
    pub fn of(&self, machine: &str) -> Self {
        Self {
            events: self.events.of(machine),
            ..self.clone()
        }
    }

    /// The base images of the store.
    pub fn images(&self) -> Images {
        Images::new(self.store.images_dir(), self.assets.clone())
    }

    /// The driver of a recorded machine.
    ///
    /// # Errors
    /// When this forge has no such driver.
    pub fn driver(&self, record: &Record) -> Result<Arc<dyn Driver>> {
        registry::open(self, &record.driver, &record.config)
    }

    /// The way to a recorded machine.
    ///
    /// # Errors
    /// When this forge has no such driver.
    pub fn access(&self, record: &Record) -> Result<Arc<dyn access::Access>> {
        let access = registry::access(&record.driver, &self.store)?;
        Ok(match self.sudo.get(&record.name) {
            Some(password) => Arc::new(adopt::WithSudo {
                access,
                password: password.clone(),
            }),
            None => access,
        })
    }
}

/// The power state of one machine, as its provider has it.
///
/// # Errors
/// When the provider cannot be asked.
pub async fn state(driver: &dyn Driver, record: &Record) -> Result<State> {
    Ok(seen(driver, record).await?.0)
}

/// The power state of one machine, and what is there of it.
///
/// # Errors
/// When the provider cannot be asked.
pub(crate) async fn seen(
    driver: &dyn Driver,
    record: &Record,
) -> Result<(State, Option<Instance>)> {
    let seen = driver.observe(&[record.claim]).await?.into_iter().next();
    Ok(seen.map_or((State::Absent, None), |seen| (seen.state, seen.instance)))
}
