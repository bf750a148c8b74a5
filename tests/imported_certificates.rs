//! Machines that docker-machine made, whose certificates ended: one command makes them anew, over the SSH key that came
//! with them.

mod common;

use std::fs;

use common::host::Host;
use common::points::{ABORTED, aborted, points};
use common::{Lab, files};
use forge_lab::old::OldStore;
use forge_lab::openssh::user;
use serde_json::{Value, json};

/// What docker-machine wrote beside the engine's unit (libmachine/provision/systemd.go).
const DROP_IN: &str = "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H tcp://0.0.0.0:2376 -H unix:///var/run/docker.sock \
--storage-driver overlay2 --tlsverify --tlscacert /etc/docker/ca.pem --tlscert /etc/docker/server.pem \
--tlskey /etc/docker/server-key.pem --label made=generic \nEnvironment=\n";

/// A host that docker-machine set up so many days ago, with its store.
fn old_machine(lab: &Lab, host: &Host, age: i64) -> OldStore {
    let old = OldStore::at(&lab.folder().join("old"));
    let fields = json!({
        "IPAddress": "127.0.0.1", "SSHPort": host.port, "EnginePort": host.engine, "SSHUser": user(),
    });
    old.machine("g1", "generic", &fields, &["127.0.0.1", "g1"], age);
    let authorized = host.authorized() + &old.key("g1");
    fs::write(host.at("home/.ssh/authorized_keys"), authorized).expect("written");
    // Where this engine reads them.
    let tls = host.at("root/etc/docker/tls");
    fs::create_dir_all(&tls).expect("a folder");
    for name in ["ca.pem", "server.pem", "server-key.pem"] {
        fs::copy(old.root.join("machines/g1").join(name), tls.join(name)).expect("copied");
    }
    fs::write(host.at("root/etc/docker/enabled"), "").expect("written");
    let units = host.at("root/etc/systemd/system/docker.service.d");
    fs::create_dir_all(&units).expect("a folder");
    fs::write(units.join("10-machine.conf"), DROP_IN).expect("written");
    old
}

#[test]
fn point_04_a_certificate_of_docker_machines_that_ended_is_made_anew_by_one_command() {
    let (lab, host) = (Lab::bare(), Host::new());
    let old = old_machine(&lab, &host, 1100);
    let before = files(&old.root);
    let root = old.root.display().to_string();
    let done = lab
        .forge(&format!(
            "import docker-machine {root} --host-key g1={}",
            host.fingerprint()
        ))
        .ok();
    let ended = "g1: the certificate of its engine ended on ";
    assert!(done.stderr.contains(ended), "{}", done.stderr);

    // Nobody is let in, and the command that helps is said.
    let env = lab.forge("env g1").run().code(1);
    assert_eq!(env.stdout, "");
    assert!(
        env.stderr
            .contains("`forge regenerate-certs g1` makes it anew"),
        "{}",
        env.stderr
    );
    let shown = lab.forge("regenerate-certs --dry-run g1").ok();
    assert_eq!(
        shown.stdout,
        "g1: its engine restarts; its containers keep running\n"
    );

    let renewed = lab.forge("regenerate-certs -f g1").ok();
    let told = "whoever shows one of docker-machine's is let in no more";
    assert!(renewed.stderr.contains(told), "{}", renewed.stderr);
    let env = lab.forge("env g1").ok();
    let url = format!("tcp://127.0.0.1:{}", host.engine);
    assert!(env.stdout.contains(&url), "{}", env.stdout);
    assert_eq!(env.stderr, "", "nothing is near its end");
    lab.forge("version g1").says(0, "20.10.24\n", "");
    let list = lab.forge("ls").ok();
    assert!(list.stdout.contains("v20.10.24"), "{}", list.stdout);
    assert!(list.stdout.contains("generic"), "{}", list.stdout);

    // The engine was taken over whole: what docker-machine said of it stays, what opened it gave way, and is kept.
    assert!(
        !host
            .at("root/etc/systemd/system/docker.service.d/10-machine.conf")
            .exists()
    );
    let kept = fs::read_to_string(host.at("root/var/lib/forge/before/10-machine.conf"));
    assert_eq!(kept.expect("kept"), DROP_IN);
    let restarts = fs::read_to_string(host.at("root/etc/docker/restarts")).expect("restarts");
    assert_eq!(restarts.lines().count(), 1, "{restarts}");
    for flag in ["--storage-driver=overlay2", "--label=made=generic"] {
        assert!(restarts.contains(flag), "{flag}: {restarts}");
    }
    assert!(!restarts.contains("/etc/docker/server.pem"), "{restarts}");
    assert!(
        host.at("root/kept").exists(),
        "what was there is kept first"
    );
    let record = lab.record("g1");
    assert_eq!(record["renewing"], Value::Null);
    assert_eq!(record["tls"]["names"], json!(["127.0.0.1", "g1"]));

    // A second look changes nothing, and another renewal goes the same way, without the warning.
    let again = lab.forge("--json provision g1").ok().summary();
    assert_eq!(again["changed"], 0, "{again}");
    let renewed = lab.forge("regenerate-certs -f g1").ok();
    assert!(!renewed.stderr.contains(told), "{}", renewed.stderr);
    lab.forge("upgrade g1").ok();
    let restarts = fs::read_to_string(host.at("root/etc/docker/restarts")).expect("restarts");
    for line in restarts.lines() {
        assert!(line.contains("--label=made=generic"), "{restarts}");
    }
    lab.forge("version g1").says(0, "20.10.24\n", "");
    assert_eq!(files(&old.root), before, "nothing is changed there");
    lab.forge("rm -y g1").ok();
    assert!(
        !host.at("root/kept").exists(),
        "what was there is given back"
    );
    let key = fs::read_to_string(old.root.join("machines/g1/id_rsa.pub")).expect("a key");
    assert!(
        host.authorized().contains(key.trim()),
        "the key is docker-machine's"
    );
    // Each import has a claim of its own, and a host that an earlier one took over is no other store's.
    fs::write(host.at("root/kept"), "an earlier one\n").expect("written");
    lab.forge(&format!(
        "import docker-machine {root} --host-key g1={}",
        host.fingerprint()
    ))
    .ok();
    lab.forge("regenerate-certs -f g1").ok();
    lab.forge("version g1").says(0, "20.10.24\n", "");
}

#[test]
fn of_all_machines_those_of_docker_machine_are_done_too() {
    let (lab, host) = (Lab::bare(), Host::new());
    let old = old_machine(&lab, &host, 10);
    let root = old.root.display().to_string();
    lab.forge(&format!("import docker-machine {root}")).ok();
    // Nobody has vouched for its key: nothing is begun.
    let refused = lab.forge("regenerate-certs --all -f").run().code(1);
    let said = "no host key of machine `g1` is trusted yet";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    let refused = lab.forge("provision g1").run().code(1);
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    assert_eq!(lab.record("g1")["renewing"], Value::Null);
    lab.forge("env g1").ok();
    lab.forge(&format!(
        "import docker-machine {root} --host-key g1={}",
        host.fingerprint()
    ))
    .ok();
    lab.forge("regenerate-certs --all -f").ok();
    lab.forge("version g1").says(0, "20.10.24\n", "");
}

/// A store with the machine of `host`, imported and trusted.
fn imported(host: &Host, age: i64) -> Lab {
    let lab = Lab::bare();
    let old = old_machine(&lab, host, age);
    lab.forge(&format!(
        "import docker-machine {} --host-key g1={}",
        old.root.display(),
        host.fingerprint()
    ))
    .ok();
    lab
}

#[test]
fn a_renewal_of_an_imported_machine_that_was_cut_off_is_gone_on_with() {
    let words = "regenerate-certs -f g1";
    let passed = {
        let host = Host::new();
        points(&imported(&host, 1100), words)
    };
    let saves: Vec<usize> = (1..)
        .zip(&passed)
        .filter(|(_, name)| name.contains("machine.json"))
        .map(|(at, _)| at)
        .collect();
    assert!(saves.len() > 2, "{passed:?}");
    for at in saves {
        let host = Host::new();
        let lab = imported(&host, 1100);
        assert_eq!(aborted(&lab, words, at).code, ABORTED, "point {at}");
        lab.forge(words).ok();
        lab.forge("version g1").says(0, "20.10.24\n", "");
        assert_eq!(lab.record("g1")["renewing"], Value::Null, "point {at}");
    }
}
