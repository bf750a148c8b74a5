//! What a driver found out about this host, for `forge doctor`.

use serde::Serialize;

/// One fact about this host that decides whether, or how well, a driver works here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a program, a device, a limit.
    pub what: String,
    /// Machines can be made as things are.
    pub ok: bool,
    /// What was found, for a reader.
    pub detail: String,
    /// The Debian packages that mend it; empty when nothing is amiss or no package helps.
    pub packages: Vec<&'static str>,
}
