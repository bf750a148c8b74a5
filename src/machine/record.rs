//! What is remembered of one machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use forge_driver::atomic::{self, NewFile};
use forge_driver::{Claim, Endpoints, Error, Fact, Forward, Instance, Kind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::companions;
use super::imported::Imported;
use crate::engine;
use crate::engine_options::EngineOptions;
use crate::place::{Role, Zone};
use crate::store::addresses::{Placement, Taken};
use crate::store::{self, Store, read_json};

/// How far a machine has come. Each stage is saved when it is reached, never before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The claim and all keys are on disk; the provider may or may not have been asked.
    Claimed,
    /// The provider has the VM.
    Launched,
    /// SSH answers with the machine's own host key; the seed is blank.
    Reached,
    /// The engine answers over TLS.
    Ready,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Claimed => "claimed",
            Self::Launched => "launched",
            Self::Reached => "reached",
            Self::Ready => "ready",
        })
    }
}

/// The file that holds a record.
const FILE: &str = "machine.json";

/// `machines/<name>/machine.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The visible name, the host name and the name of the folder.
    pub name: String,
    /// The identity of the VM.
    pub claim: Claim,
    /// When the claim was made.
    pub created: Timestamp,
    /// The driver.
    pub driver: String,
    /// The driver's resolved configuration, defaults applied.
    pub config: Value,
    /// Where each value of `config` came from.
    pub origins: BTreeMap<String, String>,
    /// The id of the base image.
    pub image: String,
    /// How far it has come.
    pub stage: Stage,
    /// Its removal has begun: it can only go on.
    #[serde(default)]
    pub leaving: bool,
    /// Where it is reached, decided before the provider was asked.
    pub placement: Placement,
    /// How SSH is entered.
    pub ssh: SshAccess,
    /// What the provider made.
    pub instance: Option<Instance>,
    /// The server certificate that the engine was given.
    pub tls: Option<Tls>,
    /// The one that is on its way to take its place; saved before the machine is given it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewing: Option<Tls>,
    /// What the engine is to be told.
    #[serde(default)]
    pub engine: EngineOptions,
    /// What it was to be told before, and may still be: taken back by the next provisioning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_past: Vec<EngineOptions>,
    /// Names and addresses that the certificate carries besides the machine's own.
    #[serde(default)]
    pub sans: Vec<String>,
    /// Ports published by the user.
    #[serde(default)]
    pub published: Vec<Forward>,
    /// The cluster it belongs to.
    pub member: Option<Member>,
    /// What is known of a host that forge did not make.
    #[serde(default)]
    pub adopted: Option<Adopted>,
    /// Where it came from, when forge did not make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// The file name of the SSH key that forge makes for a machine.
pub const SSH_KEY: &str = "id_ed25519";

/// How SSH is entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// The user.
    pub user: String,
    /// The name of the private key's file beside the record; its public half has `.pub` after it.
    #[serde(default = "ssh_key")]
    pub key: String,
    /// The host key that the seed brought: for first contact only; `None` afterwards.
    pub first_host_key: Option<String>,
    /// The host key that the machine made for itself. While the first key is still recorded, both are
    /// accepted.
    pub own_host_key: Option<String>,
    /// The host keys of a host that was there before forge, as they were when it was trusted.
    #[serde(default)]
    pub accept: Vec<String>,
    /// Keys that certify such a host, under the name that its user gave it.
    #[serde(default)]
    pub authorities: Vec<String>,
}

fn ssh_key() -> String {
    SSH_KEY.to_owned()
}

impl SshAccess {
    /// The host keys that are accepted now.
    pub fn accepted(&self) -> Vec<String> {
        self.own_host_key
            .iter()
            .chain(&self.first_host_key)
            .chain(&self.accept)
            .cloned()
            .collect()
    }
}

/// A host that was there before forge, and stays when forge leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The host, as its user named it; empty where the machine is a name with nothing behind it.
    pub host: String,
    /// A name that leads there from here, also when its address changes.
    #[serde(default)]
    pub name: Option<String>,
    /// The name that its certificates and `known_hosts` have for it, where that is another one.
    #[serde(default)]
    pub alias: Option<String>,
    /// The host that it is reached through.
    #[serde(default)]
    pub jump: Option<Jump>,
    /// Its `sudo` asks for a password, which is recorded nowhere.
    #[serde(default)]
    pub sudo_password: bool,
}

/// A host that another one is reached through. The login there is its user's own: by an agent, or by a key file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// The host, as its user named it: the configuration of `ssh` has keys and agents by that name.
    pub host: String,
    /// The name or address that it is reached by, where that is another one.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The name that `known_hosts` and its certificates have for it, where that is another one still.
    #[serde(default)]
    pub alias: Option<String>,
    /// The port of its SSH server.
    pub port: u16,
    /// The user there.
    pub user: String,
    /// Its host keys.
    pub accept: Vec<String>,
    /// Keys that certify it under that name.
    #[serde(default)]
    pub authorities: Vec<String>,
    /// The configuration of `ssh` to go by, where one was named: the user's file, `~/…` where it lies in their home, or
    /// `none`. Without it the login there is what it is elsewhere.
    #[serde(default)]
    pub config: Option<String>,
}

impl Jump {
    /// The name or address that it is reached by.
    pub fn target(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.host)
    }

    /// The name that `known_hosts` and its certificates have for it.
    pub fn known_as(&self) -> &str {
        self.alias.as_deref().unwrap_or_else(|| self.target())
    }

    /// The port beside that name: an alias stands for host and port (ssh_config(5), HostKeyAlias).
    pub fn known_port(&self) -> u16 {
        match self.alias {
            Some(_) => forge_driver::SSH_PORT,
            None => self.port,
        }
    }
}

/// The server certificate that was issued last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// The names and addresses in it, sorted.
    pub names: Vec<String>,
    /// When it expires.
    pub expires: Timestamp,
    /// SHA-256 of the CA certificate that signed it, in hexadecimal.
    pub authority: String,
}

/// A place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The cluster.
    pub cluster: String,
    /// The role.
    pub role: Role,
    /// The zone, `z1` …
    pub zone: Zone,
}

impl Record {
    /// The record of machine `name`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read as what it should be.
    pub fn find(store: &Store, name: &str) -> Result<Option<Self>> {
        if !valid_name(name) {
            return Ok(None);
        }
        read_json(&record_path(store, name)).map_err(|error| {
            if error.kind() == Kind::Corrupt {
                error.hint(format!("put the file back from a backup; `forge rm -f {name}` removes the machine with what can be found of it"))
            } else {
                error
            }
        })
    }

    /// The record of machine `name`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none.
    pub fn load(store: &Store, name: &str) -> Result<Self> {
        Self::find(store, name)?.ok_or_else(|| Self::missing(name))
    }

    /// That there is no machine `name`.
    pub fn missing(name: &str) -> Error {
        Error::new(Kind::NotFound, format!("machine `{name}` does not exist"))
            .hint("`forge ls` shows the machines; `forge create` makes one")
            .fact(Fact::NoMachine(name.to_owned()))
    }

    /// All records, sorted by name, each with what went wrong reading it.
    ///
    /// # Errors
    /// When the folder of the machines cannot be listed.
    pub fn all(store: &Store) -> Result<Vec<(String, Result<Self>)>> {
        let mut records = Vec::new();
        for name in store.names("machines")? {
            match read_json(&record_path(store, &name)) {
                Ok(Some(record)) => records.push((name, Ok(record))),
                // A folder without a record is what a kill before the first save leaves.
                Ok(None) => {}
                Err(error) => records.push((name, Err(error))),
            }
        }
        Ok(records)
    }

    /// Saves this record, and in the same transaction what follows from it ([`companions`]); what an earlier save that
    /// was cut off has left goes. The caller holds the machine's lock.
    ///
    /// # Errors
    /// What the file system reports; while the old record is there, so are its companions.
    pub fn save(&self, store: &Store) -> Result<()> {
        let folder = store.machine_dir(&self.name);
        let unfinished = atomic::unfinished(&folder)?;
        let mut files = vec![NewFile {
            name: FILE.to_owned(),
            contents: store::json(&record_path(store, &self.name), self)?,
            mode: 0o600,
        }];
        files.extend(companions::outdated(self, store));
        store::write_files(&folder, &files)?;
        unfinished
            .iter()
            .try_for_each(|path| store::remove_file(path))
    }

    /// The driver, as it is shown: of a machine that was imported the one that made it.
    pub fn made_by(&self) -> &str {
        self.imported
            .as_ref()
            .map_or(&self.driver, |imported| &imported.driver)
    }

    /// Wishes something else of its engine; what was wished before is taken back when this is brought about.
    pub fn wish(&mut self, wished: EngineOptions) {
        if wished != self.engine {
            let before = std::mem::replace(&mut self.engine, wished);
            if !self.engine_past.contains(&before) {
                self.engine_past.push(before);
            }
        }
    }

    /// Its address between machines: decided before the provider was asked, or told by it.
    pub fn address(&self) -> Option<Ipv4Addr> {
        let told = || match self.instance.as_ref()?.endpoints.cluster {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        };
        let placed = self.placement.nic.as_ref().map(|nic| nic.address);
        placed.or_else(told)
    }

    /// Where the machine is reached, as the provider says, or as was decided before it was asked.
    ///
    /// # Errors
    /// When neither is known yet.
    pub fn endpoints(&self) -> Result<Endpoints> {
        if self.is_nowhere() {
            return Err(self.nothing_there());
        }
        if let Some(instance) = &self.instance
            && instance.located()
        {
            return Ok(instance.endpoints.clone());
        }
        match (&self.placement.ssh, &self.placement.engine) {
            (Some(ssh), Some(engine)) => Ok(Endpoints {
                ssh: ssh.host,
                engine: engine.host,
                cluster: self.placement.nic.as_ref().map(|nic| nic.address.into()),
                data: None,
                public: None,
            }),
            _ => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "machine `{}` has no address yet: it is {}",
                    self.name, self.stage
                ),
            )
            .hint(match &self.imported {
                Some(_) => format!("`forge start {}` finds out", self.name),
                None => format!("{} goes on with it", self.resumed_by()),
            })),
        }
    }

    /// The command that goes on with what was cut off before the machine was ready.
    pub fn resumed_by(&self) -> String {
        let name = &self.name;
        match &self.member {
            Some(member) => format!("`forge cluster up {}`", member.cluster),
            // Where the host is, the options say.
            None if self.adopted.is_some() => {
                format!(
                    "`forge create --driver {} … {name}`, as it was typed,",
                    self.driver
                )
            }
            None => format!("`forge create --driver {} {name}`", self.driver),
        }
    }

    /// A name that leads there whatever its address is.
    pub fn stable_name(&self) -> Option<&str> {
        self.adopted.as_ref()?.name.as_deref()
    }

    /// The name or address that clients go by: its certificate has to carry it.
    ///
    /// # Errors
    /// When its address is not known yet.
    pub fn engine_host(&self) -> Result<String> {
        let address = self.endpoints()?.engine.ip();
        Ok(self
            .stable_name()
            .map_or_else(|| address.to_string(), str::to_owned))
    }

    /// The name that its engine is asked by over TLS: that of its clients, or the machine's where many share an address.
    ///
    /// # Errors
    /// When its address is not known yet.
    pub fn server_name(&self) -> Result<String> {
        let address = self.endpoints()?.engine.ip();
        Ok(match self.stable_name() {
            Some(name) => name.to_owned(),
            None => engine::server_name(&self.name, address),
        })
    }

    /// The address here that a tunnel to an engine behind another host begins at: another one for each machine, since
    /// its certificate carries it.
    pub fn tunnel(&self) -> Option<Ipv4Addr> {
        self.adopted.as_ref()?.jump.as_ref()?;
        let [.., a, b, c] = *self.claim.bytes();
        // Within 127.64.0.0/10: the addresses of machines that forge makes lie elsewhere (127.133.0.0/16).
        Some(Ipv4Addr::new(127, 64 + (a & 0x3f), b, c.clamp(1, 254)))
    }

    /// The URL of its engine, as DOCKER_HOST names it.
    ///
    /// # Errors
    /// When its address is not known yet.
    pub fn url(&self) -> Result<String> {
        if self.is_nowhere() {
            return Ok("none".to_owned());
        }
        let engine = self.endpoints()?.engine;
        Ok(match self.stable_name() {
            Some(name) => format!("tcp://{name}:{}", engine.port()),
            None => format!("tcp://{engine}"),
        })
    }

    /// Whether it is a name with nothing behind it.
    pub fn is_nowhere(&self) -> bool {
        self.adopted
            .as_ref()
            .is_some_and(|host| host.host.is_empty())
    }

    /// Whether its URL is all that is known: what its user said leads there, whether it is on or not.
    pub fn is_url_alone(&self) -> bool {
        self.adopted.is_some() && self.ssh.user.is_empty()
    }

    /// Why nothing can be asked of a name with nothing behind it.
    pub(super) fn nothing_there(&self) -> Error {
        Error::new(
            Kind::Unavailable,
            format!("machine `{}` is a name with nothing behind it", self.name),
        )
        .hint(format!(
            "`forge rm {0}`, then `forge create --driver none --url tcp://HOST:PORT {0}` makes one whose engine is there",
            self.name
        ))
        .fact(Fact::NotRunning(self.name.clone()))
    }

    /// Whether forge made it. What else is on a machine of others stays as it was found.
    pub fn is_forges(&self) -> bool {
        self.adopted.is_none() && self.imported.is_none()
    }

    /// Whether forge has set up the engine of a machine that came from elsewhere, or has begun to.
    pub fn is_taken_over(&self) -> bool {
        let imported = self.imported.as_ref();
        imported.is_some_and(|imported| imported.certified || self.renewing.is_some())
    }

    /// The names and addresses that its certificate has to carry, sorted.
    ///
    /// # Errors
    /// When its address is not known yet.
    pub fn certificate_names(&self) -> Result<Vec<String>> {
        let endpoints = self.endpoints()?;
        let mut names = vec![self.name.clone()];
        names.push(endpoints.engine.ip().to_string());
        names.extend(self.stable_name().map(str::to_owned));
        names.extend(self.tunnel().map(|address| address.to_string()));
        names.extend(
            [endpoints.cluster, endpoints.data, endpoints.public]
                .into_iter()
                .flatten()
                .map(|address| address.to_string()),
        );
        names.extend(self.sans.iter().cloned());
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// What all records hold. Records that cannot be read are passed over: what they hold is guarded by
/// the order of allocation and by the attempt to bind it.
///
/// # Errors
/// When the folder of the machines cannot be listed.
pub fn taken(store: &Store) -> Result<Taken> {
    let mut taken = Taken::default();
    for (_, record) in Record::all(store)? {
        let Ok(record) = record else {
            taken.unreadable = true;
            continue;
        };
        taken.add(&record.placement, &record.published);
    }
    Ok(taken)
}

fn record_path(store: &Store, name: &str) -> PathBuf {
    store.machine_dir(name).join(FILE)
}

/// Whether `name` can be a machine's: letters, digits, `-` and `.`, starting and ending with a letter
/// or digit, at most 63 characters: it becomes a host name (RFC 1123, section 2.1) and a folder.
pub fn valid_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().last())
        && !name.contains("..")
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
}

/// Refuses a name that cannot be a machine's.
///
/// # Errors
/// [`Kind::Usage`] with the rule.
pub fn check_name(name: &str) -> Result<()> {
    if valid_name(name) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("`{name}` cannot be the name of a machine")).hint(
        "a name has 1 to 63 letters, digits, `-` or `.`, and starts and ends with a letter or digit",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_names() {
        for good in ["n1", "a", "web-1.example", "A1"] {
            check_name(good).expect(good);
        }
        let long = "a".repeat(64);
        for bad in [
            "", "-a", "a-", ".a", "a.", "a..b", "a b", "a/b", "../x", "ä", "a_b", &long,
        ] {
            assert_eq!(check_name(bad).expect_err(bad).kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn both_host_keys_are_accepted_until_the_own_one_is_confirmed() {
        let mut ssh = SshAccess {
            user: "forge".into(),
            key: ssh_key(),
            first_host_key: Some("first".into()),
            own_host_key: None,
            accept: Vec::new(),
            authorities: Vec::new(),
        };
        assert_eq!(ssh.accepted(), ["first"]);
        ssh.own_host_key = Some("own".into());
        assert_eq!(ssh.accepted(), ["own", "first"]);
        ssh.first_host_key = None;
        assert_eq!(ssh.accepted(), ["own"]);
    }

    /// The record of a machine of libvirt's in a cluster, as format 1 had it.
    const FIRST_FORMAT: &str = include_str!("recorded/format-1.json");

    #[test]
    fn a_record_of_the_first_format_is_read_whole_and_saved_in_this_one() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let path = record_path(&store, "default-m1");
        atomic::private_folder(&store.machine_dir("default-m1")).expect("mkdir");
        std::fs::write(&path, FIRST_FORMAT).expect("write");
        let record = Record::load(&store, "default-m1").expect("a record");
        assert_eq!(record.ssh.key, SSH_KEY);
        assert_eq!(record.engine, EngineOptions::default());
        assert!(record.sans.is_empty());
        assert_eq!(
            record.certificate_names().expect("names"),
            ["10.133.8.101", "default-m1"],
            "its certificate still serves"
        );
        record.save(&store).expect("saved");
        assert_eq!(Record::load(&store, "default-m1").expect("again"), record);
        let json = |text: &str| -> serde_json::Map<String, Value> {
            serde_json::from_str(text).expect("JSON")
        };
        let mut saved = json(&std::fs::read_to_string(&path).expect("text"));
        assert_eq!(saved["format"], store::FORMAT);
        // What was there is there as it was, and what is new has its default.
        let (engine, sans) = (saved.remove("engine"), saved.remove("sans"));
        assert_eq!(sans, Some(Value::Array(Vec::new())));
        assert_eq!(engine, serde_json::to_value(EngineOptions::default()).ok());
        let mut first = json(FIRST_FORMAT);
        first["format"] = store::FORMAT.into();
        first["ssh"]["key"] = SSH_KEY.into();
        first["ssh"]["accept"] = Value::Array(Vec::new());
        first["ssh"]["authorities"] = Value::Array(Vec::new());
        first.insert("adopted".to_owned(), Value::Null);
        first["placement"]["served"] = false.into();
        assert_eq!(saved, first);
    }

    #[test]
    fn a_certificate_carries_no_name_that_machines_share() {
        let mut record: Record = serde_json::from_str(FIRST_FORMAT).expect("a record");
        let jump: Jump = serde_json::from_value(serde_json::json!({
            "host": "gate", "port": 22, "user": "me", "accept": [],
        }))
        .expect("a host between");
        assert_eq!((jump.target(), jump.known_as()), ("gate", "gate"));
        record.adopted = Some(Adopted {
            host: "web".to_owned(),
            name: Some("web.example".to_owned()),
            alias: None,
            jump: None,
            sudo_password: false,
        });
        assert_eq!(
            record.certificate_names().expect("names"),
            ["10.133.8.101", "default-m1", "web.example"]
        );
        assert_eq!(record.server_name().expect("a name"), "web.example");
        // Behind another host there is a tunnel alone, which begins at an address of the machine's own.
        record.adopted.as_mut().expect("adopted").jump = Some(jump);
        let tunnel = record.tunnel().expect("an address");
        assert!(tunnel.is_loopback() && (64..128).contains(&tunnel.octets()[1]));
        let names = record.certificate_names().expect("names");
        assert!(names.contains(&tunnel.to_string()), "{names:?}");
        let mut other = record.clone();
        other.claim = Claim::random();
        assert_ne!(other.tunnel(), Some(tunnel));
    }

    #[test]
    fn a_certificate_carries_the_names_that_were_asked_for() {
        let mut record: Record = serde_json::from_str(FIRST_FORMAT).expect("a record");
        record.sans = vec!["swarm.example".into(), "10.133.8.101".into()];
        assert_eq!(
            record.certificate_names().expect("names"),
            ["10.133.8.101", "default-m1", "swarm.example"]
        );
    }
}
