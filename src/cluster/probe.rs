//! One published port, asked through every node: what shows that a swarm carries traffic, where the
//! list of nodes cannot. On a kernel without ip_vs everything looks healthy and published ports refuse
//! connections (moby#24005).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use forge_driver::{Error, Kind, Result};

use super::node::{Availability, Health};
use super::responder::{self, Architecture};
use super::swarm::{self, docker};
use crate::playbook;
use crate::remote::Guest;

/// Services and images of the probe carry this label, so that what one left behind is recognised.
pub const LABEL: &str = "forge.probe";

/// The port inside the container. The published one is the swarm's choice: it collides with nothing.
const PORT: u16 = 8080;

/// How long an engine is given for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How long one question may take.
const QUESTION: u64 = 3;

/// How long the removal of service and image may take.
const CLEANUP: Duration = Duration::from_secs(45);

/// A member of the swarm that can be asked to ask.
#[derive(Clone, Copy)]
pub struct Peer<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// Its node id.
    pub node_id: &'a str,
    /// Its address between the machines.
    pub address: Ipv4Addr,
    /// The way in.
    pub guest: &'a dyn Guest,
}

/// One target, asked by one asker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Who asked: another node than the target, unless there is no other.
    pub asker: String,
    /// Whose address was asked.
    pub target: String,
    /// What went wrong last; `None` when the answer was right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A probe, done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The machine on which the task ran.
    pub task_on: String,
    /// The port that was published.
    pub port: u16,
    /// The answers, in the order of the peers.
    pub answers: Vec<Answer>,
    /// What could not be removed afterwards; the next probe tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_behind: Option<String>,
}

impl Probed {
    /// Whether every target answered.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.answers.iter().all(|answer| answer.error.is_none())
    }
}

/// For each of `count` targets the index of its asker: the next one round.
#[must_use]
pub fn askers(count: usize) -> Vec<usize> {
    (0..count).map(|target| (target + 1) % count).collect()
}

/// Publishes a port of one task and asks for it at every peer, within `deadline` for all of them.
///
/// The caller holds the cluster's lock: what earlier probes left behind is removed first. Service and
/// image are removed afterwards, also when something failed.
///
/// # Errors
/// When the service could not be set up. That a target does not answer is an answer.
pub async fn probe(
    manager: &dyn Guest,
    peers: &[Peer<'_>],
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<Probed> {
    sweep(manager, peers).await?;
    let host = host(manager, peers).await?;
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let name = format!(
        "forge-probe-{since}-{}",
        &Uuid::new_v4().simple().to_string()[..8]
    );
    let outcome = ask(manager, peers, host, &name, deadline, on_trouble).await;
    let removed = remove(manager, host.guest).await;
    match (outcome, removed) {
        (Ok(probed), Ok(())) => Ok(probed),
        (Ok(probed), Err(error)) => Ok(Probed {
            left_behind: Some(error.line()),
            ..probed
        }),
        (Err(error), _) => Err(error.context("failed to probe a published port")),
    }
}

/// The peer that gets the task: the first that takes any.
async fn host<'a, 'b>(manager: &dyn Guest, peers: &'a [Peer<'b>]) -> Result<&'a Peer<'b>> {
    let nodes = swarm::nodes(manager).await?;
    let takes = |peer: &&Peer<'_>| {
        nodes.iter().any(|node| {
            node.id == peer.node_id
                && node.health == Health::Ready
                && node.availability == Availability::Active
        })
    };
    peers.iter().find(takes).ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            "no node takes tasks, so no published port can be probed",
        )
    })
}

async fn ask(
    manager: &dyn Guest,
    peers: &[Peer<'_>],
    host: &Peer<'_>,
    name: &str,
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<Probed> {
    let architecture = docker(host.guest, "info --format '{{.Architecture}}'", b"", ANSWER).await?;
    let program = responder::executable(
        Architecture::parse(architecture.trim())?,
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT),
        name,
    );
    let label = format!("{LABEL}={name}");
    let import = format!(
        "import --change {} --change {} - {name}:latest",
        playbook::quote(responder::ENTRYPOINT),
        playbook::quote(&format!("LABEL {label}")),
    );
    let image = docker(host.guest, &import, &responder::archive(&program), ANSWER).await?;
    // An image named by its id is not looked for in a registry (moby, daemon/cluster/executor/container,
    // pullImage). The program has no handler for SIGTERM, which the first process of a container then
    // ignores: it is killed.
    let create = format!(
        "service create --detach --quiet --no-resolve-image --name {name} --label {label} \
         --constraint {} --publish target={PORT} --stop-signal SIGKILL --restart-delay 1s {}",
        playbook::quote(&format!("node.id=={}", host.node_id)),
        playbook::quote(image.trim()),
    );
    docker(manager, &create, b"", ANSWER).await?;
    let end = Instant::now() + deadline;
    let port = published(manager, name, end).await?;
    let mut answers = Vec::new();
    for (target, asker) in peers.iter().zip(askers(peers.len())) {
        let asker = &peers[asker];
        let error = loop {
            match question(asker.guest, target.address, port, name).await {
                Ok(()) => break None,
                Err(error) if Instant::now() >= end => break Some(error.line()),
                Err(error) => on_trouble(&format!(
                    "`{}` asked `{}`: {}",
                    asker.machine,
                    target.machine,
                    error.line()
                )),
            }
            sleep(Duration::from_millis(300)).await;
        };
        answers.push(Answer {
            asker: asker.machine.to_owned(),
            target: target.machine.to_owned(),
            error: match error {
                Some(error) => Some(match task(manager, name).await {
                    Ok(state) if !state.is_empty() => format!("{error}; the task: {state}"),
                    _ => error,
                }),
                None => None,
            },
        });
    }
    Ok(Probed {
        task_on: host.machine.to_owned(),
        port,
        answers,
        left_behind: None,
    })
}

/// The port that the swarm chose for the service.
async fn published(manager: &dyn Guest, name: &str, end: Instant) -> Result<u16> {
    let words = format!(
        "service inspect --format '{{{{range .Endpoint.Ports}}}}{{{{.PublishedPort}}}}{{{{end}}}}' {name}"
    );
    loop {
        let text = docker(manager, &words, b"", ANSWER).await?;
        match text.trim().parse() {
            Ok(port) if port > 0 => return Ok(port),
            _ if Instant::now() >= end => {
                return Err(Error::new(
                    Kind::Timeout,
                    "the swarm published no port for its service",
                )
                .because(task(manager, name).await.unwrap_or_default()));
            }
            _ => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// How the task is, in the engine's words.
async fn task(manager: &dyn Guest, name: &str) -> Result<String> {
    let words =
        format!("service ps --no-trunc --format '{{{{.CurrentState}}}} {{{{.Error}}}}' {name}");
    let text = docker(manager, &words, b"", ANSWER).await?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Asks once, from the machine of `asker`.
async fn question(asker: &dyn Guest, target: Ipv4Addr, port: u16, expected: &str) -> Result<()> {
    let command = format!(
        "timeout {} curl -sS --max-time {QUESTION} http://{target}:{port}/",
        QUESTION + 2
    );
    let output = asker
        .exec(&command, b"", Duration::from_secs(QUESTION + 15))
        .await?;
    let failed = |reason: String| {
        Error::new(Kind::Failed, format!("`{target}:{port}` does not answer")).because(reason)
    };
    match output.status {
        0 if output.text() == expected => Ok(()),
        0 => Err(failed("something else answered".to_owned())),
        127 => Err(Error::new(
            Kind::Unavailable,
            "curl is not installed on the machine that asks",
        )),
        _ => Err(failed(output.error_text().trim().to_owned())),
    }
}

/// Removes what earlier probes left behind, here and there.
async fn sweep(manager: &dyn Guest, peers: &[Peer<'_>]) -> Result<()> {
    remove_services(manager).await?;
    for peer in peers {
        remove_images(peer.guest).await?;
    }
    Ok(())
}

async fn remove(manager: &dyn Guest, host: &dyn Guest) -> Result<()> {
    let services = remove_services(manager).await;
    let images = remove_images(host).await;
    services.and(images)
}

async fn remove_services(manager: &dyn Guest) -> Result<()> {
    let words = format!(
        "service ls -q --filter label={LABEL} | {{ ids=$(cat); [ -z \"$ids\" ] || timeout -k 5 20 docker service rm $ids >/dev/null; }}"
    );
    docker(manager, &words, b"", ANSWER).await.map(|_| ())
}

/// Removes the images, as soon as the engine has removed the containers made from them.
async fn remove_images(guest: &dyn Guest) -> Result<()> {
    let words = format!(
        "image ls -q --filter label={LABEL} | {{ ids=$(cat); [ -z \"$ids\" ] || timeout -k 5 20 docker image rm -f $ids >/dev/null; }}"
    );
    swarm::until(
        CLEANUP,
        "the image of the probe cannot be removed",
        &|_| {},
        || async { docker(guest, &words, b"", ANSWER).await.map(|_| Ok(())) },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_asked_by_another() {
        assert_eq!(askers(0), Vec::<usize>::new());
        assert_eq!(askers(1), [0]);
        for count in 2..10 {
            let askers = askers(count);
            assert_eq!(askers.len(), count);
            assert!(
                askers
                    .iter()
                    .enumerate()
                    .all(|(target, &asker)| target != asker && asker < count)
            );
        }
    }

    #[test]
    fn one_silent_target_is_a_failure() {
        let answer = |error: Option<&str>| Answer {
            asker: "a".to_owned(),
            target: "b".to_owned(),
            error: error.map(str::to_owned),
        };
        let mut probed = Probed {
            task_on: "a".to_owned(),
            port: 30000,
            answers: vec![answer(None), answer(None)],
            left_behind: None,
        };
        assert!(probed.passed());
        probed.answers[1] = answer(Some("refused"));
        assert!(!probed.passed());
    }
}
