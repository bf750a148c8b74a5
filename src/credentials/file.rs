//! The sealed file: for hosts that have no keyring.
//!
//! Names are readable without the passphrase, so that a command asks for it only when the file has what is looked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use forge_driver::{Context, Error, Kind, Result};
use serde_json::{Value, json};

use super::{Ask, Passphrases};
use crate::seal;
use crate::secret::Secret;
use crate::store::{Store, remove_file, write_file};

/// Its name in the store.
pub const FILE: &str = "credentials.sealed";
/// Its first word.
const WHAT: &str = "forge-credentials";
/// It holds no more than this.
const LIMIT: usize = 16 << 20;

/// Secrets by name.
pub type Values = BTreeMap<String, String>;

fn path(store: &Store) -> PathBuf {
    store.root().join(FILE)
}

fn context(store: &Store) -> impl FnOnce(Error) -> Error {
    let path = path(store);
    move |error| error.context(format!("failed to open `{}`", path.display()))
}

/// The file as it is, its first lines read; `None` when there is none.
fn found(store: &Store) -> Result<Option<seal::Sealed<File>>> {
    let path = path(store);
    match File::open(&path) {
        Ok(file) => seal::Sealed::read(file, WHAT)
            .map(Some)
            .map_err(context(store)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
        }
    }
}

/// The names of what it keeps, sorted.
///
/// # Errors
/// When its first lines are damaged.
pub fn names(store: &Store) -> Result<Vec<String>> {
    let Some(sealed) = found(store)? else {
        return Ok(Vec::new());
    };
    let names = sealed.facts()["names"].as_array();
    Ok(names
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect())
}

/// The file of a store, and who knows its passphrase.
pub struct Sealed<'a> {
    store: &'a Store,
    passphrases: &'a dyn Passphrases,
}

impl<'a> Sealed<'a> {
    /// That of `store`.
    pub fn new(store: &'a Store, passphrases: &'a dyn Passphrases) -> Self {
        Self { store, passphrases }
    }

    /// What it keeps; nothing where there is no file.
    ///
    /// # Errors
    /// When the passphrase is not had or not the right one, or the file is damaged.
    pub fn open(&self) -> Result<Values> {
        Ok(self
            .unsealed()?
            .map(|(values, _)| values)
            .unwrap_or_default())
    }

    fn unsealed(&self) -> Result<Option<(Values, Secret)>> {
        let Some(sealed) = found(self.store)? else {
            return Ok(None);
        };
        let passphrase = self
            .passphrases
            .passphrase(&self.what(), Ask::Open)
            .map_err(context(self.store))?;
        let bytes = sealed
            .key(&passphrase)
            .and_then(|key| sealed.unlock(&key)?.all(LIMIT))
            .map_err(context(self.store))?;
        let values = serde_json::from_slice(&bytes).or_fail(Kind::Corrupt, || {
            format!("what `{FILE}` seals is not what it should be")
        })?;
        Ok(Some((values, passphrase)))
    }

    /// Changes what it keeps, and seals it anew under the same passphrase; with nothing left to keep the file goes. The
    /// caller holds the lock. Whether `work` changed anything.
    ///
    /// # Errors
    /// As [`Sealed::open`]; what the file system reports.
    pub fn change(&self, work: impl FnOnce(&mut Values) -> bool) -> Result<bool> {
        let (mut values, passphrase) = match self.unsealed()? {
            Some(found) => found,
            None => (
                Values::new(),
                self.passphrases.passphrase(&self.what(), Ask::New)?,
            ),
        };
        if !work(&mut values) {
            return Ok(false);
        }
        let path = path(self.store);
        if values.is_empty() {
            remove_file(&path)?;
            return Ok(true);
        }
        let names: Vec<&String> = values.keys().collect();
        let facts: Value = json!({ "names": names });
        let mut sealer = seal::Sealer::new(Vec::new(), WHAT, &facts, &passphrase)?;
        let text = serde_json::to_vec(&values)
            .or_fail(Kind::Invalid, || "failed to write the secrets".to_owned())?;
        sealer
            .write_all(&text)
            .or_fail(Kind::Io, || "failed to seal the secrets".to_owned())?;
        write_file(&path, &sealer.finish()?, 0o600)?;
        Ok(true)
    }

    fn what(&self) -> String {
        format!("`{}`", path(self.store).display())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Knows(&'static str);

    impl Passphrases for Knows {
        fn passphrase(&self, _: &str, _: Ask) -> Result<Secret> {
            Ok(self.0.into())
        }
    }

    fn put(name: &'static str, value: &'static str) -> impl FnOnce(&mut Values) -> bool {
        move |values| {
            values.insert(name.to_owned(), value.to_owned());
            true
        }
    }

    #[test]
    fn secrets_come_back_with_the_passphrase_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let right = Sealed::new(&store, &Knows("right"));
        assert!(right.open().expect("none yet").is_empty());
        right.change(put("b", "token-b")).expect("kept");
        right.change(put("a", "token-a")).expect("kept");
        assert_eq!(names(&store).expect("names"), ["a", "b"]);
        let bytes = fs::read(path(&store)).expect("a file");
        assert!(!bytes.windows(6).any(|window| window == b"token-"));
        assert_eq!(right.open().expect("opened")["a"], "token-a");
        let wrong = Sealed::new(&store, &Knows("wrong"));
        assert_eq!(wrong.open().expect_err("wrong").kind(), Kind::Refused);
        wrong.change(put("c", "x")).expect_err("wrong");
        assert_eq!(fs::read(path(&store)).expect("as it was"), bytes);
        // What is cut off is told, and left alone.
        fs::write(path(&store), &bytes[..bytes.len() - 3]).expect("written");
        let error = right.change(put("c", "x")).expect_err("cut off");
        assert_eq!(error.kind(), Kind::Corrupt);
        fs::write(path(&store), &bytes).expect("written");
        assert!(
            !right
                .change(|values| values.remove("z").is_some())
                .expect("nothing")
        );
        for name in ["a", "b"] {
            assert!(
                right
                    .change(|values| values.remove(name).is_some())
                    .expect("gone")
            );
        }
        assert!(!path(&store).exists(), "nothing is left to keep");
    }
}
