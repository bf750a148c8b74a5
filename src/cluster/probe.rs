//! One published port, asked through every node: what shows that a swarm carries traffic, where the
//! list of nodes cannot. On a kernel without ip_vs everything looks healthy and published ports refuse
//! connections (moby#24005).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use forge_driver::{Error, Kind, Result};

use super::api::{self, Request};
use super::node::{Availability, Health};
use super::responder::{self, Architecture};
use super::swarm::{self, docker};
use crate::event::Events;
use crate::http::{self, Question};
use crate::interrupt;
use crate::remote::{Dial, Guest};

/// Services and images of the probe carry this label, so that what one left behind is recognised.
pub const LABEL: &str = "forge.probe";

/// The port inside the container. The published one is the swarm's choice: it collides with nothing.
const PORT: u16 = 8080;

/// How long an engine is given for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(3);

/// How soon it is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the removal of service and image may take.
const CLEANUP: Duration = Duration::from_secs(90);

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
    /// Refuses a cluster whose published ports do not answer everywhere.
    ///
    /// # Errors
    /// [`Kind::Failed`] that names every target that did not answer.
    pub fn judge(&self) -> Result<()> {
        let silent: Vec<String> = self
            .answers
            .iter()
            .filter_map(|answer| {
                let error = answer.error.as_ref()?;
                Some(format!(
                    "`{}` asked from `{}`: {error}",
                    answer.target, answer.asker
                ))
            })
            .collect();
        if silent.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Failed,
            "a published port does not answer on every node",
        )
        .because(silent.join("; "))
        .hint("the nodes lack ip_vs, or the traffic between them on 7946/tcp+udp and 4789/udp is lost"))
    }
}

/// For each of `count` targets the index of its asker: the next one round.
#[must_use]
pub fn askers(count: usize) -> Vec<usize> {
    (0..count).map(|target| (target + 1) % count).collect()
}

/// A service that was created for a probe. Its task may not run yet.
#[derive(Debug)]
pub struct Begun {
    name: String,
    /// The machine of the task.
    machine: String,
}

/// Says that a probe begins, which may take so long.
pub(super) async fn announce(events: &Events, deadline: Duration) {
    let (step, awaits) = ("probing published ports", "an answer from every node");
    events
        .step(step, awaits, Some(Instant::now() + deadline))
        .await;
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
    let begun = begin(manager, host).await?;
    finish(manager, peers, begun, deadline, on_trouble).await
}

/// The first half of a [`probe`]: the service, with its task on `host`.
/// What was begun is ended by [`finish`] or [`remove`].
///
/// # Errors
/// What the engine said; nothing is left behind then, unless the engine does not answer any more.
pub async fn begin(manager: &dyn Guest, host: &Peer<'_>) -> Result<Begun> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let name = format!(
        "forge-probe-{since}-{}",
        &Uuid::new_v4().simple().to_string()[..8]
    );
    if let Err(error) = create(manager, host, &name).await {
        // The first error is the one to report; the next probe sweeps.
        let _ = remove(manager, host.guest).await;
        return Err(error.context("failed to set up the probe of a published port"));
    }
    Ok(Begun {
        name,
        machine: host.machine.to_owned(),
    })
}

async fn create(manager: &dyn Guest, host: &Peer<'_>, name: &str) -> Result<()> {
    let machine = host.guest.exec("uname -m", b"", ANSWER).await?.text();
    let program = responder::executable(
        Architecture::parse(machine.trim())?,
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT),
        name,
    );
    let import = format!(
        "/images/create?fromSrc=-&repo={name}&tag=latest&changes={}&changes={}",
        api::query(responder::ENTRYPOINT),
        api::query(&format!("LABEL {LABEL}={name}")),
    );
    let said = Request::upload(import, responder::archive(&program))
        .send(host.guest)
        .await?;
    let image = imported(&said)?;
    Request::post("/services/create", &service(name, &image, host.node_id))
        .send(manager)
        .await
        .map(|_| ())
}

/// The second half of a [`probe`].
///
/// # Errors
/// When the swarm publishes no port. That a target does not answer is an answer.
pub async fn finish(
    manager: &dyn Guest,
    peers: &[Peer<'_>],
    begun: Begun,
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<Probed> {
    let outcome = ask(manager, peers, &begun, deadline, on_trouble).await;
    let host = peers
        .iter()
        .find(|peer| peer.machine == begun.machine)
        .map_or(manager, |peer| peer.guest);
    let removed = remove(manager, host).await;
    match (outcome, removed) {
        (Ok(probed), Ok(())) => Ok(probed),
        (Ok(probed), Err(error)) => Ok(Probed {
            left_behind: Some(error.line()),
            ..probed
        }),
        (Err(error), _) => Err(error.context("failed to probe a published port")),
    }
}

/// The peer that gets the task: the last that takes any, which is seldom the manager that is asked for
/// everything else.
async fn host<'a, 'b>(manager: &dyn Guest, peers: &'a [Peer<'b>]) -> Result<&'a Peer<'b>> {
    let nodes = swarm::nodes(manager).await?;
    let takes = |peer: &&Peer<'_>| {
        nodes.iter().any(|node| {
            node.id == peer.node_id
                && node.health == Health::Ready
                && node.availability == Availability::Active
        })
    };
    peers.iter().rev().find(takes).ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            "no node takes tasks, so no published port can be probed",
        )
    })
}

async fn ask(
    manager: &dyn Guest,
    peers: &[Peer<'_>],
    Begun { name, machine }: &Begun,
    deadline: Duration,
    on_trouble: &(dyn Fn(&str) + Send + Sync),
) -> Result<Probed> {
    let end = Instant::now() + deadline;
    let port = published(manager, name, end).await?;
    // The first answers when the task runs; the others are asked at the same time then.
    let pairs: Vec<_> = peers.iter().zip(askers(peers.len())).collect();
    let insist = async |target: &Peer<'_>, asker: usize| {
        let asker = &peers[asker];
        let on_error = |error: &Error| {
            on_trouble(&format!(
                "`{}` asked `{}`: {}",
                asker.machine,
                target.machine,
                error.line()
            ));
        };
        let ask = || question(asker.guest, target.address, port, name);
        let error = answered(ask, end, &on_error).await.err();
        Answer {
            asker: asker.machine.to_owned(),
            target: target.machine.to_owned(),
            error: match error.map(|error| error.line()) {
                Some(error) => Some(match task(manager, name).await {
                    Ok(state) if !state.is_empty() => format!("{error}; the task: {state}"),
                    _ => error,
                }),
                None => None,
            },
        }
    };
    let mut answers = Vec::new();
    if let Some(((target, asker), others)) = pairs.split_first() {
        answers.push(insist(target, *asker).await);
        answers.extend(join_all(others.iter().map(|(target, asker)| insist(target, *asker))).await);
    }
    interrupt::check()?;
    Ok(Probed {
        task_on: machine.clone(),
        port,
        answers,
        left_behind: None,
    })
}

/// Asks until there is the right answer, again each second while the earlier questions are under way: the
/// packet that opens a connection is lost where the port is not open yet, and comes again after 1, 3 and
/// 7 s only (RFC 6298, section 2).
///
/// # Errors
/// The last one, at `end` or when the user wished to stop.
async fn answered<F>(
    ask: impl Fn() -> F,
    end: Instant,
    on_error: &(dyn Fn(&Error) + Sync),
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut asked = FuturesUnordered::new();
    loop {
        // Each ends by itself, so there are never more than it takes seconds.
        asked.push(ask());
        let next = sleep(AGAIN);
        tokio::pin!(next);
        loop {
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(()) => return Ok(()),
                    Err(error) if Instant::now() >= end || interrupt::check().is_err() => return Err(error),
                    Err(error) => on_error(&error),
                },
                () = &mut next => break,
            }
        }
    }
}

/// The id of the image that was imported: the last thing that the engine says of it.
fn imported(said: &str) -> Result<String> {
    said.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|line| {
            line["status"]
                .as_str()
                .filter(|id| id.starts_with("sha256:"))
                .map(str::to_owned)
        })
        .ok_or_else(|| {
            Error::new(Kind::Failed, "the image of the probe was not taken")
                .because(said.trim().to_owned())
        })
}

/// One task on the node, one published port.
///
/// An image named by its id is not looked for in a registry (moby, daemon/cluster/executor/container,
/// pullImage). The program has no handler for SIGTERM, which the first process of a container then
/// ignores: it is killed.
fn service(name: &str, image: &str, node: &str) -> Value {
    json!({
        "Name": name,
        "Labels": {LABEL: name},
        "TaskTemplate": {
            "ContainerSpec": {"Image": image, "StopSignal": "SIGKILL"},
            "RestartPolicy": {"Condition": "any", "Delay": 1_000_000_000},
            "Placement": {"Constraints": [format!("node.id=={node}")]},
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [{"Protocol": "tcp", "TargetPort": PORT, "PublishMode": "ingress"}],
        },
    })
}

/// The port that the swarm chose for the service.
async fn published(manager: &dyn Guest, name: &str, end: Instant) -> Result<u16> {
    loop {
        interrupt::check()?;
        let service = Request::get(format!("/services/{name}"))
            .ask(manager)
            .await?;
        let port = service["Endpoint"]["Ports"][0]["PublishedPort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        match port {
            Some(port) if port > 0 => return Ok(port),
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
    let at = SocketAddrV4::new(target, port);
    let failed = |reason: String| {
        Error::new(Kind::Failed, format!("`{at}` does not answer")).because(reason)
    };
    let asking = async {
        let stream = asker.dial(&Dial::Tcp(at), QUESTION).await?;
        http::ask(stream, Question::get("/")).await
    };
    match timeout(QUESTION, asking).await {
        Ok(Ok(answer)) if answer.body == expected.as_bytes() => Ok(()),
        Ok(Ok(_)) => Err(failed("something else answered".to_owned())),
        Ok(Err(error)) => Err(failed(error.line())),
        Err(_) => Err(failed(format!("no answer within {} s", QUESTION.as_secs()))),
    }
}

/// Removes what earlier probes left behind, here and there.
async fn sweep(manager: &dyn Guest, peers: &[Peer<'_>]) -> Result<()> {
    remove_services(manager).await?;
    join_all(peers.iter().map(|peer| remove_images(peer.guest)))
        .await
        .into_iter()
        .collect()
}

/// Removes every service and image of a probe: here the services, the images at `host`.
///
/// # Errors
/// What the engines said; the next probe tries again.
pub async fn remove(manager: &dyn Guest, host: &dyn Guest) -> Result<()> {
    let services = remove_services(manager).await;
    let images = remove_images(host).await;
    services.and(images)
}

/// What the engine lists at `path` with the probe's label: their ids, under `key`.
async fn labelled(guest: &dyn Guest, path: &str, key: &str) -> Result<Vec<String>> {
    let filters = api::query(&json!({"label": [LABEL]}).to_string());
    let list = Request::get(format!("{path}?filters={filters}"))
        .ask(guest)
        .await?;
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|each| each[key].as_str().map(str::to_owned))
        .collect())
}

/// Gone already is as good.
async fn delete(guest: &dyn Guest, path: String) -> Result<()> {
    match Request::delete(path).send(guest).await {
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn remove_services(manager: &dyn Guest) -> Result<()> {
    for id in labelled(manager, "/services", "ID").await? {
        delete(manager, format!("/services/{id}")).await?;
    }
    Ok(())
}

/// Removes the images, as soon as the swarm has removed the containers made from them. Theirs is left to it:
/// a removal that meets the engine's own can hang.
async fn remove_images(guest: &dyn Guest) -> Result<()> {
    let end = Instant::now() + CLEANUP;
    // Goes on when the user wished to stop: it is what stopping waits for.
    loop {
        let removing = async {
            for image in labelled(guest, "/images/json", "Id").await? {
                delete(guest, format!("/images/{image}?force=true")).await?;
            }
            Ok::<_, Error>(())
        };
        match removing.await {
            Err(error) if Instant::now() >= end => {
                return Err(error.context("the image of the probe cannot be removed"));
            }
            Err(_) => sleep(Duration::from_millis(300)).await,
            done => return done,
        }
    }
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
        probed.judge().expect("all answered");
        probed.answers[1] = answer(Some("refused"));
        let error = probed.judge().expect_err("one is silent");
        assert_eq!(error.causes(), ["`b` asked from `a`: refused"]);
    }
}
