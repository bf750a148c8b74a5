//! A store of docker-machine's, taken over: its machines work from then on without it. Nothing in it is changed.
//!
//! Of each machine the SSH key, the client's files and the engine's certificate are copied; it goes on to trust the CA
//! that it was made with. Its record comes last, so an import that was cut off is done again from the start, and one
//! that is over changes nothing any more. docker-machine never looked at host keys: none is trusted until somebody
//! vouches for it.

pub mod config;
pub mod keep;
mod keys;
pub mod secrets;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use forge_driver::{Claim, Error, Kind, Mac, Result, atomic};
use forge_virtualbox::Adopted;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

use crate::ca::{self, hex};
use crate::machine::imported::{self, Imported};
use crate::machine::record::valid_name;
use crate::machine::{Forge, Record, SshAccess, Stage, Tls};
use crate::registry;
use crate::store::addresses::Placement;
use crate::store::lock::{Guarded, acquire};
use crate::store::{Store, write_file};

use config::Foreign;
pub use keep::Keeper;
pub use keys::{Shown, pin, shown};

/// The SSH key's name there, which it keeps.
const KEY: &str = "id_rsa";
/// More is neither a key nor a certificate.
const LARGEST: u64 = 1 << 20;

/// A machine of a store of docker-machine's.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// What is to be done with it, or why it cannot be imported.
    pub plan: Result<Plan>,
}

/// What is to be done with a machine.
#[derive(Clone, Debug)]
pub enum Plan {
    /// It is imported.
    New(Box<Foreign>),
    /// It was, but for its secrets, or for what VirtualBox knows of it.
    Rest(Box<Foreign>),
    /// It was imported before.
    There,
}

impl Plan {
    /// Whether something is to be done.
    pub fn changes(&self) -> bool {
        matches!(self, Self::New(_))
    }
}

/// What was done with a machine.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Whether the machine is new here.
    pub new: bool,
    /// Whether anything was changed.
    pub changed: bool,
    /// What does not work with it yet, and how it would.
    pub notes: Vec<String>,
}

/// The machines of the store at `root`, all or those that are named, sorted by name, and what is to be done with each
/// for `store`.
///
/// # Errors
/// When `root` is no store of docker-machine's.
pub fn look(root: &Path, names: &[String], store: Option<&Store>) -> Result<Vec<Found>> {
    let shown = root.display();
    if root.join("store.json").exists() {
        return Err(Error::new(
            Kind::Invalid,
            format!("`{shown}` is a store of forge's, and not docker-machine's"),
        )
        .hint(format!("`forge --storage-path {shown}` works with it")));
    }
    let machines = root.join("machines");
    let listed = fs::read_dir(&machines).map_err(|error| {
        Error::new(
            Kind::NotFound,
            format!("`{shown}` is no store of docker-machine's"),
        )
        .because(format!("`{}`: {error}", machines.display()))
        .hint("`forge import docker-machine PATH` names the folder that holds its `machines`")
    })?;
    let mut there: Vec<String> = listed
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    crate::store::sort_names(&mut there);
    let missing = names.iter().filter(|name| !there.contains(name));
    let mut found: Vec<Found> = missing
        .map(|name| Found {
            name: name.clone(),
            plan: Err(Error::new(
                Kind::NotFound,
                format!("`{shown}` has no machine `{name}`"),
            )),
        })
        .collect();
    for name in there {
        if names.is_empty() || names.contains(&name) {
            let plan = plan(root, &name, store);
            found.push(Found { name, plan });
        }
    }
    Ok(found)
}

fn plan(root: &Path, name: &str, store: Option<&Store>) -> Result<Plan> {
    if !valid_name(name) {
        return Err(Error::new(
            Kind::Invalid,
            format!("machine `{name}` cannot keep its name"),
        )
        .hint("a name has 1 to 63 letters, digits, `-` or `.`, and starts and ends with a letter or digit"));
    }
    let folder = root.join("machines").join(name);
    let foreign = config::read(root, &folder)?;
    let Some(record) = store.map_or(Ok(None), |store| Record::find(store, name))? else {
        return Ok(Plan::New(Box::new(foreign)));
    };
    let source = source(name, &foreign)?;
    match &record.imported {
        Some(imported) if imported.source == source && record.leaving => Err(Error::new(
            Kind::Conflict,
            format!("the removal of machine `{name}` has begun and did not end"),
        )
        .hint(format!("`forge rm {name}` goes on with it; then import it again"))),
        Some(imported) if imported.source == source => {
            let unknown = foreign.driver == VIRTUALBOX && record.config["virtualbox"] == false;
            if unknown || imported.secrets.values().any(Option::is_none) {
                return Ok(Plan::Rest(Box::new(foreign)));
            }
            Ok(Plan::There)
        }
        _ => Err(Error::new(
            Kind::Exists,
            format!("there is another machine `{name}` in the store already"),
        )
        .hint(format!(
            "`forge --storage-path DIR import docker-machine {} {name}` imports it into another store; `forge rm {name}` removes the one that is there",
            root.display()
        ))),
    }
}

const VIRTUALBOX: &str = "virtualbox";

/// What tells a machine from others of its name, and not from a copy of itself.
fn source(name: &str, foreign: &Foreign) -> Result<String> {
    let mut digest = Sha256::new();
    for text in [name, &foreign.driver] {
        digest.update(text);
        digest.update([0]);
    }
    match &foreign.key {
        Some(key) => digest.update(read(key)?),
        None => digest.update(format!("{:?}{:?}", foreign.ssh, foreign.engine)),
    }
    Ok(hex(&digest.finalize()))
}

/// Imports a machine of the store at `root`.
///
/// # Errors
/// When its lock is not had, or files cannot be read or written: then the same command goes on.
pub async fn take(forge: &Forge, root: &Path, name: &str, keeper: &mut Keeper) -> Result<Done> {
    let _lock = acquire(
        &forge.store,
        &Guarded::Machine(name.to_owned()),
        forge.patience,
        &forge.events,
    )
    .await?;
    let folder = root.join("machines").join(name);
    // Another command may have been faster.
    match plan(root, name, Some(&forge.store))? {
        Plan::There => Ok(Done::default()),
        Plan::Rest(foreign) => rest(forge, name, &folder, &foreign, keeper).await,
        Plan::New(foreign) => new(forge, root, name, &foreign, keeper).await,
    }
}

async fn new(
    forge: &Forge,
    root: &Path,
    name: &str,
    foreign: &Foreign,
    keeper: &mut Keeper,
) -> Result<Done> {
    let mut notes = Vec::new();
    let (claim, config) = located(
        forge,
        &root.join("machines").join(name),
        name,
        foreign,
        &mut notes,
    )
    .await?;
    let to = forge.store.machine_dir(name);
    atomic::private_folder(&to)?;
    copy_all(foreign, &to, &mut notes)?;
    let instance = match (&foreign.ssh, foreign.engine.0.as_str()) {
        (_, "") => None,
        (ssh, engine) => {
            let at = forge_driver::locate(engine).await;
            let instance = at.map(|ip| {
                let mut instance = forge_driver::Instance::at(ip, 0, foreign.engine.1);
                if let Some((host, port)) = ssh {
                    let ssh = host.parse().unwrap_or(ip);
                    instance.endpoints.ssh = (ssh, *port).into();
                }
                instance
            });
            match instance {
                Ok(instance) => Some(instance),
                Err(error) => {
                    notes.push(error.line());
                    None
                }
            }
        }
    };
    let record = Record {
        name: name.to_owned(),
        claim,
        created: Timestamp::now(),
        driver: imported::ID.to_owned(),
        config: serde_json::to_value(&config).unwrap_or(Value::Null),
        origins: BTreeMap::new(),
        image: String::new(),
        stage: Stage::Ready,
        leaving: false,
        placement: Placement {
            loopback: None,
            nic: None,
            // Its address is its provider's to tell.
            leased: true,
            served: false,
            outer_mac: Mac::of(claim, 0),
            ssh: None,
            engine: None,
        },
        ssh: SshAccess {
            // Nobody logs in where there is no SSH.
            user: foreign
                .ssh
                .as_ref()
                .map_or_else(String::new, |_| foreign.user.clone()),
            key: KEY.to_owned(),
            first_host_key: None,
            own_host_key: None,
            accept: keys::known(foreign),
            authorities: Vec::new(),
        },
        instance,
        tls: certificate(&to),
        engine: foreign.engine_options.clone(),
        engine_past: Vec::new(),
        sans: foreign.sans.clone(),
        published: Vec::new(),
        member: None,
        renewing: None,
        adopted: None,
        imported: Some(Imported {
            certified: false,
            driver: foreign.driver.clone(),
            fields: foreign.fields.clone(),
            secrets: keeper.keep(forge, name, foreign).await,
            source: source(name, foreign)?,
            at: Timestamp::now(),
        }),
    };
    match &record.tls {
        Some(tls) if tls.expires <= Timestamp::now() => {
            notes.push(format!(
                "the certificate of its engine ended on {}",
                tls.expires.strftime("%Y-%m-%d")
            ));
        }
        Some(_) => {}
        None => notes.push(
            "the certificate of its engine is not there, so when it ends is not known".to_owned(),
        ),
    }
    let told: Vec<&str> = foreign
        .secrets
        .iter()
        .filter_map(|(name, _)| name.strip_prefix(secrets::OF_ENGINE))
        .collect();
    if !told.is_empty() {
        notes.push(format!(
            "its engine was told secrets, which its record leaves out ({}): the engine keeps them, and one that is set up anew has to be told them again",
            told.join(", ")
        ));
    }
    record.save(&forge.store)?;
    Ok(Done {
        new: true,
        changed: true,
        notes,
    })
}

/// How the machine is found from now on: at its address, or by VirtualBox.
async fn located(
    forge: &Forge,
    folder: &Path,
    name: &str,
    foreign: &Foreign,
    notes: &mut Vec<String>,
) -> Result<(Claim, imported::Config)> {
    let config = imported::Config {
        host: foreign.engine.0.clone(),
        ssh: foreign.ssh.as_ref().map(|(_, port)| *port),
        engine: foreign.engine.1,
        virtualbox: false,
    };
    if foreign.driver != VIRTUALBOX {
        return Ok((Claim::random(), config));
    }
    match of_virtualbox(forge, folder, name).await {
        Ok(claim) => Ok((
            claim,
            imported::Config {
                virtualbox: true,
                ..config
            },
        )),
        Err(error) if config.host.is_empty() => Err(error),
        Err(error) => {
            notes.push(format!(
                "{}; the same command again looks for it once more",
                error.line()
            ));
            Ok((Claim::random(), config))
        }
    }
}

/// The UUID of a machine of VirtualBox's whose settings lie where docker-machine put them.
async fn of_virtualbox(forge: &Forge, folder: &Path, name: &str) -> Result<Claim> {
    let home = registry::home(forge, imported::ID)?;
    match Adopted::open(&home).find(name, folder).await {
        Ok(Some(claim)) => Ok(claim),
        Ok(None) => Err(Error::new(
            Kind::NotFound,
            format!(
                "VirtualBox has no machine `{name}` in `{}`",
                folder.display()
            ),
        )),
        Err(error) => {
            Err(error.context(format!("VirtualBox cannot be asked for machine `{name}`")))
        }
    }
}

/// What an earlier import had to leave: its secrets, and its machine of VirtualBox's.
async fn rest(
    forge: &Forge,
    name: &str,
    folder: &Path,
    foreign: &Foreign,
    keeper: &mut Keeper,
) -> Result<Done> {
    let mut record = Record::load(&forge.store, name)?;
    let before = record.clone();
    let mut notes = Vec::new();
    if foreign.driver == VIRTUALBOX && record.config["virtualbox"] == false {
        match of_virtualbox(forge, folder, name).await {
            Ok(claim) => {
                record.claim = claim;
                record.config["virtualbox"] = true.into();
            }
            Err(error) => notes.push(error.line()),
        }
    }
    let missing = |imported: &Imported| imported.secrets.values().any(Option::is_none);
    if let Some(imported) = record
        .imported
        .as_mut()
        .filter(|imported| missing(imported))
    {
        imported.secrets = keeper.keep(forge, name, foreign).await;
    }
    let changed = record != before;
    if changed {
        record.save(&forge.store)?;
    }
    Ok(Done {
        new: false,
        changed,
        notes,
    })
}

/// Copies what the machine is entered with. What is missing keeps it from being entered, not from being imported.
fn copy_all(foreign: &Foreign, to: &Path, notes: &mut Vec<String>) -> Result<()> {
    match (&foreign.key, &foreign.ssh) {
        (Some(key), _) => {
            write_file(&to.join(KEY), &read(key)?, 0o600)?;
            let mut public = key.clone().into_os_string();
            public.push(".pub");
            let public = PathBuf::from(public);
            if public.is_file() {
                write_file(&to.join(format!("{KEY}.pub")), &read(&public)?, 0o644)?;
            }
        }
        (None, Some(_)) => notes.push("it has no SSH key, so SSH does not let forge in".to_owned()),
        (None, None) => {}
    }
    let names = ["ca.pem", "cert.pem", "key.pem"].map(|name| (name, true));
    let own = ["server.pem", "server-key.pem"].map(|name| (name, false));
    let files = foreign.client.iter().chain(&foreign.server);
    for (path, (name, needed)) in files.zip(names.into_iter().chain(own)) {
        if path.is_file() {
            let mode = if name.contains("key") { 0o600 } else { 0o644 };
            write_file(&to.join(name), &read(path)?, mode)?;
        } else if needed {
            notes.push(format!(
                "`{}` is missing, so its engine does not let docker in",
                path.display()
            ));
        }
    }
    Ok(())
}

/// A file of docker-machine's, whole.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = || Error::new(Kind::Io, format!("failed to read `{}`", path.display()));
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text))
        .map_err(|error| failed().because(error))?;
    if text.len() as u64 > LARGEST {
        return Err(failed().because("it is far larger than a key or a certificate"));
    }
    Ok(text)
}

/// What is known of the engine's certificate; `None` where there is none.
fn certificate(folder: &Path) -> Option<Tls> {
    let server = read(&folder.join("server.pem")).ok()?;
    let authority = read(&folder.join("ca.pem")).ok()?;
    let (mut names, ends) = ca::of_certificate(&server, |found| {
        let mut names: Vec<String> = Vec::new();
        if let Ok(Some(alternatives)) = found.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => names.extend(ip(bytes)),
                    _ => {}
                }
            }
        }
        (names, found.validity().not_after.timestamp())
    })
    .ok()?;
    names.sort();
    names.dedup();
    Some(Tls {
        names,
        expires: Timestamp::from_second(ends).ok()?,
        authority: ca::fingerprint(&authority),
    })
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::IpAddr::from(bytes).to_string());
    }
    let bytes = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::IpAddr::from(bytes).to_string())
}
