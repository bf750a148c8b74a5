//! Folders of docker-machine, told from forge's own. They are only ever imported: forge changes nothing in them.
//!
//! docker-machine keeps a machine in `machines/NAME/config.json`. Beside a record of forge's a file of that name is
//! forge's own, for scripts that read it.

use std::fs;
use std::path::Path;

use forge_driver::{Error, Kind, Result};

/// More is no configuration of a machine.
pub const LARGEST: u64 = 1 << 20;
/// So many machines are named; of more, only how many there are.
const NAMED: usize = 3;

/// Refuses a folder in which docker-machine keeps machines; `ours` says whether it is a store of forge's, too. Of a machine
/// with a record no file is read.
///
/// # Errors
/// [`Kind::Refused`] with the command that imports them.
pub fn refuse(root: &Path, ours: bool) -> Result<()> {
    let machines = machines(root);
    let shown = root.display();
    if ours && !machines.is_empty() {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the store `{shown}` holds machines that docker-machine made: {}",
                listed(&machines)
            ),
        )
        .hint("move their folders to `DIR/machines`; `forge import docker-machine DIR` takes them over from there"));
    }
    // With the last machine removed, docker-machine's authority is left.
    let authority = !root.join("locks").exists() && root.join("certs/ca-key.pem").exists();
    if ours || (machines.is_empty() && !authority) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("`{shown}` is a store of docker-machine, in which forge changes nothing"),
    )
    .hint(format!(
        "`forge --storage-path DIR import docker-machine {shown}` takes its machines over into a store of forge's in DIR"
    )))
}

/// The machines that docker-machine made, sorted by name. What cannot be read is nobody's.
fn machines(root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join("machines")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| !folder.join("machine.json").exists() && is_foreign(folder))
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// Whether a folder without a record is that of a machine of docker-machine's. One with a key of forge's has lost its
/// record: it is still forge's.
fn is_foreign(folder: &Path) -> bool {
    let config = folder.join("config.json");
    let small = fs::metadata(&config).is_ok_and(|found| found.is_file() && found.len() <= LARGEST);
    if !small || folder.join("id_ed25519").exists() {
        return false;
    }
    let text = fs::read_to_string(&config).unwrap_or_default();
    // The first versions of the format had no number.
    ["\"ConfigVersion\"", "\"DriverName\""]
        .iter()
        .any(|field| text.contains(field))
}

fn listed(names: &[String]) -> String {
    let first: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| format!("`{name}`"))
        .collect();
    let first = first.join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const CONFIG: &str = r#"{"ConfigVersion": 3, "DriverName": "generic", "Name": "n1"}"#;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn refused(root: &Path) -> Error {
        let error = Store::existing(root).expect_err("foreign");
        assert_eq!(
            Store::open(root).expect_err("foreign").kind(),
            Kind::Refused
        );
        assert!(
            error
                .deepest_hint()
                .expect("a hint")
                .contains("import docker-machine")
        );
        assert_eq!(error.kind(), Kind::Refused);
        error
    }

    #[test]
    fn a_store_of_docker_machine_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        put(folder.path(), "machines/n1/config.json", CONFIG);
        let error = refused(folder.path());
        assert!(error.message().contains("is a store of docker-machine"));
        assert!(!folder.path().join("store.json").exists());
        assert!(!folder.path().join("locks").exists());
    }

    #[test]
    fn so_is_one_whose_machines_are_gone() {
        let folder = tempfile::tempdir().expect("folder");
        put(folder.path(), "certs/ca-key.pem", "a key");
        refused(folder.path());
    }

    #[test]
    fn foreign_machines_in_a_store_of_ours_are_named() {
        let folder = tempfile::tempdir().expect("folder");
        Store::open(folder.path()).expect("made");
        for name in ["a", "b", "c", "d"] {
            put(
                folder.path(),
                &format!("machines/{name}/config.json"),
                CONFIG,
            );
        }
        let error = refused(folder.path());
        assert!(
            error.message().ends_with("made: `a`, `b`, `c` and 1 more"),
            "{error}"
        );
    }

    #[test]
    fn what_is_ours_stays_ours() {
        let folder = tempfile::tempdir().expect("folder");
        Store::open(folder.path()).expect("made");
        put(folder.path(), "machines/n1/machine.json", "");
        put(folder.path(), "machines/n1/config.json", CONFIG);
        put(folder.path(), "machines/lost/id_ed25519", "a key");
        put(folder.path(), "machines/lost/config.json", CONFIG);
        put(folder.path(), "machines/other/config.json", "{}");
        put(folder.path(), "certs/ca-key.pem", "a key");
        assert!(Store::existing(folder.path()).expect("ours").is_some());
        // A folder that somebody made for a store is none yet.
        let folder = tempfile::tempdir().expect("folder");
        put(folder.path(), "images/test/image.json", "{}");
        assert!(Store::existing(folder.path()).expect("ours").is_none());
        Store::open(folder.path()).expect("made");
    }
}
