//! forge: from nothing to a running container cluster.
//!
//! A driver makes a machine, provisioning makes a container host of it, a cluster joins several.
//! The store is the only writer of state; values flow forward, each stage takes what the one before
//! it returned. The command line (`cli`) parses, draws and exits.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod ca;
pub mod cluster;
pub mod context;
pub mod credentials;
pub mod doctor;
pub mod engine;
pub mod engine_options;
pub mod event;
pub mod fault;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod machine;
pub mod place;
pub mod playbook;
pub mod registry;
pub mod remote;
pub mod seal;
pub mod secret;
pub mod store;
pub mod tasks;
pub mod transfer;
