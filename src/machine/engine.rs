//! The engine of a machine, looked at and told what is wished of it: two scripts over one connection, and between them
//! the decision, which is pure ([`crate::engine::settings`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::access::Connection;
use super::{Forge, Record, live, provision, reach};
use crate::engine::found::Found;
use crate::engine::settings::{self, Settings, Started, Terms};
use crate::engine_options::{EngineOptions, Install};
use crate::event::Events;
use crate::playbook::{self, Secrets, Status, StepResult, Vars};
use crate::remote::Guest;
use crate::secret::Secret;

/// The end of a journal is waited for this long.
const JOURNAL: Duration = Duration::from_secs(30);
/// No line of a journal is shown beyond so many letters.
const WIDEST: usize = 4096;
/// The port that engines listen at, inside of their machines.
const PORT: u16 = 2376;

/// What is found of the engine on the machine behind `guest`; nothing is changed. What only a running engine can tell
/// is asked where a wish depends on it.
///
/// # Errors
/// When the machine cannot be asked, or the engine's configuration there cannot be read.
pub async fn look(forge: &Forge, guest: &dyn Guest, wished: &EngineOptions) -> Result<Found> {
    let book = playbook::load(&forge.assets, "engine/found")?;
    let live_restore = |opt: &String| opt.trim_start_matches('-').starts_with("live-restore");
    let deep = wished.storage_driver.is_some() || wished.opts.iter().any(live_restore);
    let vars = Vars::new().with("deep", deep);
    let job = playbook::compile(&[(&book, &vars)], &Secrets::new(), false)?;
    let report = playbook::run(guest, &job, forge.patience, &|_| {}).await?;
    Found::read(report.steps.first().map_or("", |step| step.output.as_str()))
}

/// What is found of the engine, once there is one: it is installed where there is none.
///
/// `found` is what was found a moment ago.
///
/// # Errors
/// As [`look`]; when no engine can be installed on this distribution.
pub async fn there(
    forge: &Forge,
    record: &Record,
    guest: &dyn Guest,
    found: Option<Found>,
) -> Result<Found> {
    let found = match found {
        Some(found) => found,
        None => look(forge, guest, &record.engine).await?,
    };
    if found.engine.is_some() {
        return Ok(found);
    }
    let (book, vars) = installer(&found, &record.engine.install)?;
    let book = playbook::load(&forge.assets, &format!("engine/{book}"))?;
    let (mark, nothing) = (playbook::load(&forge.assets, "engine/ours")?, Vars::new());
    let mut books = vec![(&book, &vars)];
    if !record.is_forges() {
        books.insert(0, (&mark, &nothing));
    }
    let job = playbook::compile(&books, &Secrets::new(), false)?;
    forge
        .events
        .step("provisioning", "the container engine is installed", None)
        .await;
    playbook::run(guest, &job, forge.patience, &waiting(&forge.events)).await?;
    look(forge, guest, &record.engine).await
}

/// Tells what a step waits for.
fn waiting(events: &Events) -> impl Fn(&StepResult) + Send + Sync + use<> {
    let events = events.clone();
    move |step| {
        if step.status == Status::Waits {
            events.waits(&step.output);
        }
    }
}

/// Brings an engine's packages to their newest version; tells whether another engine than the one that runs is installed now,
/// so that a restart is due. `asked` is the moment of the wish: the same one is carried out once.
///
/// # Errors
/// When there is no engine, or its packages cannot be had.
async fn newest(forge: &Forge, record: &Record, guest: &dyn Guest, asked: &str) -> Result<bool> {
    let found = look(forge, guest, &record.engine).await?;
    let family = found.os.family().ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            format!(
                "forge does not know how packages are upgraded on `{}`",
                found.os.name
            ),
        )
    })?;
    let packages: &[String] = match &record.engine.install {
        Install::Packages(packages) => packages,
        _ => &[],
    };
    let vars = Vars::new().with("packages", packages).with("asked", asked);
    let book = playbook::load(&forge.assets, &format!("engine/{family}"))?;
    let job = playbook::compile(&[(&book, &vars)], &Secrets::new(), false)?;
    let report = playbook::run(guest, &job, forge.patience, &waiting(&forge.events)).await?;
    let installed = report.outputs.get("installed").cloned().unwrap_or_default();
    // An engine that does not answer is started anew.
    let Ok(running) = live::engine(forge, record).await else {
        return Ok(true);
    };
    Ok(!installed
        .split([' ', ','])
        .any(|word| word == running.version))
}

/// Brings the engine of a machine that runs to the newest version of its packages, and restarts it where that is another
/// than the one that runs. Whether it was another. The caller holds the machine's lock.
///
/// # Errors
/// When the machine does not run, or its packages cannot be had.
pub async fn upgrade(forge: &Forge, record: Record) -> Result<bool> {
    match fetched(forge, record).await? {
        None => Ok(false),
        Some((record, open)) => restart(forge, record, &open).await.map(|()| true),
    }
}

/// Brings the packages of a machine that runs to their newest version, and leaves the engine as it runs; `None` where that
/// is the newest. The caller holds the machine's lock.
///
/// # Errors
/// As [`upgrade`].
pub async fn fetched(forge: &Forge, record: Record) -> Result<Option<(Record, Connection)>> {
    let record = live::running(forge, &record).await?;
    let (record, open) = reach::reach(forge, &*forge.driver(&record)?, &record).await?;
    forge
        .events
        .step("upgrading", "the newest packages of the engine", None)
        .await;
    let asked = Timestamp::now().to_string();
    if newest(forge, &record, &*open.guest, &asked).await? {
        return Ok(Some((record, open)));
    }
    forge.events.finished("has the newest engine", false).await;
    Ok(None)
}

/// Restarts the engine of a machine, and waits until it answers.
///
/// # Errors
/// As [`provision::apply`].
pub async fn restart(forge: &Forge, record: Record, open: &Connection) -> Result<()> {
    let peers = crate::cluster::record::peers(&forge.store, &record)?;
    provision::restart(forge, record, open, &peers)
        .await
        .map(|_| ())
}

/// The playbook that installs an engine, and its variables.
///
/// # Errors
/// When none can be installed, or is not to be.
pub fn installer(found: &Found, install: &Install) -> Result<(&'static str, Vars)> {
    let none = || {
        Error::new(
            Kind::Unavailable,
            format!(
                "there is no container engine on this machine, which is `{}`",
                found.os.name
            ),
        )
    };
    let packages = match install {
        Install::Url(url) => return Ok(("url", Vars::new().with("url", url))),
        Install::None => {
            return Err(none()
                .because("it is not to be installed (`--engine-install-url none`)")
                .hint("install it on the machine, then run the same command again"));
        }
        Install::Packages(packages) => packages.as_slice(),
        Install::Distribution => &[],
    };
    let family = found.os.family().ok_or_else(|| {
        none()
            .because("forge does not know how one is installed there")
            .hint("install Docker, then run the same command again")
    })?;
    Ok((family, Vars::new().with("packages", packages)))
}

/// What the engine of a machine is to be told: what is wished, and on forge's own machines what they all have. On a
/// host that was there before forge, everything else stays as it was found.
///
/// # Errors
/// As [`settings::merge`]; when the defaults cannot be read.
pub fn settings(forge: &Forge, record: &Record, found: &Found) -> Result<Settings> {
    let terms = match record.is_forges() {
        true => Terms {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            defaults: defaults(forge)?,
            past: record.engine_past.clone(),
        },
        false => Terms {
            listen: record.endpoints()?.engine,
            defaults: Map::new(),
            past: record.engine_past.clone(),
        },
    };
    settings::merge(found, &record.engine, &terms)
}

/// What the engines of forge's own machines have where nobody says otherwise.
fn defaults(forge: &Forge) -> Result<Map<String, Value>> {
    let path = "templates/docker/daemon.json.tera";
    serde_json::from_str(&forge.assets.read(path)?).or_fail(Kind::Invalid, || {
        format!("`{path}` is not an object of JSON")
    })
}

/// The variables of the playbook `docker`, which writes what an engine reads and restarts it where that has changed:
/// outside of a swarm its containers run on meanwhile. `user` is who runs `docker` without sudo.
pub fn vars(settings: &Settings, ca: &str, certificate: &str, user: Option<&str>) -> Vars {
    let vars = Vars::new()
        .with("user", user.unwrap_or_default())
        .with("ca", ca)
        .with("certificate", certificate)
        .with("daemon", &settings.daemon)
        .with("daemon_changes", settings.daemon_changes)
        .with("before", &settings.before)
        .with("during", &settings.during)
        .with("after", &settings.after)
        .with("live_restore", settings.live_restore)
        .with("had_it", settings.had_it);
    match &settings.start {
        Started::Systemd {
            line,
            keep,
            machine,
            environment,
        } => vars
            .with("init", "systemd")
            .with("line", line)
            .with("keep", keep)
            .with("machine", machine)
            .with("environment", environment),
        Started::OpenRc { path, text } => vars
            .with("init", "openrc")
            .with("conf", path)
            .with("conf_text", text),
    }
}

/// The secrets of the playbook `docker`.
pub fn secrets(server_key: &Secret) -> Secrets {
    Secrets::new().with("server_key", Secret::new(server_key.expose()))
}

/// Why an engine does not answer, with the end of its journal where it can be had.
pub async fn explained(forge: &Forge, guest: &dyn Guest, error: Error) -> Error {
    let journal = match said(forge, guest, "engine/log", &Vars::new()).await {
        Ok(journal) if !journal.is_empty() => journal,
        // The first error is the one to report.
        _ => return error,
    };
    let mut why = error.causes();
    why.push(format!("the end of its journal:\n{journal}"));
    let explained = Error::new(error.kind(), error.message()).because(why.join("\n"));
    match error.deepest_hint() {
        Some(hint) => explained.hint(hint),
        None => explained,
    }
}

/// The last lines that the engine of a machine wrote, whole; so many.
///
/// # Errors
/// When the machine cannot be asked.
pub async fn journal(forge: &Forge, guest: &dyn Guest, lines: usize) -> Result<String> {
    let vars = Vars::new().with("lines", lines).with("width", WIDEST);
    said(forge, guest, "engine/log", &vars).await
}

/// The last lines that the first boot of a machine of forge's wrote; so many.
///
/// # Errors
/// When the machine cannot be asked.
pub async fn first_boot(forge: &Forge, guest: &dyn Guest, lines: usize) -> Result<String> {
    let vars = Vars::new().with("lines", lines);
    said(forge, guest, "first-boot-log", &vars).await
}

/// What the one step of a playbook read.
async fn said(forge: &Forge, guest: &dyn Guest, name: &str, vars: &Vars) -> Result<String> {
    let book = playbook::load(&forge.assets, name)?;
    let job = playbook::compile(&[(&book, vars)], &Secrets::new(), false)?;
    let report = playbook::run(guest, &job, JOURNAL.min(forge.patience), &|_| {}).await?;
    let said = report.steps.first().map_or("", |step| step.output.as_str());
    Ok(said.trim().to_owned())
}
