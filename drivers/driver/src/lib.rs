//! What every forge driver shares: the [`Driver`] trait, its types and errors, and the tools that
//! keep an effect safe: whole files, children with deadlines.
//!
//! A driver turns one machine's [`Spec`] into a running [`Instance`] and knows nothing else: no
//! records, no SSH, no playbooks, no terminal.

pub mod assets;
pub mod atomic;
mod claim;
#[cfg(feature = "conformance")]
pub mod conformance;
mod driver;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod finding;
pub mod folder;
pub mod hold;
pub mod host;
mod instance;
mod locate;
pub mod options;
pub mod ports;
pub mod process;
pub mod routes;
mod secret;
pub mod seed;
mod spec;
pub mod trial;
pub mod versioned;

pub use claim::Claim;
pub use driver::{Driver, DriverHome, Token, Tokens, Wants};
pub use error::{Context, Error, Fact, Kind, Result};
pub use finding::Finding;
pub use instance::{Artefact, Endpoints, Instance, Observation, Power, State};
pub use locate::locate;
pub use secret::Secret;
pub use spec::{
    BaseImage, ENGINE_PORT, Forward, KernelFiles, Mac, Network, Nic, SSH_PORT, Seed, Spec,
};
