//! Certificates whose time is over, on machines that do not know the hour better: made in the past, with the keys that
//! there are. So clocks need not be moved, which the swarm's own certificates would not survive.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forge::ca::fingerprint;
use forge::cluster::responder::{Architecture, ENTRYPOINT, archive, executable};
use forge_lab::{Steps, Store, text, wait};
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::{NODES, SAID, curl};

/// The CA, the client pair and the certificates of these machines ended a year ago, here and there.
pub fn age(store: &Store, machines: &[&str]) {
    let read = |path: &Path| fs::read_to_string(path).expect("a file of the store");
    let key = |path: &Path| KeyPair::from_pem(&read(path)).expect("a key");
    let certs = store.home().join("certs");
    let mut params = past(&[]);
    params
        .distinguished_name
        .push(DnType::CommonName, "forge CA of the past");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "forge");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = params
        .self_signed(&key(&certs.join("ca-key.pem")))
        .expect("signed")
        .pem();
    let sign = |names: &[String], usage: ExtendedKeyUsagePurpose, own: &Path| {
        let mut params = past(names);
        params.extended_key_usages = vec![usage];
        let issuer = Issuer::from_ca_cert_pem(&ca, key(&certs.join("ca-key.pem"))).expect("a CA");
        params.signed_by(&key(own), &issuer).expect("signed").pem()
    };
    let client = sign(
        &[],
        ExtendedKeyUsagePurpose::ClientAuth,
        &certs.join("key.pem"),
    );
    fs::write(certs.join("ca.pem"), &ca).expect("written");
    fs::write(certs.join("cert.pem"), &client).expect("written");
    for machine in machines {
        let folder = store.home().join("machines").join(machine);
        let path = folder.join("machine.json");
        let mut record: Value = serde_json::from_str(&read(&path)).expect("JSON");
        let names: Vec<String> = record["tls"]["names"]
            .as_array()
            .expect("names")
            .iter()
            .map(text)
            .collect();
        let own = folder.join("server-key.pem");
        let server = sign(&names, ExtendedKeyUsagePurpose::ServerAuth, &own);
        for (file, contents) in [
            ("ca.pem", &ca),
            ("cert.pem", &client),
            ("server.pem", &server),
        ] {
            fs::write(folder.join(file), contents).expect("written");
        }
        record["tls"]["authority"] = fingerprint(&ca).into();
        record["tls"]["expires"] = json!(end());
        fs::write(&path, record.to_string()).expect("written");
        for (file, contents) in [("ca.pem", &ca), ("server.pem", &server)] {
            let line = format!("sudo tee /etc/docker/tls/{file} >/dev/null");
            store.ssh_with(machine, &line, contents.as_bytes()).ok();
        }
        store.ssh(machine, "sudo systemctl restart docker");
    }
}

/// Five years ago, for four years.
fn past(names: &[String]) -> CertificateParams {
    let mut params = CertificateParams::new(names.to_vec()).expect("names");
    let at = |years: i64| {
        let hours = (365 * 24 * years).hours();
        let then = Timestamp::now().saturating_sub(hours).expect("a time");
        time::OffsetDateTime::from_unix_timestamp(then.as_second()).expect("a time")
    };
    params.not_before = at(5);
    params.not_after = at(1);
    params
}

fn end() -> Timestamp {
    let year = (365 * 24).hours();
    Timestamp::now().saturating_sub(year).expect("a time")
}

/// An image that answers on port 8080.
fn image(store: &Store, machine: &str) {
    let program = executable(
        Architecture::parse("x86_64").expect("known"),
        "0.0.0.0:8080".parse().expect("an address"),
        SAID,
    );
    let import = format!("docker import --change '{ENTRYPOINT}' - stays:latest");
    store.ssh_with(machine, &import, &archive(&program)).ok();
}

/// What must not change of a machine outside a cluster: its container's process, and the engine's settings.
fn unmoved(store: &Store, machine: &str) -> String {
    store.ssh(
        machine,
        "docker inspect -f '{{.State.Pid}} {{.State.StartedAt}} {{.State.Running}}' stays; \
         sudo sha256sum /etc/docker/daemon.json; docker info -f '{{.LiveRestoreEnabled}}'",
    )
}

/// A container that nobody would start again.
pub fn container(store: &Store, machine: &str) {
    image(store, machine);
    store.ssh(
        machine,
        "docker run -d --restart no --name stays stays:latest",
    );
}

/// The machine is told of, and lets nobody in.
pub fn is_over(store: &Store, machine: &str) {
    let refused = store.run(&["env", machine]);
    assert_ne!(refused.code, 0, "{refused}");
    assert_eq!(refused.text(), "", "nothing for `eval`");
    assert!(refused.err.contains("forge regenerate-certs"), "{refused}");
    let listed = store.ok(&["ls"]);
    assert!(
        listed.contains("ended 365 days ago") || listed.contains("ended 364 days ago"),
        "{listed}"
    );
}

/// `docker` gets in with what `env` says.
fn lets_in(store: &Store, machine: &str) {
    let env = store.run(&["env", machine, "--json"]).ok();
    assert_eq!(env.err, "", "no warning");
    let variables = env.json();
    let folder = text(&variables["DOCKER_CERT_PATH"]);
    let url = text(&variables["DOCKER_HOST"]).replace("tcp://", "https://");
    let file = |name: &str| format!("{folder}/{name}");
    let version = curl(&[
        "--cacert",
        &file("ca.pem"),
        "--cert",
        &file("cert.pem"),
        "--key",
        &file("key.pem"),
        &format!("{url}/version"),
    ])
    .ok();
    assert_eq!(version.json()["Os"], "linux", "{version}");
}

/// One machine outside a cluster: told of, mended by one command, and its container has noticed nothing.
pub fn alone(store: &Store, machine: &str) {
    age(store, &[machine]);
    container(store, machine);
    let before = unmoved(store, machine);
    assert!(
        before.ends_with("false") && before.contains(" true"),
        "{before}"
    );
    is_over(store, machine);
    store.ok(&["regenerate-certs", "-f", machine]);
    assert_eq!(
        unmoved(store, machine),
        before,
        "the container and the settings"
    );
    lets_in(store, machine);
}

/// A cluster and a machine beside it, all at once.
pub fn together(steps: &mut Steps, store: &Store, beside: &str, port: &str) {
    let all: Vec<&str> = NODES.iter().copied().chain([beside]).collect();
    steps.step("certificates of the past");
    age(store, &all);
    wait("the cluster is whole", Duration::from_secs(180), || {
        let said = store.run(&["cluster", "status"]);
        (said.code == 0)
            .then_some(())
            .ok_or_else(|| said.to_string())
    });
    container(store, beside);
    let before = unmoved(store, beside);
    steps.step("a service of two tasks");
    for node in NODES {
        image(store, node);
    }
    store.ssh(
        NODES[0],
        &format!(
            "docker service create --detach --quiet --no-resolve-image --name web --replicas 2 \
             --publish {port}:8080 --stop-signal SIGKILL stays:latest"
        ),
    );
    store.json(&["cluster", "publish", "default", port]);
    let nodes: Vec<SocketAddr> = NODES
        .iter()
        .map(|node| {
            format!("{}:{port}", store.ip(node))
                .parse()
                .expect("an address")
        })
        .collect();
    for node in &nodes {
        wait("the service answers", Duration::from_secs(120), || {
            asked(*node).then_some(()).ok_or_else(|| node.to_string())
        });
    }
    is_over(store, NODES[1]);
    steps.step("all certificates and the CA, by one command, while the service is asked");
    let ca = fs::read(store.home().join("certs/ca.pem")).expect("a CA");
    answers_while(store, &nodes, &["regenerate-certs", "--all"]);
    steps.step("one node that has both of its tasks");
    let node = |command: &str| {
        store.ssh(
            NODES[0],
            &format!("docker node update --availability {command}"),
        )
    };
    let (kept, others) = NODES.split_last().expect("nodes");
    for other in others {
        node(&format!("drain {other}"));
    }
    wait("both tasks run there", Duration::from_secs(120), || {
        let line =
            "docker service ps -f desired-state=running --format '{{.Node}} {{.CurrentState}}' web";
        let listed = store.ssh(NODES[0], line);
        let there = format!("{kept} Running");
        (listed.lines().count() == 2 && listed.lines().all(|line| line.starts_with(&there)))
            .then_some(())
            .ok_or(listed)
    });
    for other in others {
        node(&format!("active {other}"));
    }
    answers_while(store, &nodes, &["regenerate-certs", kept]);
    steps.step("all of them let in, and nothing else has changed");
    assert_ne!(
        fs::read(store.home().join("certs/ca.pem")).expect("a CA"),
        ca
    );
    assert!(!store.home().join("certs/next").exists());
    for machine in &all {
        lets_in(store, machine);
    }
    assert_eq!(
        unmoved(store, beside),
        before,
        "the container and the settings"
    );
    for node in NODES {
        assert_eq!(
            store.ssh(node, "docker info -f '{{.LiveRestoreEnabled}}'"),
            "false"
        );
    }
    let uses = store.ssh(
        NODES[0],
        "docker node ls --format '{{.Availability}} {{.Status}}'",
    );
    assert_eq!(uses, "Active Ready\nActive Ready\nActive Ready");
}

/// The service answers, whichever node is asked, while certificates are made anew.
fn answers_while(store: &Store, nodes: &[SocketAddr], words: &[&str]) {
    eprintln!("{}", store.ok(&[words, &["--dry-run"]].concat()));
    let over = AtomicBool::new(false);
    let answers = Mutex::new(vec![Instant::now()]);
    thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if asked(*node) {
                        answers.lock().expect("the list").push(Instant::now());
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            store.ok(&[words, &["-f"]].concat())
        }));
        over.store(true, Ordering::SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let mut answers = answers.into_inner().expect("the list");
    answers.push(Instant::now());
    answers.sort();
    let (silence, from) = answers
        .windows(2)
        .map(|pair| (pair[1].duration_since(pair[0]), pair[0]))
        .max()
        .expect("answers");
    let began = from.duration_since(answers[0]);
    eprintln!(
        "{} answers, never longer than {:.1} s apart",
        answers.len(),
        silence.as_secs_f64()
    );
    assert!(
        silence < Duration::from_secs(10),
        "silent for {silence:?}, {began:?} after the command began; its tasks:\n{}",
        tasks(store)
    );
}

/// The service's tasks, with when each came to where it is.
fn tasks(store: &Store) -> String {
    store.ssh(
        NODES[0],
        "date -u; docker inspect -f '{{.CreatedAt}} {{.NodeID}} {{.DesiredState}} {{.Status.State}} {{.Status.Timestamp}} \
         {{.Status.Err}}' $(docker service ps -q web); docker node ls",
    )
}

/// Whether the service answers there.
fn asked(at: SocketAddr) -> bool {
    let wait = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&at, wait) else {
        return false;
    };
    let mut said = String::new();
    stream.set_read_timeout(Some(wait)).is_ok()
        && stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut said).is_ok()
        && said.contains(SAID)
}
