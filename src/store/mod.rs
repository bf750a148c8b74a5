//! The store: the only writer of state.
//!
//! Every record is a whole file ([`forge_driver::atomic`]) with a format number; readers need no lock,
//! writers hold the lock of what they write ([`lock`]). No record holds an absolute path, so that a
//! store can move.

pub mod addresses;
mod foreign;
pub mod lock;
mod records;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use forge_driver::{Error, Kind, Result, atomic};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use foreign::LARGEST as LARGEST_FOREIGN;
pub use records::{
    FORMAT, forget, json, parse, read_json, remove_file, write_file, write_files, write_json,
};

/// A folder that holds everything forge remembers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    id: Uuid,
}

/// `store.json`: what identifies a store.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    id: Uuid,
}

/// The folders of a store, all private to its owner.
const FOLDERS: [&str; 8] = [
    "machines", "clusters", "images", "certs", "drivers", "locks", "logs", "networks",
];

impl Store {
    /// Opens the store at `root`, making it when there is none.
    ///
    /// # Errors
    /// When the folder belongs to another user, was written by a newer forge, or cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        if let Some(store) = Self::existing(root)? {
            for folder in FOLDERS {
                atomic::private_folder(&root.join(folder))?;
            }
            return Ok(store);
        }
        atomic::private_folder(root)?;
        own(root)?;
        for folder in FOLDERS {
            atomic::private_folder(&root.join(folder))?;
        }
        // Several first commands may come here at once: the first link wins, the others read it.
        let id = Uuid::new_v4();
        let mine = root.join(format!(".new-store-{id}"));
        write_json(&mine, &Identity { id })?;
        let linked = fs::hard_link(&mine, root.join("store.json"));
        crate::fault::point("after linking store.json");
        fs::remove_file(&mine).map_err(|error| {
            atomic::full(error, &format!("failed to tidy up `{}`", mine.display()))
        })?;
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(atomic::full(
                    error,
                    &format!("failed to make a store in `{}`", root.display()),
                ));
            }
        }
        atomic::sync_folder(root)?;
        Self::existing(root)?.ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!("`{}` lost its `store.json`", root.display()),
            )
        })
    }

    /// The store at `root` as it is, touching nothing; `None` when there is none yet.
    ///
    /// # Errors
    /// When the folder belongs to another user, cannot be read, or was written by a newer forge; when docker-machine
    /// keeps machines in it.
    pub fn existing(root: &Path) -> Result<Option<Self>> {
        if !root.exists() {
            return Ok(None);
        }
        own(root)?;
        let identity = read_json::<Identity>(&root.join("store.json"))?;
        foreign::refuse(root, identity.is_some())?;
        let Some(identity) = identity else {
            return Ok(None);
        };
        Ok(Some(Self {
            root: root.to_owned(),
            id: identity.id,
        }))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The random identity of this store, given when it was made.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// `machines/<name>/`
    pub fn machine_dir(&self, name: &str) -> PathBuf {
        self.root.join("machines").join(name)
    }

    /// `clusters/<name>/`
    pub fn cluster_dir(&self, name: &str) -> PathBuf {
        self.root.join("clusters").join(name)
    }

    /// `images/`
    pub fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `certs/`: the CA and the client pair.
    pub fn certs_dir(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// `logs/`: one file for each changing command.
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// `drivers/<driver>/`: the directory that a driver is handed.
    pub fn driver_dir(&self, driver: &str) -> PathBuf {
        self.root.join("drivers").join(driver)
    }

    /// The names of the folders in `machines/` or `clusters/`, sorted as people count (`n2` before `n10`), small and
    /// large letters alike.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn names(&self, kind: &str) -> Result<Vec<String>> {
        let folder = self.root.join(kind);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(
                    Error::new(Kind::Io, format!("failed to list `{}`", folder.display()))
                        .because(error),
                );
            }
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| {
                Error::new(Kind::Io, format!("failed to list `{}`", folder.display()))
                    .because(error)
            })?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        sort_names(&mut names);
        Ok(names)
    }
}

/// Sorts names as people count, small and large letters alike.
pub fn sort_names(names: &mut [String]) {
    names.sort_by_cached_key(|name| natural(name));
}

/// Refuses a folder in which docker-machine keeps machines.
///
/// # Errors
/// [`Kind::Refused`] with the command that imports them.
pub fn not_foreign(root: &Path) -> Result<()> {
    foreign::refuse(root, root.join("store.json").exists())
}

/// Refuses a folder that belongs to another user, or that others may write into: what forge writes there
/// would be theirs to change.
fn own(root: &Path) -> Result<()> {
    let found = fs::metadata(root).map_err(|error| {
        Error::new(
            Kind::Io,
            format!("failed to look at the store `{}`", root.display()),
        )
        .because(error)
    })?;
    let me = rustix::process::geteuid().as_raw();
    if found.uid() == me && found.mode() & 0o022 != 0 {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "others may write into the store `{}` (mode {:04o})",
                root.display(),
                found.mode() & 0o7777
            ),
        )
        .hint(format!(
            "`chmod 700 {}` keeps them out; so does `forge doctor --fix`",
            root.display()
        )));
    }
    if found.uid() == me {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "the store `{}` belongs to user {}, not to you (user {me})",
            root.display(),
            found.uid()
        ),
    )
    .hint("set FORGE_HOME to a folder of your own, or run forge as that user"))
}

/// A key under which numbers inside names compare by value, and letters without regard to their case.
fn natural(name: &str) -> Vec<(String, u64)> {
    let name = name.to_lowercase();
    let mut key = Vec::new();
    let mut rest = name.as_str();
    while !rest.is_empty() {
        let text_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text_end);
        let digits_end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        key.push((text.to_owned(), digits.parse().unwrap_or(0)));
        rest = tail;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_twice_finds_the_same_store() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("home");
        assert!(Store::existing(&root).expect("nothing yet").is_none());
        let first = Store::open(&root).expect("made");
        let second = Store::open(&root).expect("found");
        assert_eq!(first.id(), second.id());
        assert_eq!(fs::metadata(&root).expect("stat").mode() & 0o777, 0o700);
        let stray = fs::read_dir(&root)
            .expect("list")
            .filter(|entry| {
                entry
                    .as_ref()
                    .expect("entry")
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".new")
            })
            .count();
        assert_eq!(stray, 0);
    }

    #[test]
    fn a_newer_store_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(
            folder.path().join("store.json"),
            r#"{"format":999,"id":"x"}"#,
        )
        .expect("write");
        let error = Store::open(folder.path()).expect_err("newer");
        assert_eq!(error.kind(), Kind::Newer);
        assert!(!folder.path().join("machines").exists());
    }

    #[test]
    fn names_sort_as_people_count() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("made");
        for name in ["n10", "n2", "a", "N3", ".new-x"] {
            fs::create_dir(store.machine_dir(name)).expect("mkdir");
        }
        assert_eq!(
            store.names("machines").expect("names"),
            ["a", "n2", "N3", "n10"]
        );
    }
}
