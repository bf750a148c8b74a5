//! Machines that come from elsewhere, or go there.

mod archive;
pub mod docker_machine;
pub mod export;
pub mod import;
