//! Many machines, half of which are silent: a list takes one wait, and what needs nobody asks nobody.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{FORGE, Lab};
use forge_lab::old::{OldStore, engine};
use serde_json::Value;

/// Half of them are dead.
const MACHINES: usize = 450;
/// Set where the network of the test's own is.
const INSIDE: &str = "FORGE_TEST_BLACKHOLES";

/// Whether this is inside a network with dead addresses; otherwise `test` is run there, and has to succeed.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/with-blackholes");
    let ended = Command::new(script)
        .arg(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "yes")
        .status()
        .expect("the script starts");
    assert!(ended.success(), "{test} inside a network of its own");
    false
}

#[test]
fn point_13_of_450_machines_half_are_silent_and_a_list_takes_one_wait() {
    if !inside("point_13_of_450_machines_half_are_silent_and_a_list_takes_one_wait") {
        return;
    }
    let lab = Lab::bare();
    let old = OldStore::at(&lab.folder().join("old"));
    let issued = old.many(MACHINES);
    lab.forge(&format!("import docker-machine {}", old.root.display()))
        .ok();
    let everywhere: SocketAddr = "0.0.0.0:2376".parse().expect("an address");
    engine(everywhere, &issued);
    let start = Instant::now();
    let listed = lab.forge("ls -t 5 --json").ok().json();
    let took = start.elapsed();
    let rows = listed.as_array().expect("a list");
    assert_eq!(rows.len(), MACHINES);
    let of =
        |state: &str| -> Vec<&Value> { rows.iter().filter(|row| row["state"] == state).collect() };
    let (silent, up) = (of("Timeout"), of("Running"));
    assert_eq!((silent.len(), up.len()), (MACHINES / 2, MACHINES / 2));
    // Each was waited for until the deadline of all, and none until one of its own.
    for row in silent {
        assert_eq!(row["error"], "", "{row}");
    }
    for row in up {
        assert_eq!(row["engine"], "20.10.24", "{row}");
    }
    // Loosely: one machine after another would take hours.
    assert!(took < Duration::from_secs(20), "{took:?}");

    // A single one that is silent ends in time, too, and says so.
    let start = Instant::now();
    let env = lab.forge("env m1 --timeout 2").run().code(1);
    assert_eq!(env.stdout, "");
    assert!(start.elapsed() < Duration::from_secs(20));

    // What is recorded needs no network at all: there, not even this host is.
    let nowhere = |words: &str| {
        let mut all = vec!["--net", FORGE];
        all.extend(words.split(' '));
        lab.forge(words).under("unshare", &all, &[])
    };
    let url = "tcp://127.99.0.2:2376";
    nowhere("active")
        .env("DOCKER_HOST", url)
        .says(0, "m1\n", "");
    assert_eq!(nowhere("ls -q").ok().stdout.lines().count(), MACHINES);
    nowhere("ip m1").says(0, "127.99.0.2\n", "");
    // Of a thousand, too.
    for number in MACHINES..1000 {
        let folder = lab.home.join(format!("machines/x{number}"));
        fs::create_dir(&folder).expect("mkdir");
        fs::copy(
            lab.home.join("machines/m1/machine.json"),
            folder.join("machine.json"),
        )
        .expect("copied");
    }
    assert_eq!(nowhere("ls -q").ok().stdout.lines().count(), 1000);
}

/// A host that swallows every packet: nothing is refused, and nothing ever comes back.
#[test]
fn point_05_a_wait_for_ssh_ends_in_time_with_the_last_error() {
    if !inside("point_05_a_wait_for_ssh_ends_in_time_with_the_last_error") {
        return;
    }
    let lab = Lab::bare();
    let given_up = |words: &str, reason: &[&str]| {
        let start = Instant::now();
        let ran = lab.forge(words).run().code(1);
        let took = start.elapsed();
        // Loosely: an SSH client waits for two minutes, and a kernel for as long.
        assert!(took < Duration::from_secs(15), "{words}: {took:?}");
        assert_eq!(ran.stdout, "", "{words}");
        for said in reason {
            assert!(ran.stderr.contains(said), "{words}: {}", ran.stderr);
        }
    };
    given_up(
        "create --driver generic --generic-ip-address 127.99.0.2 --generic-ssh-config none --timeout 3 n1",
        &["127.99.0.2:22", "no answer within"],
    );
    lab.forge("ls -q").says(0, "", "");
    // A machine that was met long ago, and is dark now.
    let old = OldStore::at(&lab.folder().join("old"));
    old.many(2);
    lab.forge(&format!("import docker-machine {}", old.root.display()))
        .ok();
    given_up(
        "--timeout 3 ssh m1 -- true",
        &["machine `m1`", "no answer within 3 s"],
    );
}
