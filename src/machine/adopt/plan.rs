//! What adopting a host changes on it, and what stays: decided before anything is changed, and shown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use forge_driver::{Claim, Error, Kind, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::found::Found;
use crate::engine::settings::{self, Settings, Started, Terms};
use crate::engine_options::{EngineOptions, Install};
use crate::machine::Forge;
use crate::machine::engine::installer;
use crate::playbook::{self, Secrets, Vars};
use crate::remote::Guest;

/// What is on a host besides what starts its engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    values: BTreeMap<String, String>,
}

impl Facts {
    /// Reads what the playbook printed.
    pub fn read(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(' ') {
                facts
                    .values
                    .insert(name.to_owned(), value.trim().to_owned());
            }
        }
        facts
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Its engine runs, and does not answer. Some versions of the client are content then, and say nothing.
    fn silent(&self) -> bool {
        let version = self.values.get("version");
        self.get("silent").is_some() || version.is_some_and(String::is_empty)
    }

    /// Nothing runs in its engine, which is in no swarm.
    fn idle(&self) -> bool {
        self.get("running") == Some("0") && self.get("swarm") == Some("inactive")
    }

    /// The host was adopted as another machine than `ours`, by a store that may be gone.
    pub fn of_others(&self, ours: Option<Claim>) -> bool {
        self.get("claim")
            .is_some_and(|claim| ours.is_none_or(|ours| ours.to_string() != claim))
    }

    /// A firewall that is on, with the command that lets the engine's port through.
    pub fn firewall(&self, port: u16) -> Option<String> {
        Some(match self.get("firewall")? {
            "ufw" => format!("`ufw` is on there: `sudo ufw allow {port}/tcp` lets clients in"),
            _ => format!(
                "`firewalld` is on there: `sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload` lets clients in"
            ),
        })
    }
}

/// What a look at a host came to a moment ago: it need not be asked again.
#[derive(Clone, Debug)]
pub struct Glance {
    /// What is there.
    pub found: Found,
    /// Nothing ran in its engine.
    pub idle: bool,
    /// When that was.
    at: Instant,
}

/// A look counts for so long.
const FRESH: Duration = Duration::from_secs(15);

impl Glance {
    /// Of what [`look`] came to.
    pub fn of(found: Found, facts: &Facts) -> Self {
        Self {
            found,
            idle: facts.idle(),
            at: Instant::now(),
        }
    }

    /// Whether it is so short a time ago that it counts: locks and a second login may have been waited for.
    pub fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

/// Looks at a host; nothing is changed.
///
/// # Errors
/// When it cannot be asked, or its engine's configuration cannot be read.
pub async fn look(forge: &Forge, guest: &dyn Guest, port: u16) -> Result<(Found, Facts)> {
    let found = playbook::load(&forge.assets, "engine/found")?;
    let facts = playbook::load(&forge.assets, "adopt/facts")?;
    let nothing = Vars::new();
    let vars = Vars::new().with("port_hex", format!("{port:04X}"));
    let job = playbook::compile(
        &[(&found, &nothing), (&facts, &vars)],
        &Secrets::new(),
        false,
    )?;
    let report = playbook::run(guest, &job, forge.patience, &|_| {}).await?;
    let text = |at: usize| report.steps.get(at).map_or("", |step| step.output.as_str());
    let facts = Facts::read(text(1));
    let mut found = Found::read(text(0))?;
    // A question costs a slow host as much as all the rest of the script, so the engine is asked one.
    found.storage = facts.get("storage").map(str::to_owned);
    found.swarm = facts.get("swarm").is_some_and(|state| state != "inactive");
    Ok((found, facts))
}

/// What adopting a host changes on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What is there, and stays as it is.
    pub stays: Vec<String>,
    /// What changes.
    pub changes: Vec<String>,
    /// Clients that are there lose their way: something listens at the engine's port already.
    pub takes_over: bool,
    /// Another store of forge's has adopted the host, and loses it.
    pub of_others: bool,
}

impl Plan {
    /// What is to be done for a host where this was found, for a machine that may have been begun (`ours`).
    ///
    /// # Errors
    /// When what is wished contradicts what is found, or there is no way to an engine that can be asked.
    pub fn of(
        (found, facts): (&Found, &Facts),
        ours: Option<Claim>,
        user: &str,
        at: SocketAddr,
        wished: &EngineOptions,
    ) -> Result<Self> {
        let port = at.port();
        if facts.silent() {
            return Err(Error::new(
                Kind::Unavailable,
                "the engine of the host runs, and says nothing at /var/run/docker.sock",
            )
            .because("nobody knows of its containers then, and a restart might end them; nothing was changed")
            .hint("see to it that `docker -H unix:///var/run/docker.sock info` answers there, or stop the engine, then run the same command again"));
        }
        let of_others = facts.of_others(ours);
        let mut stays = vec![format!(
            "the host name {}, users, firewall, kernel and packages",
            facts.get("hostname").unwrap_or("as it is")
        )];
        let mut changes = vec![format!(
            "~/.ssh/authorized_keys of `{user}`: one line more, with a key of forge's own"
        )];
        if found.engine.is_some() {
            let version = facts.get("version").unwrap_or("that does not run");
            stays.push(format!(
                "the engine {version}, storage driver {}",
                facts.get("storage").unwrap_or("as it is")
            ));
            stays.push(format!(
                "{} images, {} containers",
                facts.get("images").unwrap_or("all"),
                facts.get("containers").unwrap_or("all")
            ));
            let terms = Terms {
                listen: at,
                defaults: Map::new(),
                past: Vec::new(),
            };
            let settings = settings::merge(found, wished, &terms)?;
            changes.extend(engine(found, facts, &settings, port)?);
        } else {
            installer(found, &wished.install)?;
            let family = found.os.family().unwrap_or("the distribution");
            let by = match &wished.install {
                Install::Url(url) => format!("by the script at {url}"),
                Install::Packages(packages) => format!("from the packages {}", packages.join(", ")),
                _ => format!("from the packages of {family}"),
            };
            changes.push(format!("a container engine is installed {by}, since there is none; it is started with the host"));
            changes.push(format!("the engine listens at port {port}, over TLS, for clients with a certificate of this store"));
        }
        if of_others {
            changes.push(
                "another store of forge's has adopted the host: that store loses it".to_owned(),
            );
        }
        let known = facts.get("claim").is_some() && !of_others;
        Ok(Self {
            stays,
            changes,
            takes_over: facts.get("listens").is_some() && !known,
            of_others,
        })
    }
}

/// What changes at an engine that is there.
fn engine(found: &Found, facts: &Facts, settings: &Settings, port: u16) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    changes.push(
        "/etc/docker/tls: a certificate for the engine, with its key and its authority".to_owned(),
    );
    if settings.daemon_changes {
        let keys = differing(&found.configuration()?, &settings.daemon);
        changes.push(format!(
            "/etc/docker/daemon.json: {keys}; what else it says stays"
        ));
    }
    let at = format!(
        "the engine listens at port {port} besides, over TLS, for clients with a certificate of this store"
    );
    changes.push(match &settings.start {
        Started::Systemd { machine, .. } => {
            let aside = if *machine {
                "; what docker-machine added to the unit is put aside"
            } else {
                ""
            };
            format!("/etc/systemd/system/docker.service.d/10-forge.conf and /etc/docker/forge.env: {at}{aside}")
        }
        Started::OpenRc { path, .. } => format!("{path}: {at}"),
    });
    let running = facts.get("running").filter(|count| *count != "0");
    changes.push(match (facts.get("swarm"), running) {
        _ if facts.get("version").is_none() => {
            "the engine is started; whether it starts with the host stays as it is".to_owned()
        }
        (Some("inactive") | None, Some(count)) => {
            format!("the engine is restarted once; the {count} containers that run, run on")
        }
        (Some("inactive") | None, None) => "the engine is restarted once".to_owned(),
        (Some(_), _) => "the engine is restarted once; it is in a swarm, and its containers are restarted with it".to_owned(),
    });
    Ok(changes)
}

/// The keys of the configuration that change, by name.
fn differing(before: &Map<String, Value>, after: &str) -> String {
    let after: Map<String, Value> = serde_json::from_str(after).unwrap_or_default();
    let mut keys: Vec<&str> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(*value))
        .map(|(key, _)| key.as_str())
        .collect();
    keys.extend(
        before
            .keys()
            .filter(|key| !after.contains_key(*key))
            .map(String::as_str),
    );
    if keys.is_empty() {
        return "as it was before a restart that was cut off".to_owned();
    }
    format!("the keys {}", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: &str = "\
init systemd
engine /usr/sbin/dockerd
/lib/systemd/system/docker.service:[Service]
/lib/systemd/system/docker.service:ExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS
/lib/systemd/system/docker.service:KillMode=process
/etc/os-release:ID=debian
/etc/docker/daemon.json:{\"labels\": [\"room=7\"]}
";
    const FACTS: &str = "hostname db7\nversion 20.10.24\nstorage overlay2\ncontainers 2\nrunning 1\nimages 3\nswarm inactive\n";

    fn ours() -> Claim {
        serde_json::from_str("\"8f9e4f0a-6a0e-4d4e-9d0a-000000000001\"").expect("a claim")
    }

    fn plan(found: &str, facts: &str, wished: &EngineOptions) -> Result<Plan> {
        let found = Found::read(found).expect("found");
        let at = ([192, 0, 2, 7], 2376).into();
        Plan::of(
            (&found, &Facts::read(facts)),
            Some(ours()),
            "admin",
            at,
            wished,
        )
    }

    #[test]
    fn what_is_there_stays_and_what_changes_is_told_file_by_file() {
        let plan = plan(FOUND, FACTS, &EngineOptions::default()).expect("a plan");
        assert_eq!(
            plan.stays[1..],
            [
                "the engine 20.10.24, storage driver overlay2",
                "3 images, 2 containers"
            ]
        );
        assert!(plan.stays[0].contains("db7"), "{:?}", plan.stays);
        assert_eq!(plan.changes.len(), 4, "{:?}", plan.changes);
        assert!(plan.changes[0].contains("authorized_keys of `admin`"));
        assert!(plan.changes[3].contains("the 1 containers that run, run on"));
        assert!(!plan.takes_over);
    }

    #[test]
    fn wishes_change_their_keys_alone() {
        let wished = EngineOptions {
            labels: vec!["zone=z1".into()],
            ..EngineOptions::default()
        };
        let plan = plan(FOUND, FACTS, &wished).expect("a plan");
        let daemon = plan
            .changes
            .iter()
            .find(|line| line.contains("daemon.json"));
        assert!(
            daemon.expect("a line").contains("the keys labels"),
            "{plan:?}"
        );
    }

    #[test]
    fn a_port_that_is_taken_and_a_swarm_are_told() {
        let facts = format!("{FACTS}listens yes\nswarm active\n");
        let plan = plan(FOUND, &facts, &EngineOptions::default()).expect("a plan");
        assert!(plan.takes_over);
        assert!(plan.changes[3].contains("restarted with it"), "{plan:?}");
        let ours = format!("{facts}claim {}\n", ours());
        let plan = self::plan(FOUND, &ours, &EngineOptions::default()).expect("a plan");
        assert!(!plan.takes_over && !plan.of_others);
        let others = format!("{FACTS}claim 8f9e4f0a-6a0e-4d4e-9d0a-000000000002\n");
        let plan = self::plan(FOUND, &others, &EngineOptions::default()).expect("a plan");
        assert!(plan.of_others);
        assert!(
            plan.changes
                .iter()
                .any(|line| line.contains("that store loses it")),
            "{plan:?}"
        );
    }

    #[test]
    fn an_engine_that_runs_and_is_silent_is_left_alone() {
        for said in ["silent yes", "version \nstorage \ncontainers 0"] {
            let facts = format!("hostname db7\n{said}\n");
            let error = plan(FOUND, &facts, &EngineOptions::default()).expect_err("silent");
            assert!(
                error
                    .line()
                    .contains("says nothing at /var/run/docker.sock"),
                "{}",
                error.line()
            );
        }
    }

    #[test]
    fn a_host_without_an_engine_is_told_that_it_gets_one() {
        let plan = plan(
            "init systemd\n/etc/os-release:ID=debian\n",
            "hostname n\n",
            &EngineOptions::default(),
        )
        .expect("a plan");
        assert!(
            plan.changes[1].contains("installed from the packages of debian"),
            "{plan:?}"
        );
        let of = |install: Install| {
            let wished = EngineOptions {
                install,
                ..EngineOptions::default()
            };
            self::plan("init systemd\n/etc/os-release:ID=plan9\n", "", &wished)
        };
        let plan = of(Install::Url("https://x.example/get".into())).expect("a plan");
        assert!(
            plan.changes[1].contains("by the script at https://x.example/get"),
            "{plan:?}"
        );
        for install in [Install::None, Install::Distribution] {
            let error = of(install).expect_err("no way to an engine");
            assert!(
                error.line().contains("no container engine"),
                "{}",
                error.line()
            );
        }
    }

    #[test]
    fn a_firewall_that_is_on_is_named_with_its_command() {
        let facts = Facts::read("firewall ufw\n");
        assert!(
            facts
                .firewall(2376)
                .expect("one")
                .contains("sudo ufw allow 2376/tcp")
        );
        assert_eq!(Facts::read("").firewall(2376), None);
    }
}
