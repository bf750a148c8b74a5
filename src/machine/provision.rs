//! Provisioning: from a machine that answers SSH to one with an engine and TLS.

use std::net::IpAddr;
use std::time::Duration;

use forge_driver::Result;
use tokio::time::Instant;

use super::access::Connection;
use super::adopt::{self, Glance};
use super::renew::{self, Papers};
use super::{Forge, Record, Stage, Tls, tls};
use crate::ca::{self, Authority};
use crate::context;
use crate::engine::settings::Settings;
use crate::engine::{self, Trust};
use crate::interrupt;
use crate::playbook::{self, Status, Vars};

/// The engine answers over TLS within this time once its playbook is done, or its machine has booted: a
/// manager that lost its power looks for the others first.
const ENGINE_WAIT: Duration = Duration::from_secs(180);
/// One attempt: a connection may have come to an engine that was on its way down or not yet up.
const ENGINE_ATTEMPT: Duration = Duration::from_secs(20);

/// What provisioning came to.
pub struct Provisioned {
    /// The record as saved.
    pub record: Record,
    /// How many steps changed something.
    pub changed: usize,
    /// The user became a member of a group, which sessions that are open do not know of.
    pub regrouped: bool,
}

/// The step of the playbook `docker` that makes the user a member of the engine's group.
const GROUP_STEP: &str = "the user runs docker without sudo";

/// Makes a container host of the machine behind `open`, and proves it by a TLS handshake from outside.
/// With nothing to change it only reads. The caller holds the machine's lock.
///
/// # Errors
/// The step that failed with the end of its output, or why the engine does not answer.
pub async fn apply(
    forge: &Forge,
    record: Record,
    open: &Connection,
    peers: &[IpAddr],
) -> Result<Provisioned> {
    apply_with(forge, record, open, peers, None, false).await
}

/// The same on a host that forge did not make; it is not looked at again where `glance` tells what is there.
///
/// # Errors
/// As [`apply`].
pub async fn apply_to(
    forge: &Forge,
    record: Record,
    open: &Connection,
    glance: Option<Glance>,
) -> Result<Provisioned> {
    let glance = glance.filter(Glance::is_fresh);
    apply_with(forge, record, open, &[], glance, false).await
}

/// The same, with a restart of the engine in any case.
///
/// # Errors
/// As [`apply`].
pub async fn restart(
    forge: &Forge,
    record: Record,
    open: &Connection,
    peers: &[IpAddr],
) -> Result<Provisioned> {
    apply_with(forge, record, open, peers, None, true).await
}

async fn apply_with(
    forge: &Forge,
    record: Record,
    open: &Connection,
    peers: &[IpAddr],
    glance: Option<Glance>,
    restart: bool,
) -> Result<Provisioned> {
    let authority = ca::ensure(&forge.store, forge.patience, &forge.events).await?;
    let (record, papers) = renew::papers(forge, record, &authority)?;
    if papers.fresh {
        tell_of_others(forge, &record, &authority).await;
    }
    let start = Instant::now();
    forge
        .events
        .step(
            "provisioning",
            if record.is_forges() {
                "the playbooks kernel, firewall and docker"
            } else {
                "the playbook docker"
            },
            Some(start + forge.patience),
        )
        .await;
    let asked = glance.is_some();
    let (known, idle) = glance.map_or((None, false), |glance| (Some(glance.found), glance.idle));
    let found = super::engine::there(forge, &record, &*open.guest, known).await?;
    let settings = super::engine::settings(forge, &record, &found)?;
    let how = How {
        asked,
        idle,
        restart,
    };
    let job = job(forge, &record, &settings, &papers, peers, how)?;
    let events = forge.events.clone();
    let report = playbook::run(
        &*open.guest,
        &job,
        forge.patience,
        &|step| match step.status {
            Status::Ok | Status::Skipped => {}
            Status::Waits => events.waits(&step.output),
            status => events.result(
                &format!("{}: {}", step.playbook, step.step),
                &status.to_string(),
            ),
        },
    )
    .await?;
    forge.events.span("provision", start.elapsed()).await;
    let version = match prove(forge, &record, &papers.client.trust()?).await {
        Ok(version) => version,
        Err(error) => {
            let error = if record.is_forges() {
                error
            } else {
                adopt::explained(forge, &record, &*open.guest, error).await
            };
            return Err(super::engine::explained(forge, &*open.guest, error).await);
        }
    };
    let mut record = renew::settle(forge, record, &papers)?;
    if papers.fresh {
        follow(forge, &record).await;
    }
    if let Some(ending) = tls::ending(&forge.store, &record) {
        let (name, remedy) = (&record.name, ending.remedy(&record.name));
        forge
            .events
            .warning(format!("machine `{name}`: {ending}; {remedy}"))
            .await;
    }
    let mut changed = report.changed() + usize::from(papers.fresh);
    let regrouped = report
        .steps
        .iter()
        .any(|step| step.step == GROUP_STEP && step.status == Status::Changed);
    if record.stage != Stage::Ready || !record.engine_past.is_empty() {
        changed += usize::from(record.stage != Stage::Ready);
        record.stage = Stage::Ready;
        record.engine_past.clear();
        record.save(&forge.store)?;
    }
    forge
        .events
        .finished(&format!("ready, engine {}", version.version), changed > 0)
        .await;
    Ok(Provisioned {
        record,
        changed,
        regrouped,
    })
}

/// Tells that clients of docker-machine's store lose their way to an engine that gets a certificate of this one.
async fn tell_of_others(forge: &Forge, record: &Record, authority: &Authority) {
    let with_it = |tls: &Tls| tls.authority == authority.fingerprint();
    if record.imported.is_none() || record.tls.as_ref().is_some_and(with_it) {
        return;
    }
    let name = &record.name;
    forge
        .events
        .warning(format!(
            "the engine of machine `{name}` gets a certificate of this store: whoever shows one of docker-machine's is let in no more"
        ))
        .await;
}

/// Asks the engine over TLS until it answers.
///
/// # Errors
/// The last reason why it did not.
pub async fn prove(forge: &Forge, record: &Record, trust: &Trust) -> Result<engine::Version> {
    let access = forge.access(record)?;
    let address = record.endpoints()?.engine;
    let name = record.server_name()?;
    let deadline = Instant::now() + ENGINE_WAIT.min(forge.patience);
    let mut said = String::new();
    loop {
        let within = deadline
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_secs(1), ENGINE_ATTEMPT);
        let answer = match access.engine(record, within).await {
            Ok(stream) => engine::version(stream, &name, trust, within).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(version) => {
                follow(forge, record).await;
                return Ok(version);
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(error
                    .context(format!(
                        "the engine of machine `{}` does not answer at {address}",
                        record.name
                    ))
                    .hint(format!("`forge logs {}` shows what it says", record.name)));
            }
            Err(error) => {
                interrupt::check()?;
                if said.is_empty() {
                    forge
                        .events
                        .step(
                            "provisioning",
                            "an engine that answers over TLS",
                            Some(deadline),
                        )
                        .await;
                }
                let line = error.line();
                if line != said {
                    forge.events.trouble(&error).await;
                    said = line;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What leads docker to a machine follows whenever its engine was proven.
pub(super) async fn follow(forge: &Forge, record: &Record) {
    if let Err(error) = context::follow(&forge.store, record) {
        let name = &record.name;
        let text = format!(
            "docker's context of machine `{name}` is out of date: {}",
            error.line()
        );
        forge.events.warning(text).await;
    }
}

/// What a script takes for granted, and what it does in any case.
struct How {
    /// The engine of a host of others has answered a moment ago.
    asked: bool,
    /// Nothing ran in it then.
    idle: bool,
    /// The engine restarts.
    restart: bool,
}

/// Everything that a container host of forge's is, as one script.
fn job(
    forge: &Forge,
    record: &Record,
    settings: &Settings,
    papers: &Papers,
    peers: &[IpAddr],
    how: How,
) -> Result<playbook::Job> {
    let mut others: Vec<String> = peers
        .iter()
        .filter(|peer| {
            Some(**peer)
                != record
                    .endpoints()
                    .ok()
                    .and_then(|endpoints| endpoints.cluster)
        })
        .map(ToString::to_string)
        .collect();
    others.sort();
    others.dedup();
    let kernel = playbook::load(&forge.assets, "kernel")?;
    let firewall = playbook::load(&forge.assets, "firewall")?;
    let docker = playbook::load(&forge.assets, "docker")?;
    let nothing = Vars::new();
    let firewall_vars = Vars::new().with("peers", others);
    let ours = record.is_forges();
    let user = ours.then_some(record.ssh.user.as_str());
    let mut docker_vars = super::engine::vars(settings, &papers.client.ca, &papers.server, user);
    if !ours {
        docker_vars = docker_vars
            .with("former", adopt::FORMER)
            .with("idle", how.idle);
    }
    let secrets = super::engine::secrets(&papers.server_key);
    let keep = playbook::load(&forge.assets, "adopt/keep")?;
    let keep_vars = adopt::keeping(record, settings, how.asked);
    let due = playbook::load(&forge.assets, "engine/restart")?;
    // Kernel and firewall of a host that forge did not make are its owner's.
    let mut books = if ours {
        vec![(&kernel, &nothing), (&firewall, &firewall_vars)]
    } else {
        vec![(&keep, &keep_vars)]
    };
    if how.restart {
        books.push((&due, &nothing));
    }
    books.push((&docker, &docker_vars));
    playbook::compile(&books, &secrets, false)
}
