//! Many processes on one fresh store: they share one CA and one ledger of addresses, and never a machine.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::certificates::signed_by;
use common::{Ended, Lab, Running, until};
use forge_driver::fake::Knob;
use rustix::process::Signal;

const PROCESSES: usize = 20;

fn all(lab: &Lab, words: impl Fn(usize) -> String) -> Vec<Ended> {
    let running: Vec<Running> = (1..=PROCESSES)
        .map(|number| lab.forge(&words(number)).start())
        .collect();
    running
        .into_iter()
        .map(|running| running.wait(lab))
        .collect()
}

#[test]
fn twenty_processes_create_twenty_machines_on_a_fresh_store() {
    let lab = Lab::new();
    for ended in all(&lab, |number| format!("create p{number}")) {
        ended.code(0);
    }
    let read = |path: &str| fs::read_to_string(lab.home.join(path)).expect("a file of the store");
    let ca = read("certs/ca.pem");
    assert!(signed_by(&read("certs/cert.pem"), &ca));
    let (mut loopback, mut internal, mut claims, mut networks) = (
        BTreeSet::new(),
        BTreeSet::new(),
        BTreeSet::new(),
        BTreeSet::new(),
    );
    for number in 1..=PROCESSES {
        let name = format!("p{number}");
        let record = lab.record(&name);
        assert_eq!(record["stage"], "ready", "{name}");
        let file = |file: &str| read(&format!("machines/{name}/{file}"));
        assert_eq!(file("ca.pem"), ca, "{name}: one CA");
        assert!(signed_by(&file("server.pem"), &ca), "{name}: signed by it");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let placement = &record["placement"];
        assert!(
            loopback.insert(text(&placement["loopback"])),
            "{name}: an address of its own"
        );
        assert!(
            internal.insert(text(&placement["nic"]["address"])),
            "{name}"
        );
        assert!(claims.insert(text(&record["claim"])), "{name}");
        networks.insert(text(&placement["nic"]["network"]["id"]));
        // The machine has the very certificate: `create` has proved it by a handshake.
        let claim = text(&record["claim"]).parse().expect("a claim");
        let served = fs::read_to_string(
            lab.provider
                .folder(claim)
                .join("root/etc/docker/tls/server.pem"),
        )
        .expect("the machine's certificate");
        assert_eq!(served.trim(), file("server.pem").trim(), "{name}");
    }
    assert_eq!(networks.len(), 1, "one network");
    assert_eq!(lab.provider.creates().len(), PROCESSES);
    assert_eq!(lab.provider.vms().expect("the provider").len(), PROCESSES);
    let ledger: serde_json::Value =
        serde_json::from_str(&read("networks/allocation.json")).expect("JSON");
    assert_eq!(ledger["networks"].as_array().expect("a list").len(), 1);
    let number = |address: &str| u32::from(address.parse::<std::net::Ipv4Addr>().expect("IPv4"));
    assert_eq!(
        ledger["loopback"].as_u64().expect("a number"),
        u64::from(
            loopback
                .iter()
                .map(|address| number(address))
                .max()
                .expect("some")
        ),
        "the ledger remembers the address given last"
    );
    let listed = lab.forge("ls --json").ok().json();
    assert!(
        listed
            .as_array()
            .expect("a list")
            .iter()
            .all(|machine| machine["state"] == "Running" && machine["error"] == "")
    );
}

#[test]
fn a_check_that_another_command_overtakes_is_made_again() {
    let lab = Lab::new();
    lab.turn(Knob::HoldCheck, true);
    let slow = lab.forge("create slow").start();
    until("the check", || {
        lab.provider.calls().iter().any(|call| call == "check 1")
    });
    // It has looked at a network that is recorded nowhere; meanwhile another command records it.
    slow.signal(Signal::STOP);
    lab.turn(Knob::HoldCheck, false);
    lab.forge("create fast").ok();
    slow.signal(Signal::CONT);
    slow.wait(&lab).code(0);
    let network = |name: &str| lab.record(name)["placement"]["nic"]["network"]["id"].clone();
    assert_eq!(network("slow"), network("fast"));
}

#[test]
fn twenty_processes_that_want_one_name_make_one_machine() {
    let lab = Lab::new();
    let ended = all(&lab, |_| "create n1".to_owned());
    let made = ended.iter().filter(|ended| ended.code == 0).count();
    assert_eq!(made, 1, "{ended:#?}");
    for ended in ended.iter().filter(|ended| ended.code != 0) {
        assert_eq!(ended.code, 1);
        assert!(
            ended
                .stderr
                .contains("error: machine `n1` already exists\nhint: `forge ls` shows the machines; use another name\n"),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(lab.provider.creates().len(), 1);
}

#[test]
fn create_and_rm_that_race_leave_a_whole_machine_or_none() {
    let lab = Lab::new();
    let running: Vec<Running> = (0..PROCESSES)
        .map(|number| {
            let words = if number % 2 == 0 {
                "create n1"
            } else {
                "rm -f n1"
            };
            lab.forge(words).start()
        })
        .collect();
    for running in running {
        let ended = running.wait(&lab);
        let exists = ended.stderr.contains("machine `n1` already exists");
        assert!(
            ended.code == 0 || exists,
            "{}: {}",
            ended.words,
            ended.stderr
        );
    }
    let vms = lab.provider.vms().expect("the provider");
    let listed = lab.forge("ls -q").ok().stdout;
    if vms.is_empty() {
        assert_eq!(listed, "");
    } else {
        assert_eq!((vms.len(), listed.as_str()), (1, "n1\n"));
        assert_eq!(lab.record("n1")["stage"], "ready");
        assert_eq!(lab.record("n1")["claim"], vms[0].claim.to_string());
    }
    lab.forge("rm -f n1").ok();
    assert!(lab.provider.vms().expect("the provider").is_empty());
    assert!(lab.provider.networks().expect("the provider").is_empty());
}

#[test]
fn a_child_that_survives_holds_the_lock_and_is_named() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let lock = lab.home.join("locks/machine-n1.lock");
    // As what a killed forge leaves: nobody has the recorded pid, and a child has the descriptor.
    fs::write(&lock, "999999999\n").expect("a pid that is gone");
    let mut child = Command::new("flock")
        .arg(&lock)
        .args(["sleep", "60"])
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("flock, of util-linux");
    let deadline = Instant::now() + Duration::from_secs(20);
    let held = || {
        let file = fs::File::open(&lock).expect("the lock");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    };
    while !held() {
        assert!(Instant::now() < deadline, "the child takes the lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = lab.forge("stop n1 --timeout 1").run();
    let group = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    rustix::process::kill_process_group(group.expect("a pid"), Signal::KILL).expect("it runs");
    child.wait().expect("it ended");
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error: machine `n1` is busy: pid ")
            && ended
                .stderr
                .contains("left over from a forge that was killed"),
        "{}",
        ended.stderr
    );
    lab.forge("stop n1").ok();
}

#[test]
fn a_list_of_a_hundred_machines_asks_the_provider_once() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let record = lab.record("n1");
    for number in 2..=100 {
        let name = format!("n{number}");
        let mut copy = record.clone();
        copy["name"] = name.clone().into();
        copy["claim"] = uuid::Uuid::new_v4().to_string().into();
        let folder = lab.home.join("machines").join(name);
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("machine.json"), copy.to_string()).expect("a record");
    }
    let before = lab.provider.calls().len();
    let listed = lab.forge("ls --json").ok().json();
    assert_eq!(listed.as_array().expect("a list").len(), 100);
    assert_eq!(lab.provider.calls()[before..], ["observe 100"]);
    lab.forge("ls -q").ok();
    assert_eq!(
        lab.provider.calls().len(),
        before + 1,
        "names alone need no provider"
    );
}
