//! What adopting a host changes on it, and what stays: decided before anything is changed, and shown.

use std::collections::BTreeMap;

use forge_driver::Result;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::found::Found;
use crate::engine::settings::{self, Settings, Started, Terms};
use crate::engine_options::EngineOptions;
use crate::machine::Forge;
use crate::playbook::{self, Secrets, Vars};
use crate::remote::Guest;

/// What is on a host besides what starts its engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    values: BTreeMap<String, String>,
    /// What `daemon.json` was before forge; `None` when it was not there.
    pub(super) daemon_before: Option<String>,
}

/// The file that holds it.
const BEFORE: &str = "/var/lib/forge/before/etc_docker_daemon.json";

impl Facts {
    /// Reads what the playbook printed.
    pub fn read(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            if let Some(rest) = line
                .strip_prefix(BEFORE)
                .and_then(|rest| rest.strip_prefix(':'))
            {
                let daemon = facts.daemon_before.get_or_insert_default();
                daemon.push_str(rest);
                daemon.push('\n');
            } else if let Some((name, value)) = line.split_once(' ') {
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

/// Looks at a host; nothing is changed.
///
/// # Errors
/// When it cannot be asked, or its engine's configuration cannot be read.
pub async fn look(forge: &Forge, guest: &dyn Guest, port: u16) -> Result<(Found, Facts)> {
    let found = playbook::load(&forge.assets, "engine/found")?;
    let facts = playbook::load(&forge.assets, "adopt/facts")?;
    let deep = Vars::new().with("deep", true);
    let vars = Vars::new().with("port_hex", format!("{port:04X}"));
    let job = playbook::compile(&[(&found, &deep), (&facts, &vars)], &Secrets::new(), false)?;
    let report = playbook::run(guest, &job, forge.patience, &|_| {}).await?;
    let text = |at: usize| report.steps.get(at).map_or("", |step| step.output.as_str());
    Ok((Found::read(text(0))?, Facts::read(text(1))))
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
}

impl Plan {
    /// What is to be done for a host where this was found.
    ///
    /// # Errors
    /// When what is wished contradicts what is found, or there is no way to an engine.
    pub fn of(
        (found, facts): (&Found, &Facts),
        user: &str,
        port: u16,
        wished: &EngineOptions,
    ) -> Result<Self> {
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
                port,
                defaults: Map::new(),
                keep_storage: true,
                past: Vec::new(),
            };
            let settings = settings::merge(found, wished, &terms)?;
            changes.extend(engine(found, facts, &settings, port)?);
        } else {
            let family = found.os.family().unwrap_or("the distribution");
            changes.push(format!(
                "a container engine is installed from the packages of {family}, since there is none"
            ));
            changes.push(format!("the engine listens at port {port}, over TLS, for clients with a certificate of this store"));
        }
        Ok(Self {
            stays,
            changes,
            takes_over: facts.get("listens").is_some() && facts.get("kept").is_none(),
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

/// The texts of `daemon.json` on the way back to what it was: what is there and what was, with containers that outlive
/// the engine, what was without them in words, and whether what was has them outlive it anyway.
///
/// # Errors
/// When one of them is no configuration.
pub(super) fn way_back(found: &Found, facts: &Facts) -> Result<Vars> {
    let was = Found {
        daemon: facts.daemon_before.clone(),
        ..found.clone()
    };
    let (is, was) = (found.configuration()?, was.configuration()?);
    let key = "live-restore";
    let with = |file: &Map<String, Value>, on: bool| {
        let mut file = file.clone();
        file.insert(key.to_owned(), on.into());
        // An object of JSON values is always JSON.
        format!(
            "{}\n",
            serde_json::to_string_pretty(&file).unwrap_or_default()
        )
    };
    Ok(Vars::new()
        .with("before", with(&is, true))
        .with("during", with(&was, true))
        .with("after", with(&was, false))
        .with("live_restore", was.get(key) == Some(&Value::Bool(true))))
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

    fn plan(found: &str, facts: &str, wished: &EngineOptions) -> Result<Plan> {
        let found = Found::read(found).expect("found");
        Plan::of((&found, &Facts::read(facts)), "admin", 2376, wished)
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
        let ours = format!("{facts}kept yes\n");
        assert!(
            !self::plan(FOUND, &ours, &EngineOptions::default())
                .expect("a plan")
                .takes_over
        );
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
    }

    #[test]
    fn the_way_back_leads_to_what_was() {
        let found = Found::read(FOUND).expect("found");
        let facts = Facts::read(&format!(
            "{BEFORE}:{{\n{BEFORE}:\"debug\": true}}\nkept yes\n"
        ));
        let vars = way_back(&found, &facts).expect("a way").0;
        let json = |name: &str| -> Value {
            serde_json::from_str(vars[name].as_str().expect("a text")).expect("JSON")
        };
        assert_eq!(
            json("before"),
            serde_json::json!({"labels": ["room=7"], "live-restore": true})
        );
        assert_eq!(
            json("during"),
            serde_json::json!({"debug": true, "live-restore": true})
        );
        assert_eq!(
            json("after"),
            serde_json::json!({"debug": true, "live-restore": false})
        );
        assert_eq!(vars["live_restore"], false);
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
