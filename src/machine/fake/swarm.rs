//! The engine's own interface on a machine that is a folder, as far as the forming of a swarm asks for it
//! (Docker Engine API): enough for a command to be cut off anywhere on its way to a cluster and to go on.
//!
//! What a machine knows of its swarm lies in its folder, in `etc/docker/swarm.json`, where the stand-ins of
//! the playbooks `swarm/init` and `swarm/join` write it: who is a member is read from all machines of the
//! provider. No node fails here and no message is lost; real engines are asked in the lab.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use forge_driver::fake::Provider;
use forge_driver::{Context, Error, Kind, Result, atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// The port that every service gets.
const PUBLISHED: u16 = 30_000;

/// What a question with its body may hold.
const QUESTION_LIMIT: usize = 1 << 20;

/// A machine's part in a swarm.
#[derive(Deserialize)]
struct Member {
    cluster: String,
    node: String,
    role: String,
    leader: bool,
    address: String,
}

impl Member {
    fn of(root: &Path) -> Option<Self> {
        let text = fs::read(root.join("etc/docker/swarm.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// A stream to the engine of the machine at `root`.
pub(super) fn engine(provider: &Provider, root: &Path) -> DuplexStream {
    let engine = Engine {
        provider: provider.clone(),
        root: root.to_owned(),
    };
    serve(move |method, path, body| {
        engine
            .answer(method, path, body)
            .unwrap_or_else(|error| refused(500, &error.line()))
    })
}

/// A stream to a published port: any member of the swarm leads to the task.
///
/// # Errors
/// [`Kind::Unavailable`] when no machine that is on has the address, or no service is there.
pub(super) fn published(provider: &Provider, at: SocketAddrV4) -> Result<DuplexStream> {
    let closed = || Error::new(Kind::Unavailable, format!("`{at}` accepts no connections"));
    let address = at.ip().to_string();
    let mut nodes = provider.vms()?.into_iter().filter(|vm| vm.on);
    nodes
        .find(|vm| {
            Member::of(&provider.folder(vm.claim).join("root"))
                .is_some_and(|member| member.address == address)
        })
        .filter(|_| at.port() == PUBLISHED)
        .ok_or_else(closed)?;
    let service = names(&services(provider)).pop().ok_or_else(closed)?;
    Ok(serve(move |_, _, _| (200, service)))
}

/// Answers one question.
fn serve(answer: impl FnOnce(&str, &str, &[u8]) -> (u16, String) + Send + 'static) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let mut heard = Vec::new();
        let (head, length) = loop {
            if let Some(end) = heard.windows(4).position(|part| part == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&heard[..end]).into_owned();
                let length = head
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                    .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>());
                let Ok(length) = length else { return };
                if heard.len() >= end + 4 + length {
                    break (head, length);
                }
            }
            let mut part = [0; 4096];
            match theirs.read(&mut part).await {
                Ok(count) if count > 0 && heard.len() < QUESTION_LIMIT => {
                    heard.extend_from_slice(&part[..count]);
                }
                // Whoever asks hears that there is no answer.
                _ => return,
            }
        };
        let body = &heard[heard.len() - length..];
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, text) = answer(method, path, body);
        let head = format!(
            "HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        // What cannot be written shows at the other end.
        let _ = theirs.write_all(head.as_bytes()).await;
        let _ = theirs.write_all(text.as_bytes()).await;
        let _ = theirs.shutdown().await;
    });
    ours
}

fn refused(status: u16, why: &str) -> (u16, String) {
    (status, json!({"message": why}).to_string())
}

fn services(provider: &Provider) -> PathBuf {
    provider.root().join("services")
}

/// The names of the files in a folder, which may be missing.
fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).or_fail(Kind::Io, || "failed to make a folder".to_owned())?;
    atomic::write(path, text.as_bytes(), 0o644)
}

struct Engine {
    provider: Provider,
    root: PathBuf,
}

impl Engine {
    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, String)> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let done = || (200, String::new());
        let images = self.root.join("etc/docker/images");
        match (method, &parts[..]) {
            ("GET", ["info"]) => return Ok((200, self.info().to_string())),
            ("POST", ["images", "create"]) => {
                let name = query
                    .split('&')
                    .find_map(|part| part.strip_prefix("repo="))
                    .unwrap_or("unnamed");
                write(&images.join(name), "")?;
                return Ok((200, json!({"status": format!("sha256:{name}")}).to_string()));
            }
            ("GET", ["images", "json"]) => return Ok((200, listed(&images, "Id", "sha256:"))),
            ("DELETE", ["images", id]) => {
                let name = id.strip_prefix("sha256:").unwrap_or(id);
                return Ok(removed(&images.join(name)));
            }
            ("GET", ["containers", "json"]) => return Ok((200, "[]".to_owned())),
            ("POST", ["containers", container, "stop"]) => return self.stop(container),
            _ => {}
        }
        let Some(member) = Member::of(&self.root).filter(|member| member.role == "manager") else {
            return Ok(refused(503, "This node is not a swarm manager."));
        };
        let services = services(&self.provider);
        Ok(match (method, &parts[..]) {
            ("GET", ["nodes"]) => (200, self.nodes(&member.cluster)?.to_string()),
            ("POST", ["nodes", id, "update"]) => match self.root_of(&member.cluster, id)? {
                Some(root) => {
                    write(
                        &root.join("etc/docker/node.json"),
                        &String::from_utf8_lossy(body),
                    )?;
                    done()
                }
                None => refused(404, "there is no such node"),
            },
            ("GET", ["swarm"]) => {
                let token = |role: &str| format!("SWMTKN-1-{}-{role}", member.cluster);
                let tokens = json!({"Worker": token("worker"), "Manager": token("manager")});
                let swarm = json!({
                    "ID": member.cluster, "Version": {"Index": 1}, "Spec": {}, "JoinTokens": tokens,
                });
                (200, swarm.to_string())
            }
            ("POST", ["swarm", "update"]) => done(),
            ("GET", ["networks", "ingress"]) => {
                let pool = fs::read_to_string(self.root.join("etc/docker/pool"))
                    .or_fail(Kind::Io, || "the swarm has no pool".to_owned())?;
                let ranges = json!({"IPAM": {"Config": [{"Subnet": pool.trim()}]}});
                (200, ranges.to_string())
            }
            ("POST", ["services", "create"]) => {
                let wished: Value = serde_json::from_slice(body)
                    .or_fail(Kind::Invalid, || "the service cannot be read".to_owned())?;
                let name = wished["Name"].as_str().unwrap_or("unnamed");
                write(&services.join(name), "")?;
                (201, json!({"ID": name}).to_string())
            }
            ("GET", ["tasks"]) => (200, self.tasks(&member.cluster, query)?.to_string()),
            ("GET", ["services"]) => (200, listed(&services, "ID", "")),
            ("GET", ["services", "web"]) => (200, json!({"ID": "web"}).to_string()),
            ("GET", ["services", name]) if services.join(name).exists() => {
                let ports = json!({"Endpoint": {"Ports": [{"PublishedPort": PUBLISHED}]}});
                (200, ports.to_string())
            }
            ("DELETE", ["services", name]) => removed(&services.join(name)),
            _ => refused(404, &format!("{method} {path} is not here")),
        })
    }

    /// `SystemInfo`, the part about the swarm.
    fn info(&self) -> Value {
        let swarm = match Member::of(&self.root) {
            Some(member) if member.role == "manager" => json!({
                "NodeID": member.node, "LocalNodeState": "active", "ControlAvailable": true,
                "Cluster": {"ID": member.cluster},
            }),
            Some(member) => json!({"NodeID": member.node, "LocalNodeState": "active"}),
            None => json!({"NodeID": "", "LocalNodeState": "inactive"}),
        };
        json!({"Swarm": swarm})
    }

    /// The folder of the member with this node id.
    fn root_of(&self, cluster: &str, node: &str) -> Result<Option<PathBuf>> {
        let roots = self.provider.vms()?.into_iter();
        Ok(roots
            .map(|vm| self.provider.folder(vm.claim).join("root"))
            .find(|root| {
                Member::of(root)
                    .is_some_and(|member| member.cluster == cluster && member.node == node)
            }))
    }

    /// `[Node]`.
    fn nodes(&self, cluster: &str) -> Result<Value> {
        let mut nodes = Vec::new();
        for vm in self.provider.vms()? {
            let root = self.provider.folder(vm.claim).join("root");
            let Some(member) = Member::of(&root).filter(|member| member.cluster == cluster) else {
                continue;
            };
            let set = fs::read(root.join("etc/docker/node.json")).unwrap_or_default();
            let spec: Value = serde_json::from_slice(&set)
                .unwrap_or_else(|_| json!({"Role": member.role, "Availability": "active"}));
            let manager = (member.role == "manager").then(|| {
                let reachability = if vm.on { "reachable" } else { "unreachable" };
                json!({"Leader": member.leader, "Reachability": reachability})
            });
            nodes.push(json!({
                "ID": member.node,
                "Version": {"Index": 1},
                "Spec": spec,
                "Description": {"Hostname": vm.name},
                "Status": {"State": if vm.on { "ready" } else { "down" }, "Addr": member.address},
                "ManagerStatus": manager,
            }));
        }
        Ok(Value::Array(nodes))
    }
}

/// A task of the service that the provider's file `replicas` counts, as the file `tasks` keeps it.
#[derive(Deserialize, Serialize)]
struct Slot {
    node: String,
    /// So many times it is listed before it runs: one that takes another's place waits for its end (`ready`), then starts.
    starts: u8,
}

impl Engine {
    /// Where the tasks are now: one whose node is drained, lost, or was told to stop it, goes where there are fewest.
    fn slots(&self, cluster: &str, stopped: Option<usize>) -> Result<Vec<Slot>> {
        let count = fs::read_to_string(self.provider.root().join("replicas")).unwrap_or_default();
        let count: usize = count.trim().parse().unwrap_or_default();
        let nodes = self.nodes(cluster)?;
        let like = |wanted: &[&str]| -> Vec<String> {
            nodes
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["Status"]["State"] == "ready")
                .filter(|node| {
                    wanted.contains(&node["Spec"]["Availability"].as_str().unwrap_or(""))
                })
                .filter_map(|node| Some(node["ID"].as_str()?.to_owned()))
                .collect()
        };
        let (keep, take) = (like(&["active", "pause"]), like(&["active"]));
        let kept = fs::read(self.provider.root().join("tasks")).unwrap_or_default();
        let fresh = kept.is_empty();
        let mut slots: Vec<Slot> = serde_json::from_slice(&kept).unwrap_or_default();
        slots.truncate(count);
        for at in 0..count {
            if slots.get(at).is_some_and(|slot| keep.contains(&slot.node)) && stopped != Some(at) {
                continue;
            }
            let load = |node: &&String| {
                let there = slots.iter().enumerate().filter(|(other, _)| *other != at);
                there.filter(|(_, slot)| slot.node == **node).count()
            };
            let slot = Slot {
                node: take.iter().min_by_key(load).cloned().unwrap_or_default(),
                starts: if fresh { 0 } else { 2 },
            };
            match slots.get_mut(at) {
                Some(own) => *own = slot,
                None => slots.push(slot),
            }
        }
        Ok(slots)
    }

    fn keep(&self, slots: &[Slot]) -> Result<()> {
        write(
            &self.provider.root().join("tasks"),
            &json!(slots).to_string(),
        )
    }

    /// `[Task]`, of those states that are asked for.
    fn tasks(&self, cluster: &str, query: &str) -> Result<Value> {
        let mut slots = self.slots(cluster, None)?;
        let mut listed = Vec::new();
        if !slots.is_empty() && slots.iter().all(|slot| slot.starts > 0) {
            // Nobody answers who asks the service now.
            write(&self.provider.root().join("silent"), "")?;
        }
        for (at, slot) in slots.iter_mut().enumerate() {
            let state = match slot.starts {
                _ if slot.node.is_empty() => "pending",
                0 => "running",
                _ => "preparing",
            };
            let desired = if slot.starts > 1 { "ready" } else { "running" };
            slot.starts = slot.starts.saturating_sub(1);
            if query.contains(desired) {
                listed.push(json!({
                    "ServiceID": "web", "Slot": at + 1, "NodeID": slot.node, "DesiredState": desired,
                    "Status": {"State": state, "ContainerStatus": {"ContainerID": format!("web-{at}")}}, "Spec": {},
                }));
            }
        }
        self.keep(&slots)?;
        Ok(Value::Array(listed))
    }

    /// Ends a task's container, which runs here.
    fn stop(&self, container: &str) -> Result<(u16, String)> {
        let slot = container
            .strip_prefix("web-")
            .and_then(|at| at.parse().ok());
        let member = Member::of(&self.root);
        let (Some(slot), Some(member)) = (slot, member) else {
            return Ok(refused(404, "there is no such container"));
        };
        let slots = self.slots(&member.cluster, None)?;
        if slots
            .get(slot)
            .is_none_or(|slot: &Slot| slot.node != member.node)
        {
            // It has ended, and is still there.
            return Ok((304, String::new()));
        }
        self.keep(&self.slots(&member.cluster, Some(slot))?)?;
        Ok((204, String::new()))
    }
}

/// What lies in a folder, as the engine lists it.
fn listed(folder: &Path, key: &str, prefix: &str) -> String {
    let list: Vec<Value> = names(folder)
        .into_iter()
        .map(|name| json!({key: format!("{prefix}{name}")}))
        .collect();
    Value::from(list).to_string()
}

fn removed(path: &Path) -> (u16, String) {
    match fs::remove_file(path) {
        Ok(()) => (200, "{}".to_owned()),
        Err(_) => refused(404, "it is not there"),
    }
}
