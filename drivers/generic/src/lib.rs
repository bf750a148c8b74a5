//! The driver `generic`: hosts that are there already, and answer SSH.
//!
//! It makes nothing and owns nothing: a host's power is its owner's, and it stays when forge leaves it. What forge
//! changes on it, it changes through SSH, which is not a driver's business. So there is little here: where the host is,
//! and whether it answers.
//!
//! It knows no records, no SSH, no playbooks and no terminal.

mod driver;
mod options;

pub use driver::GenericDriver;
pub use options::{Config, JumpHost, Options};
