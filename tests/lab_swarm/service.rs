//! A service of the swarm, reached from the host.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::time::Duration;

use forge::cluster::responder::{Architecture, ENTRYPOINT, archive, executable};
use forge_lab::{Store, text, wait};
use serde_json::Value;

use crate::{NODES, PORT, SAID, curl};

/// A service without a registry: its task on the first node, its port on every one.
pub fn service(store: &Store) {
    let program = executable(
        Architecture::parse("x86_64").expect("known"),
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8080),
        SAID,
    );
    let import = format!("docker import --change '{ENTRYPOINT}' - lab:latest");
    let image = store
        .ssh_with(NODES[0], &import, &archive(&program))
        .ok()
        .text();
    store.ssh(
        NODES[0],
        &format!(
            "docker service create --detach --quiet --no-resolve-image --name lab --constraint node.hostname=={} \
             --publish {PORT}:8080 --stop-signal SIGKILL {image}",
            NODES[0]
        ),
    );
}

pub fn publish(store: &Store) {
    let list = store.json(&["cluster", "publish", "default", PORT]);
    assert_eq!(list.as_array().map(Vec::len), Some(3), "{list}");
    for (node, entry) in NODES.iter().zip(list.as_array().expect("a list")) {
        assert_eq!(text(&entry["machine"]), *node);
        assert_eq!(
            text(&entry["address"]),
            format!("{}:{PORT}", store.ip(node))
        );
    }
    served(store);
    // Again: nothing new, and no error.
    assert_eq!(store.json(&["cluster", "publish", "default", PORT]), list);
    // A port that another program has, named with the program.
    let address = format!("{}:7171", store.ip(NODES[1]));
    let _held = TcpListener::bind(&address).expect("free");
    let taken = store.run(&["publish", NODES[1], "7171"]);
    assert_ne!(taken.code, 0, "{taken}");
    let me = std::process::id().to_string();
    assert!(
        taken
            .err
            .contains(&format!("port 7171 of {}", store.ip(NODES[1])))
            && taken.err.contains(&me),
        "{taken}"
    );
    // And one that forge has itself.
    let own = store.run(&["publish", NODES[1], &format!("{PORT}:9000")]);
    assert_ne!(own.code, 0, "{own}");
    assert!(
        own.err.contains(PORT) && own.err.contains(NODES[1]),
        "its owner is named: {own}"
    );
    assert_eq!(
        store.machine(NODES[1])["published"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    // One of a machine alone, and back.
    let shown = store.ok(&["publish", NODES[2], "9001:9000"]);
    assert_eq!(
        shown,
        format!("{} 9000 -> {}:9001", NODES[2], store.ip(NODES[2]))
    );
    store.ok(&["publish", NODES[2], "9000", "--remove"]);
    let left = store.machine(NODES[2])["published"]
        .as_array()
        .map(Vec::len);
    assert_eq!(left, Some(1));
    drop(TcpListener::bind(format!("{}:9001", store.ip(NODES[2]))).expect("free again"));
}

/// The service answers at every node's own address, from the host.
pub fn served(store: &Store) {
    for node in NODES {
        let url = format!("http://{}:{PORT}/", store.ip(node));
        wait(
            "the published port answers",
            Duration::from_secs(120),
            || {
                let said = curl(&["--max-time", "5", &url]);
                (said.code == 0 && said.text() == SAID)
                    .then_some(())
                    .ok_or_else(|| said.to_string())
            },
        );
    }
}

pub fn probe(store: &Store) {
    let status = store.json(&["cluster", "status", "--probe"]);
    let answers = status["probe"]["answers"]
        .as_array()
        .expect("answers")
        .clone();
    assert_eq!(answers.len(), 3, "{status}");
    for answer in &answers {
        assert_eq!(answer["error"], Value::Null, "{answer}");
        assert_ne!(answer["asker"], answer["target"]);
    }
    assert_eq!(
        store.ssh(NODES[0], "docker service ls --format '{{.Name}}'"),
        "lab"
    );
    for node in NODES {
        let images = store.ssh(node, "docker image ls -aq | wc -l; docker ps -aq | wc -l");
        let expected = if node == NODES[0] { "1\n1" } else { "0\n0" };
        assert_eq!(images, expected, "images and containers on {node}");
    }
}
