//! Playbooks: what a machine should be like, as data, brought about by one shell script.
//!
//! # The form
//!
//! ```yaml
//! vars:                       # every variable that the texts may use; null = the caller has to give it
//!   peers:
//!   mode: own
//! secrets: [server_key]       # shell variables `$secret_server_key`; never seen by templates
//! units: [docker.service]     # what `unit` may be asked about; all are read by one `systemctl show`
//! steps:
//!   - name: the daemon's configuration          # a file, whole, replaced atomically
//!     file: {path: /etc/docker/daemon.json, template: docker/daemon.json.tera, mode: "0644"}
//!   - name: the server's key
//!     file: {path: /etc/docker/tls/server-key.pem, secret: server_key, mode: "0600"}
//!   - name: the folder
//!     directory: {path: /etc/docker/tls, mode: "0700"}
//!   - name: the engine runs with this configuration
//!     on_change_of: [the daemon's configuration, the server's key]
//!     check: running docker.service
//!     apply: systemctl restart docker.service
//!     deadline: 90
//!     retry: {every: 1, for: 30}
//!   - name: the cluster's id
//!     when: '[ -d /var/lib/docker/swarm ]'
//!     read: output cluster_id "$(docker info -f '{{ "{{" }}.Swarm.Cluster.ID{{ "}}" }}')"
//!     outputs: {cluster_id: plain}
//! ```
//!
//! A step is one of
//!
//! * `file` (`content`, `template` or `secret`) and `directory`: compared by one `sha256sum` and one
//!   `stat` for all playbooks of a job, so an unchanged file costs nothing more;
//! * `check` and `apply`: `check` reads, `apply` changes, then `check` has to hold;
//! * `check` alone: has to hold;
//! * `apply` with `on_change_of`: runs after a change of those steps, and when its `check` (if there is
//!   one) does not hold. That it is due is noted on the machine before the change, so it is not forgotten
//!   when a run is cut off in between;
//! * `read`: runs always, changes nothing, returns `outputs`.
//!
//! Texts are tera templates. `{{ x | sh }}` quotes a value for the shell (a list becomes words); a
//! variable that is not defined is an error. `when` (a shell condition) skips a step.
//!
//! # In the shell
//!
//! POSIX sh (dash, busybox ash). Steps may call
//!
//! * `service_running`, `_enabled`, `_enable`, `_restart`, `_reload`, `_log` and `_hold` (keep packages from starting
//!   it), `_free`, each with the NAME of a service: by systemd where it runs, else by OpenRC;
//! * `running UNIT`: without a process, by the link that systemd keeps while a unit is not inactive;
//! * `unit NAME PROPERTY VALUE` (LoadState, ActiveState, SubState, UnitFileState, NeedDaemonReload);
//! * `seen VARIABLE COMMAND …`: the command's output, asked for once until a step changes something;
//! * `output NAME VALUE` and `fail MESSAGE`.
//!
//! `check` and `when` run inside the script's own shell, because a process costs up to
//! 10 ms under emulation: they use builtins, `return` and never `exit`; the status is the one of the last
//! command. What may hang is given `check_deadline`, which runs the check in a shell of its own.
//! `apply` and `read` always do, with `set -eu`, and are ended (their children too) after `deadline`
//! seconds (60 when left out). `retry` repeats a step that fails.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

mod compile;
mod parse;
mod render;
mod run;
#[cfg(test)]
mod tests;

pub use compile::{Job, compile};
pub use parse::{Playbook, load};
pub use render::quote;
pub use run::run;

use crate::secret::Secret;

/// The values of a playbook's variables.
#[derive(Clone, Debug, Default)]
pub struct Vars(pub Map<String, Value>);

impl Vars {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// These values and one more.
    ///
    /// # Panics
    /// When `value` cannot be JSON (a map with keys that are not text): our own mistake.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("a variable's value is JSON");
        self.0.insert(name.to_owned(), value);
        self
    }
}

/// Values that steps use and nobody sees.
#[derive(Clone, Debug, Default)]
pub struct Secrets(pub BTreeMap<String, Secret>);

impl Secrets {
    /// No secrets.
    pub fn new() -> Self {
        Self::default()
    }

    /// These secrets and one more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Secret>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// The secret of that name.
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It was as wished.
    Ok,
    /// It was brought about.
    Changed,
    /// It could not be brought about: the run ends here.
    Failed,
    /// Its `when` does not hold.
    Skipped,
    /// A dry run would have changed it.
    WouldChange,
    /// It has not ended: it waits for what its output says.
    Waits,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Changed => "changed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::WouldChange => "would-change",
            Self::Waits => "waits",
        })
    }
}

/// One step, done, or waiting.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// The playbook.
    pub playbook: String,
    /// The step's name in it.
    pub step: String,
    /// How it ended.
    pub status: Status,
    /// What its commands printed, secrets masked.
    pub output: String,
}

/// All steps, done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The steps, in order.
    pub steps: Vec<StepResult>,
    /// The values that steps returned.
    pub outputs: BTreeMap<String, String>,
    /// The values that steps returned and that are declared secret.
    pub secrets: Secrets,
}

impl Report {
    /// How many steps changed something (in a dry run: would have).
    pub fn changed(&self) -> usize {
        self.steps
            .iter()
            .filter(|step| matches!(step.status, Status::Changed | Status::WouldChange))
            .count()
    }
}
