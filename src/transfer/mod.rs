//! Machines that come from elsewhere.

pub mod docker_machine;
