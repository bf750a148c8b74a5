//! Contexts of the `docker` client that lead to machines, written into its own folder as it writes them.
//!
//! Format: docker/cli, `cli/context/store` (`contexts/meta/<SHA-256 of the name>/meta.json`, and beside it below
//! `contexts/tls/` the files of each endpoint) and `cli/config` (`currentContext` in `config.json`). `docker context create`
//! is not called: the client may be missing, making and choosing would be two steps, and an update there forgets the
//! certificates.
//!
//! A context is a machine's when its description says so, with the store's id: no record holds that there is one, so
//! nothing has to agree. Anything else under its name is somebody else's and stays.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forge_driver::atomic::{self, NewFile};
use forge_driver::{Context as _, Error, Kind, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::ca::hex;
use crate::machine::Record;
use crate::store::Store;

/// The files of a machine's folder by which `docker` proves itself and the engine.
const PAIR: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
/// Where `docker` keeps what it is configured to do.
const CONFIG: &str = "config.json";
/// The key of the context that is used where nothing else is said.
const CURRENT: &str = "currentContext";

/// The folder of the `docker` client.
#[derive(Clone, Debug)]
pub struct Docker {
    folder: PathBuf,
}

/// The context of a machine: its name, except where `docker` could not take that (`default` is its own, and a name has
/// two characters at least).
pub fn name(machine: &str) -> String {
    if machine == "default" || machine.len() < 2 {
        format!("forge-{machine}")
    } else {
        machine.to_owned()
    }
}

/// Brings the context of a machine up to date, where it has one: after its certificates were renewed, or its address is
/// another one. Whether anything changed. The caller holds the machine's lock.
///
/// # Errors
/// As [`Docker::write`].
pub fn follow(store: &Store, record: &Record) -> Result<bool> {
    match Docker::of_user() {
        Some(docker) if docker.owns(store, &record.name) => docker.write(store, record),
        _ => Ok(false),
    }
}

/// Removes the context of a machine, where it has one. Whether it had.
///
/// # Errors
/// As [`Docker::remove`].
pub fn forget(store: &Store, machine: &str) -> Result<bool> {
    match Docker::of_user() {
        Some(docker) => docker.remove(store, machine),
        None => Ok(false),
    }
}

impl Docker {
    /// The user's: `DOCKER_CONFIG`, else `~/.docker`; `None` where there is no home.
    pub fn of_user() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = match variable("DOCKER_CONFIG") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(variable("HOME")?).join(".docker"),
        };
        Some(Self { folder })
    }

    /// The one in this folder.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Whether the context under the machine's name is the machine's.
    pub fn owns(&self, store: &Store, machine: &str) -> bool {
        matches!(self.found(store, machine), Found::Ours(_))
    }

    /// Writes the context of a machine; whether anything changed. What names it as the machine's is on disk first, so
    /// that what a kill leaves is removed with the machine. The caller holds the machine's lock.
    ///
    /// # Errors
    /// [`Kind::Refused`] when a context of that name is somebody else's; when the machine's files are not whole, or
    /// nothing can be written.
    pub fn write(&self, store: &Store, record: &Record) -> Result<bool> {
        let context = name(&record.name);
        let old = match self.found(store, &record.name) {
            Found::Foreign => {
                return Err(Error::new(
                    Kind::Refused,
                    format!("docker has a context `{context}` that is not this machine's"),
                )
                .hint(format!(
                    "`docker context inspect {context}` shows it, `docker context rm {context}` makes room; `eval $(forge env {})` needs none",
                    record.name
                )));
            }
            Found::Ours(text) => text,
            Found::None => Vec::new(),
        };
        let pair = pair(store, record)?;
        let meta = meta(store, record)?;
        let mut changed = old != meta;
        if changed {
            let folder = self.meta(&context);
            atomic::private_folder(&folder)?;
            atomic::write(&folder.join("meta.json"), &meta, 0o644)?;
        }
        let folder = self.tls(&context).join("docker");
        let outdated: Vec<NewFile> = pair
            .into_iter()
            .filter(|file| fs::read(folder.join(&file.name)).ok().as_ref() != Some(&file.contents))
            .collect();
        if !outdated.is_empty() {
            atomic::private_folder(&folder)?;
            atomic::write_all(&folder, &outdated, |_| {})?;
            changed = true;
        }
        Ok(changed)
    }

    /// Removes the context of a machine and chooses none when it was the chosen one; whether it had one. What names it as the
    /// machine's goes last, so that the same command goes on after a kill.
    ///
    /// # Errors
    /// What the file system reports; when `docker`'s configuration cannot be understood.
    pub fn remove(&self, store: &Store, machine: &str) -> Result<bool> {
        if !self.owns(store, machine) {
            return Ok(false);
        }
        let context = name(machine);
        if self.chosen()?.as_deref() == Some(&context) {
            self.choose(None)?;
        }
        for folder in [self.tls(&context), self.meta(&context)] {
            atomic::gone(fs::remove_dir_all(&folder), &folder)?;
        }
        Ok(true)
    }

    /// The context that is used where nothing else is said.
    ///
    /// # Errors
    /// When the configuration cannot be understood.
    pub fn chosen(&self) -> Result<Option<String>> {
        let chosen = self.configuration()?;
        let chosen = chosen.get(CURRENT).and_then(Value::as_str);
        Ok(chosen
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned))
    }

    /// Makes a context the one that is used where nothing else is said, or none. Whether that is new. All else that the
    /// configuration holds is kept.
    ///
    /// # Errors
    /// When the configuration cannot be understood or written; it is then as it was.
    pub fn choose(&self, context: Option<&str>) -> Result<bool> {
        let mut whole = self.configuration()?;
        if whole.get(CURRENT).and_then(Value::as_str) == context {
            return Ok(false);
        }
        match context {
            Some(context) => whole.insert(CURRENT.to_owned(), json!(context)),
            None => whole.remove(CURRENT),
        };
        // Who keeps the file elsewhere keeps the link to it.
        let path = self.folder.join(CONFIG);
        let path = fs::canonicalize(&path).unwrap_or(path);
        let mode = fs::metadata(&path).map_or(0o600, |found| found.permissions().mode() & 0o777);
        atomic::private_folder(&self.folder)?;
        // As docker indents it.
        let mut text = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut writer = serde_json::Serializer::with_formatter(&mut text, tabs);
        serde::Serialize::serialize(&whole, &mut writer).or_fail(Kind::Invalid, || {
            "failed to write docker's configuration".to_owned()
        })?;
        atomic::write(&path, &text, mode)?;
        Ok(true)
    }

    fn configuration(&self) -> Result<Map<String, Value>> {
        let path = self.folder.join(CONFIG);
        let failed = || format!("failed to read docker's configuration `{}`", path.display());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(Error::new(Kind::Io, failed()).because(error)),
        };
        if text.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_slice(&text).or_fail(Kind::Invalid, failed)
    }

    fn found(&self, store: &Store, machine: &str) -> Found {
        match fs::read(self.meta(&name(machine)).join("meta.json")) {
            Ok(text) => {
                let meta: Value = serde_json::from_slice(&text).unwrap_or_default();
                if meta["Metadata"]["Description"] == json!(description(store, machine)) {
                    Found::Ours(text)
                } else {
                    Found::Foreign
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Found::None,
            Err(_) => Found::Foreign,
        }
    }

    fn meta(&self, context: &str) -> PathBuf {
        self.folder.join("contexts/meta").join(folder(context))
    }

    fn tls(&self, context: &str) -> PathBuf {
        self.folder.join("contexts/tls").join(folder(context))
    }
}

/// What lies under the name of a machine's context.
enum Found {
    None,
    /// The text of its `meta.json`.
    Ours(Vec<u8>),
    Foreign,
}

/// The name of a context's folder.
fn folder(context: &str) -> String {
    hex(&Sha256::digest(context.as_bytes()))
}

/// By this a context is known as the machine's; `docker context ls` shows it.
fn description(store: &Store, machine: &str) -> String {
    format!("machine {machine} of forge, store {}", store.id())
}

fn meta(store: &Store, record: &Record) -> Result<Vec<u8>> {
    let url = format!("tcp://{}", record.endpoints()?.engine);
    let meta = json!({
        "Name": name(&record.name),
        "Metadata": {"Description": description(store, &record.name)},
        "Endpoints": {"docker": {"Host": url, "SkipTLSVerify": false}},
    });
    Ok(meta.to_string().into_bytes())
}

/// The files by which the client and the engine prove themselves; none where the engine is reached without.
fn pair(store: &Store, record: &Record) -> Result<Vec<NewFile>> {
    let folder = store.machine_dir(&record.name);
    let mut files = Vec::new();
    for name in PAIR {
        match fs::read(folder.join(name)) {
            Ok(contents) => files.push(NewFile {
                name: name.to_owned(),
                contents,
                mode: 0o600,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let path = folder.join(name);
                return Err(
                    Error::new(Kind::Io, format!("failed to read `{}`", path.display()))
                        .because(error),
                );
            }
        }
    }
    if files.is_empty() || files.len() == PAIR.len() {
        return Ok(files);
    }
    Err(Error::new(
        Kind::NotFound,
        format!("certificates of machine `{}` are missing", record.name),
    )
    .hint(format!("`forge provision {}` writes them", record.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(folder: &Path) -> Docker {
        Docker::at(&folder.join("docker"))
    }

    #[test]
    fn names_that_docker_keeps_for_itself_get_another_one() {
        for (machine, context) in [("n1", "n1"), ("default", "forge-default"), ("a", "forge-a")] {
            assert_eq!(name(machine), context);
        }
        // docker/cli's own example of a folder.
        assert_eq!(
            folder("test"),
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        );
    }

    #[test]
    fn what_else_docker_is_configured_to_do_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let docker = at(folder.path());
        assert!(!docker.choose(None).expect("nothing to do"));
        assert!(!folder.path().join("docker").exists());
        assert!(docker.choose(Some("n1")).expect("chosen"));
        let path = folder.path().join("docker/config.json");
        let text = |path: &Path| fs::read_to_string(path).expect("text");
        assert_eq!(text(&path), "{\n\t\"currentContext\": \"n1\"\n}");
        let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        // Somebody's file, behind a link.
        let kept = folder.path().join("dotfiles.json");
        fs::write(
            &kept,
            r#"{"auths":{"r":{"auth":"x"}},"proxies":{},"currentContext":"old"}"#,
        )
        .expect("written");
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o640)).expect("chmod");
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(&kept, &path).expect("a link");
        assert!(docker.choose(Some("n1")).expect("chosen"));
        assert!(!docker.choose(Some("n1")).expect("chosen already"));
        assert_eq!(docker.chosen().expect("read").as_deref(), Some("n1"));
        assert!(path.is_symlink());
        assert_eq!(mode(&kept), 0o640);
        let whole: Value = serde_json::from_str(&text(&kept)).expect("JSON");
        assert_eq!(
            whole,
            json!({"auths": {"r": {"auth": "x"}}, "proxies": {}, "currentContext": "n1"})
        );
        assert!(docker.choose(None).expect("none"));
        let whole: Value = serde_json::from_str(&text(&kept)).expect("JSON");
        assert_eq!(whole, json!({"auths": {"r": {"auth": "x"}}, "proxies": {}}));
    }

    #[test]
    fn a_configuration_that_is_none_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("docker/config.json");
        atomic::private_folder(path.parent().expect("a folder")).expect("mkdir");
        for text in ["{\"auths\": ", "[]"] {
            fs::write(&path, text).expect("written");
            let error = at(folder.path()).choose(Some("n1")).expect_err("no JSON");
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(
                error.message().contains("config.json"),
                "{}",
                error.message()
            );
            assert_eq!(fs::read_to_string(&path).expect("text"), text);
        }
        fs::write(&path, "\n").expect("written");
        assert!(at(folder.path()).choose(Some("n1")).expect("chosen"));
    }
}
