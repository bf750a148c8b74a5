//! What is missing on this host, and how to get it.
//!
//! Nothing is inferred that can be tried: file systems are made, name spaces entered. Findings are
//! values; the command line shows them, asks, and calls [`fix::apply`].

mod apt;
pub mod fix;
mod image;
mod sources;
mod store;

use std::env;
use std::path::{Path, PathBuf};

use forge_driver::Finding;
use serde::Serialize;

pub use fix::Plan;

use crate::registry::Found;

/// One finding and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// `host`, `store`, `image build` or the name of a driver.
    pub area: String,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// It counts: machines of this store need it, or the user named what it is about.
    pub needed: bool,
    /// What to do about it, where no package helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Everything that was found: what `forge doctor --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing that is needed is missing.
    pub ok: bool,
    /// The findings, area by area.
    pub findings: Vec<Entry>,
}

impl Entry {
    fn new(area: &str, what: &str, ok: bool, detail: impl Into<String>) -> Self {
        Self {
            area: area.to_owned(),
            finding: Finding {
                what: what.to_owned(),
                ok,
                detail: detail.into(),
                packages: Vec::new(),
            },
            needed: true,
            remedy: None,
        }
    }

    fn packages(mut self, packages: &[&'static str]) -> Self {
        self.finding.packages = packages.to_vec();
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl Report {
    /// The packages that mend what is missing, each once, sorted.
    pub fn packages(&self) -> Vec<String> {
        let mut packages: Vec<String> = self
            .missing()
            .flat_map(|entry| &entry.finding.packages)
            .map(|package| (*package).to_owned())
            .collect();
        packages.sort();
        packages.dedup();
        packages
    }

    /// What is needed and not as it should be.
    pub fn missing(&self) -> impl Iterator<Item = &Entry> {
        self.findings
            .iter()
            .filter(|entry| entry.needed && !entry.finding.ok)
    }
}

/// Looks at this host, at the store in `root` and at the tools that images are built with, and adds
/// what the drivers found. Changes nothing that outlives it.
pub async fn examine(root: &Path, drivers: Vec<Found>) -> Report {
    let mut findings = vec![platform(env::consts::OS, env::consts::ARCH)];
    findings.extend(store::findings(root));
    for found in drivers {
        findings.extend(found.findings.into_iter().map(|finding| Entry {
            area: found.driver.to_owned(),
            finding,
            needed: found.needed,
            remedy: None,
        }));
    }
    findings.extend(image::findings().await);
    Report {
        ok: findings
            .iter()
            .all(|entry| entry.finding.ok || !entry.needed),
        findings,
    }
}

/// What differs on this kind of host.
fn platform(os: &str, arch: &str) -> Entry {
    let here = format!("{os} {arch}");
    match (os, arch) {
        ("linux", "x86_64") => Entry::new(
            "host",
            "system",
            true,
            format!("{here}: each machine has a loopback address of its own"),
        ),
        ("linux", _) => Entry::new(
            "host",
            "system",
            true,
            format!(
                "{here}: never tried by the project; each machine has a loopback address of its own; images are not built here, but pulled"
            ),
        ),
        ("macos", _) => Entry::new(
            "host",
            "system",
            true,
            format!(
                "{here}: never tried by the project; machines share 127.0.0.1 with ports of their own; images are not built here, but pulled"
            ),
        ),
        _ => Entry::new("host", "system", false, format!("{here} is not supported"))
            .remedy("run forge on Linux or macOS"),
    }
}

/// Finds a program as a shell would, and in the folders of the administrator, which are not in the
/// path of a plain user on Debian though what lies there runs for everybody.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_what_is_missing_are_named_once() {
        let report = Report {
            ok: false,
            findings: vec![
                Entry::new("a", "x", false, "missing").packages(&["q", "b"]),
                Entry::new("b", "y", false, "missing").packages(&["b"]),
                Entry::new("b", "z", true, "there").packages(&["never"]),
            ],
        };
        assert_eq!(report.packages(), ["b", "q"]);
    }

    #[test]
    fn what_was_never_tried_says_so() {
        assert!(
            !platform("linux", "x86_64")
                .finding
                .detail
                .contains("never tried")
        );
        for (os, arch) in [
            ("linux", "aarch64"),
            ("macos", "x86_64"),
            ("macos", "aarch64"),
        ] {
            let entry = platform(os, arch);
            assert!(
                entry.finding.ok && entry.finding.detail.contains("never tried"),
                "{entry:?}"
            );
        }
        assert!(!platform("windows", "x86_64").finding.ok);
    }

    #[test]
    fn programs_are_found_and_folders_are_none() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program").is_none());
        assert!(program(".").is_none());
    }

    #[test]
    fn an_entry_is_flat_in_json() {
        let entry = Entry::new("store", "disk", true, "80 GiB free");
        assert_eq!(
            serde_json::to_value(&entry).expect("json"),
            serde_json::json!({"area": "store", "what": "disk", "ok": true, "detail": "80 GiB free", "packages": [], "needed": true})
        );
    }
}
