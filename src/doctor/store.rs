//! The store: whose it is, who can read it, how much room there is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Entry;
use crate::store::{Store, not_foreign};
use crate::transfer::import::{GO_ON, cut_off, left_over};

/// What the finding about the folder itself is about.
pub const FOLDER: &str = "folder";
/// Below this a first image and a few machines do not fit.
const ROOM: u64 = 5 << 30;

/// Looks at the store in `root`, or at the place where it would be made.
pub fn findings(root: &Path) -> Vec<Entry> {
    let mut findings = vec![folder(root), room(root)];
    findings.extend(import(root));
    findings
}

/// An import that was cut off, where there is one.
fn import(root: &Path) -> Option<Entry> {
    // A store that cannot be read is told of with its folder.
    let store = Store::existing(root).ok().flatten()?;
    let detail = match cut_off(&store) {
        Ok(missing) => left_over(&missing?),
        Err(error) => error.line(),
    };
    Some(Entry::new("store", "import", false, detail).remedy(GO_ON))
}

fn folder(root: &Path) -> Entry {
    let shown = root.display();
    let there = match fs::metadata(root) {
        Ok(there) => there,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Entry::new(
                "store",
                FOLDER,
                true,
                format!("`{shown}` is made by the first command"),
            );
        }
        Err(error) => {
            return Entry::new(
                "store",
                FOLDER,
                false,
                format!("`{shown}` cannot be read: {error}"),
            )
            .remedy("set FORGE_HOME to a folder of your own");
        }
    };
    let me = rustix::process::geteuid().as_raw();
    if there.uid() != me {
        return Entry::new(
            "store",
            FOLDER,
            false,
            format!(
                "`{shown}` belongs to user {}, and you are {me}",
                there.uid()
            ),
        )
        .remedy("run forge as its owner, or set FORGE_HOME to a folder of your own");
    }
    if !there.is_dir() {
        return Entry::new("store", FOLDER, false, format!("`{shown}` is not a folder"))
            .remedy("set FORGE_HOME to a folder of your own");
    }
    if let Err(error) = not_foreign(root) {
        let remedy = error.deepest_hint().unwrap_or_default().to_owned();
        return Entry::new("store", FOLDER, false, error.message()).remedy(remedy);
    }
    if is_open_to_others(root) {
        let mode = there.mode() & 0o777;
        return Entry::new(
            "store",
            FOLDER,
            false,
            format!("`{shown}` holds private keys, and others may enter it (mode {mode:04o})"),
        )
        .remedy(format!("run `chmod 700 {shown}`"));
    }
    Entry::new("store", FOLDER, true, format!("`{shown}`, yours alone"))
}

/// The store is a folder of this user's and of forge's, and others may enter it or look into it.
pub fn is_open_to_others(root: &Path) -> bool {
    fs::metadata(root).is_ok_and(|there| {
        there.is_dir()
            && there.uid() == rustix::process::geteuid().as_raw()
            && there.mode() & 0o077 != 0
            && not_foreign(root).is_ok()
    })
}

fn room(root: &Path) -> Entry {
    let there = root
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(root);
    match rustix::fs::statvfs(there) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let detail = format!("{} GiB free at `{}`", free >> 30, there.display());
            if free >= ROOM {
                Entry::new("store", "disk", true, detail)
            } else {
                Entry::new(
                    "store",
                    "disk",
                    false,
                    format!(
                        "{detail}: an image and a few machines need {} GiB",
                        ROOM >> 30
                    ),
                )
                .remedy("free some space, or set FORGE_HOME to a folder on another disk")
            }
        }
        Err(error) => Entry::new(
            "store",
            "disk",
            false,
            format!(
                "`{}` cannot be asked for its room: {error}",
                there.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_store_that_others_may_enter_is_amiss() {
        let store = tempfile::tempdir().expect(FOLDER);
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let entry = folder(store.path());
        assert!(!entry.finding.ok);
        assert!(entry.remedy.expect("remedy").starts_with("run `chmod 700 "));
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        assert!(folder(store.path()).finding.ok);
    }

    #[test]
    fn a_store_that_is_not_there_yet_is_fine_and_not_made() {
        let parent = tempfile::tempdir().expect(FOLDER);
        let store = parent.path().join("a/b");
        assert_eq!(findings(&store).len(), 2);
        assert!(folder(&store).finding.ok);
        assert!(!parent.path().join("a").exists());
    }

    #[test]
    fn a_file_in_its_place_is_amiss() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(
            folder(file.path()).finding.detail,
            format!("`{}` is not a folder", file.path().display())
        );
    }
}
