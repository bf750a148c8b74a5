//! Machines that come from elsewhere, or go there.

mod archive;
pub mod docker_machine;
pub mod export;
pub mod import;

use crate::machine::Record;

/// Whether forge has a key to enter a machine with: every one that has a user, but for those of docker-machine's, which may
/// have lost theirs before they came.
fn enters_by_key(record: &Record) -> bool {
    !record.ssh.user.is_empty() && record.imported.is_none()
}
