//! The main job with real machines: one swarm of three managers, looked at from all sides, cut off from
//! power, and taken down to the last socket.

mod access;
mod certificates;
mod firewall;
mod service;
mod tls;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, run, text, wait};
use ipnet::Ipv4Net;
use serde_json::Value;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const UP: [&str; 6] = ["cluster", "up", "--managers", "3", "--zones", "2"];
const NODES: [&str; 3] = ["default-m1", "default-m2", "default-m3"];
/// What the service of the test says, and the port that the swarm publishes it at.
const SAID: &str = "here I am";
const PORT: &str = "8099";

#[test]
fn lab_a_swarm_of_three_managers() {
    let mut steps = Steps::new("swarm");
    steps.step("a fresh store");
    let store = Store::new(FORGE);

    steps.step("two `cluster up` at the same time make one swarm");
    let first = up_twice(&store);
    steps.step("three managers, one leads; labels, addresses, pool");
    let id = text(&first["cluster_id"]);
    whole(&store, &id);
    network(&store);

    steps.step("TLS: the machine's own address, no other, and only with a certificate");
    let other = Store::empty(FORGE);
    tls::tls(&store, &other);
    drop(other);

    steps.step("a service, published on the host");
    service::service(&store);
    service::publish(&store);

    steps.step("a second `cluster up` changes nothing");
    let before = identity(&store);
    let second = store.json(&UP);
    assert_eq!(second["changed"], 0, "{second}");
    assert_eq!(text(&second["cluster_id"]), id);
    assert_eq!(identity(&store), before);
    let plan = store.run(&[&UP[..], &["--dry-run"]].concat());
    assert_eq!(plan.code, 0, "{plan}");

    steps.step("`status --probe` asks every node and leaves nothing");
    service::probe(&store);

    steps.step("no token is anywhere");
    access::tokens(&store);

    steps.step("`forge ssh`, plain ssh and scp, logs");
    access::ssh(&store);
    access::plain_ssh(&store);
    access::logs(&store);

    steps.step("a machine beside the cluster");
    let made = store.json(&["create", "x1"]);
    assert_eq!(made["machines"][0]["ok"], true, "{made}");

    steps.step("certificates of the past on it: one command, and its container runs on");
    certificates::alone(&store, "x1");

    steps.step("the firewall lets peers in and nobody else");
    firewall::firewall(&store);

    store.ok(&["rm", "-y", "x1"]);

    steps.step("`cluster down` leaves nothing");
    let claims: Vec<String> = NODES.iter().map(|node| store.claim(node)).collect();
    store.ok(&["cluster", "down", "-y"]);
    assert_eq!(store.left(), Vec::<String>::new());
    for claim in claims {
        assert!(forge_lab::machines_of(&claim).is_empty());
    }
    assert_eq!(store.ok(&["ls", "-q"]), "");
    assert_eq!(store.ok(&["cluster", "ls", "-q"]), "");
}

#[test]
fn lab_b_swarm_survives_restarts_and_the_loss_of_power() {
    let mut steps = Steps::new("swarm, restarted");
    steps.step("three managers, a service, and a machine beside them");
    let store = Store::new(FORGE);
    let first = store.json(&UP);
    let id = text(&first["cluster_id"]);
    whole(&store, &id);
    service::service(&store);
    store.json(&["cluster", "publish", "default", PORT]);
    service::served(&store);
    let made = store.json(&["create", "x1"]);
    assert_eq!(made["machines"][0]["ok"], true, "{made}");

    steps.step("restarts of the firewall, of nftables and of docker, beside the cluster and in it");
    let rules = firewall::restarts(&store, "x1");
    firewall::restarts(&store, NODES[2]);
    firewall::between(&store, NODES[0], "x1", NODES[2]);

    steps.step("a reboot");
    let boot = store.ssh("x1", "cat /proc/sys/kernel/random/boot_id");
    let _ = store.ssh_with("x1", "sudo systemctl reboot", b"");
    wait("x1 is back", Duration::from_secs(180), || {
        let said = store.ssh_with("x1", "cat /proc/sys/kernel/random/boot_id", b"");
        (said.code == 0 && said.text() != boot)
            .then_some(())
            .ok_or_else(|| said.to_string())
    });
    wait("docker is back", Duration::from_secs(120), || {
        let said = store.ssh_with("x1", "timeout 20 docker info -f '{{.ID}}'", b"");
        (said.code == 0)
            .then_some(())
            .ok_or_else(|| said.to_string())
    });
    assert_eq!(
        firewall::docker_rules(&store, "x1"),
        rules,
        "the engine's rules after a reboot"
    );
    firewall::forge_table(&store, "x1");
    firewall::between(&store, NODES[0], "x1", NODES[1]);

    steps.step("power loss of all nodes");
    let addresses = addresses_of(&store);
    store.ok(&[&["kill"], &NODES[..]].concat());
    for node in NODES {
        assert_eq!(store.ok(&["status", node]), "Stopped");
    }
    let refused = store.run(&["cluster", "env"]);
    assert_ne!(refused.code, 0);
    assert_eq!(refused.text(), "", "nothing for `eval`");
    store.ok(&["cluster", "start"]);
    whole(&store, &id);
    assert_eq!(addresses_of(&store), addresses);
    service::served(&store);
    firewall::between(&store, NODES[0], "x1", NODES[1]);
    store.ok(&["rm", "-y", "x1"]);

    steps.step("a clean stop, and a start");
    store.ok(&["cluster", "stop"]);
    for node in NODES {
        assert_eq!(store.ok(&["status", node]), "Stopped");
        assert!(
            store
                .ok(&["logs", node, "--source", "console"])
                .contains("Power down"),
            "a clean shutdown ends in `Power down`"
        );
    }
    // As good as `cluster start`: what is there is found again, and nothing is founded anew.
    let again = store.json(&UP);
    assert_eq!(text(&again["cluster_id"]), id);
    whole(&store, &id);
    assert_eq!(addresses_of(&store), addresses);
    service::served(&store);

    store.ok(&["cluster", "down", "-y"]);
    assert_eq!(store.left(), Vec::<String>::new());
}

#[test]
fn lab_c_certificates_of_a_swarm_are_renewed_while_a_service_answers() {
    let mut steps = Steps::new("swarm, certificates");
    steps.step("three managers, and a machine beside them");
    let store = Store::new(FORGE);
    store.json(&UP);
    let made = store.json(&["create", "x1"]);
    assert_eq!(made["machines"][0]["ok"], true, "{made}");
    certificates::together(&mut steps, &store, "x1", "8088");
    store.ok(&["rm", "-y", "x1"]);
    store.ok(&["cluster", "down", "-y"]);
    assert_eq!(store.left(), Vec::<String>::new());
}

/// Two processes at once, and a third party that watches the process list of a joining machine.
fn up_twice(store: &Store) -> Value {
    let json = [&UP[..], &["--json"]].concat();
    let (one, two, watched) = thread::scope(|scope| {
        let one = scope.spawn(|| store.run(&json));
        let two = scope.spawn(|| store.run(&json));
        let watched = scope.spawn(|| watch_a_join(store, NODES[1]));
        (one.join(), two.join(), watched.join())
    });
    let (one, two) = (one.expect("runs").ok(), two.expect("runs").ok());
    assert_eq!(
        watched.expect("watches"),
        "",
        "a token was in the process list"
    );
    let (one, two) = (one.json(), two.json());
    assert_eq!(one["cluster_id"], two["cluster_id"]);
    let changed = [one["changed"].as_u64(), two["changed"].as_u64()];
    assert!(
        changed.contains(&Some(0)),
        "one of them made everything: {changed:?}"
    );
    assert_eq!(store.ok(&["ls", "-q"]).lines().collect::<Vec<_>>(), NODES);
    for node in NODES {
        store.process(node);
    }
    one
}

/// What looks like a token in the process list and the environments of `machine`, from the moment that
/// it is provisioned until some time after.
fn watch_a_join(store: &Store, machine: &str) -> String {
    let record = store
        .home()
        .join("machines")
        .join(machine)
        .join("machine.json");
    wait("a machine that is ready", Duration::from_secs(400), || {
        let text = std::fs::read_to_string(&record).map_err(|error| error.to_string())?;
        text.contains("\"ready\"").then_some(()).ok_or(text)
    });
    let line = "sudo sh -c 'state() { docker info -f \"{{.Swarm.LocalNodeState}}\"; }; echo began: $(state); \
        n=0; while [ $n -lt 600 ]; do \
        grep -asl \"SWM[T]KN\" /proc/[0-9]*/cmdline /proc/[0-9]*/environ; n=$((n+1)); \
        [ $((n % 10)) != 0 ] || [ \"$(state)\" != active ] || break; sleep 0.2; done; echo ended: $(state)'";
    let seen = store.ssh(machine, line);
    let (first, rest) = seen.split_once('\n').unwrap_or((&seen, ""));
    assert_ne!(
        first, "began: active",
        "the join is watched from before it begins"
    );
    let (found, last) = rest.rsplit_once('\n').unwrap_or(("", rest));
    assert_eq!(
        last, "ended: active",
        "the join is watched to its end: {seen}"
    );
    found.to_owned()
}

/// One swarm, whole, as the managers themselves see it.
fn whole(store: &Store, id: &str) {
    // On a busy host a machine may be slow to answer, which is trouble, and passes.
    let status = wait("the cluster is whole", Duration::from_secs(180), || {
        let said = store.run(&["cluster", "status", "--json"]);
        (said.code == 0)
            .then(|| said.json())
            .ok_or_else(|| said.to_string())
    });
    assert_eq!(status["quorum"], true, "{status}");
    assert_eq!(status["trouble"], serde_json::json!([]));
    assert_eq!(text(&status["cluster_id"]), id);
    let record = std::fs::read_to_string(store.home().join("clusters/default/cluster.json"))
        .expect("a record");
    assert!(record.contains(id), "the cluster's id is recorded");
    for node in NODES {
        let seen = store.ssh(node, "docker info -f '{{.Swarm.Cluster.ID}}'");
        assert_eq!(seen, id, "{node}");
    }
    let listed = store.ok(&[
        "cluster",
        "ssh",
        "--",
        "docker",
        "node",
        "ls",
        "--format",
        "'{{.Hostname}} {{.Status}} {{.ManagerStatus}}'",
    ]);
    let mut ranks: Vec<&str> = listed
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap_or_default())
        .collect();
    ranks.sort_unstable();
    assert_eq!(ranks, ["Leader", "Reachable", "Reachable"], "{listed}");
    assert!(
        listed.lines().all(|line| line.contains(" Ready ")),
        "{listed}"
    );
}

fn network(store: &Store) {
    let mut zones = BTreeMap::new();
    for node in NODES {
        let label = store.ssh(
            NODES[0],
            &format!("docker node inspect -f '{{{{index .Spec.Labels \"zone\"}}}}' {node}"),
        );
        *zones.entry(label).or_insert(0) += 1;
        let inner: Ipv4Addr = store.inner_ip(node).parse().expect("an address");
        let range: Ipv4Net = "10.133.7.0/24".parse().expect("a range");
        assert!(range.contains(&inner), "{inner}");
        assert_eq!(
            store.ssh(node, "docker info -f '{{.Swarm.NodeAddr}}'"),
            inner.to_string()
        );
        assert!(
            store
                .ssh(node, "ip -4 -br address")
                .contains(&format!("{inner}/24"))
        );
        let outer: Ipv4Addr = store.ip(node).parse().expect("an address");
        let loopback: Ipv4Net = "127.133.0.0/16".parse().expect("a range");
        assert!(loopback.contains(&outer), "{outer}");
        assert_eq!(store.ok(&["url", node]), format!("tcp://{outer}:2376"));
        // Without sudo, as the user that SSH brings.
        assert_eq!(
            store.ssh(node, "id -un; docker version -f '{{.Server.Os}}'"),
            "forge\nlinux"
        );
        assert_eq!(store.ssh(node, "hostname"), node);
    }
    assert_eq!(
        zones,
        BTreeMap::from([("z1".to_owned(), 2), ("z2".to_owned(), 1)])
    );
    let outer: std::collections::BTreeSet<String> =
        NODES.iter().map(|node| store.ip(node)).collect();
    assert_eq!(outer.len(), NODES.len(), "an address for each machine");
    let record: Value = serde_json::from_slice(
        &std::fs::read(store.home().join("clusters/default/cluster.json")).expect("read"),
    )
    .expect("JSON");
    let pool: Ipv4Net = text(&record["pool"]).parse().expect("a range");
    let pools = store.ssh(
        NODES[0],
        "docker info -f '{{json .Swarm.Cluster.DefaultAddrPool}}'",
    );
    assert_eq!(pools, format!("[\"{pool}\"]"));
    let ingress: Ipv4Net = store
        .ssh(
            NODES[0],
            "docker network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}}' ingress",
        )
        .parse()
        .expect("a range");
    assert!(pool.contains(&ingress), "{ingress} lies in {pool}");
    let address = store.ssh(NODES[1], "ip -4 -o address");
    for line in address.lines() {
        if let Some(found) = line
            .split_whitespace()
            .nth(3)
            .and_then(|found| found.parse::<Ipv4Net>().ok())
            && !line.contains("docker")
            && !line.contains(": lo")
        {
            assert!(!pool.contains(&found.addr()), "{pool} overlaps {line}");
        }
    }
}

fn addresses_of(store: &Store) -> Vec<(String, String)> {
    NODES
        .iter()
        .map(|node| (store.ip(node), store.inner_ip(node)))
        .collect()
}

/// What a run that changes nothing must not touch: boots, containers, nodes, services.
fn identity(store: &Store) -> Vec<String> {
    let mut all: Vec<String> = NODES
        .iter()
        .map(|node| {
            store.ssh(
                node,
                "cat /proc/sys/kernel/random/boot_id; docker info -f '{{.ID}} {{.Swarm.NodeID}}'; \
                 docker ps -q --no-trunc; systemctl show -p ActiveEnterTimestampMonotonic docker ssh forge-firewall",
            )
        })
        .collect();
    all.push(store.ssh(NODES[0], "docker service ls -q; docker node ls -q | sort"));
    all
}

/// `curl` on the host, with what `docker` would be given.
fn curl(words: &[&str]) -> Ran {
    run(
        Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*"])
            .args(words),
        b"",
        Duration::from_secs(30),
    )
}
