//! The driver `libvirt` from end to end: a swarm of three managers whose machines are domains of a real libvirtd,
//! which lives in name spaces of the test's own (`tests/lab/with-libvirt`). Needs root, for those.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forge_lab::{Steps, Store};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-libvirt");

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1200);

/// A foreign domain and a foreign network, as somebody else would have defined them.
const DOMAIN: &str = "<domain type='qemu'><name>taken</name><memory unit='MiB'>64</memory>\
    <os><type arch='x86_64'>hvm</type></os></domain>";
const NETWORK: &str = "<network><name>theirs</name><forward mode='nat'/>\
    <ip address='10.77.0.1' prefix='24'/></network>";

#[test]
fn lab_libvirt_swarm() {
    if std::env::var_os("FORGE_LIBVIRT_INSIDE").is_some() {
        return inside();
    }
    forge_lab::run_inside(FORGE, WRAPPER, "lab_libvirt_swarm", DEADLINE);
}

fn virsh(words: &[&str], document: &str) -> String {
    let mut command = Command::new("virsh");
    command
        .args(["--quiet", "--connect", "qemu:///system"])
        .args(words);
    forge_lab::run(&mut command, document.as_bytes(), Duration::from_secs(60))
        .ok()
        .text()
}

fn inside() {
    let mut steps = Steps::new("libvirt");
    let store = Store::new(FORGE);
    steps.step("what cannot be is refused before anything is made");
    virsh(&["define", "/dev/stdin"], DOMAIN);
    virsh(&["net-define", "/dev/stdin"], NETWORK);
    for (words, said) in [
        ("taken", "has another domain named `taken`"),
        ("n1 --libvirt-pool fast", "has no storage pool `fast`"),
        (
            "n1 --libvirt-network-cidr 10.77.0.0/16",
            "overlaps libvirt's network `theirs`, which is 10.77.0.0/24",
        ),
        ("n1 --libvirt-virsh /nonexistent/virsh", "is not installed"),
    ] {
        let mut all = vec!["create", "--driver", "libvirt"];
        all.extend(words.split(' '));
        let ran = store.run(&all).exits(3);
        assert!(ran.to_string().contains(said), "{ran}");
    }
    assert_eq!(store.ok(&["ls", "-q"]), "");

    steps.step("a swarm of three managers in two zones");
    let up = [
        "cluster",
        "up",
        "--driver",
        "libvirt",
        "--managers",
        "3",
        "--zones",
        "2",
        "--libvirt-accel",
        "qemu",
    ];
    let first = store.json(&up);
    let nodes = first["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3, "{first}");
    assert!(
        nodes.iter().all(|node| node["health"] == "ready"),
        "{first}"
    );
    let leaders = nodes.iter().filter(|node| node["manager"] == "leader");
    assert_eq!(leaders.count(), 1, "{first}");
    let names = ["default-m1", "default-m2", "default-m3"];
    let addresses = names.map(|name| store.ip(name));
    for (name, address) in names.iter().zip(&addresses) {
        assert!(address.starts_with("10.133.8."), "{name}: {address}");
        assert_eq!(store.ssh(name, "hostname"), *name);
        let claim = store.claim(name);
        assert_eq!(virsh(&["domuuid", name], "").trim(), claim);
    }

    steps.step("a second `cluster up` changes nothing");
    assert_eq!(store.json(&up)["changed"], 0);

    steps.step("restarted, a machine has its address");
    store.ok(&["restart", "default-m2"]);
    assert_eq!(store.ip("default-m2"), addresses[1]);
    assert_eq!(store.ssh("default-m2", "hostname"), "default-m2");

    steps.step("the first seed is blank, the console is there");
    let seed = format!(
        "/var/lib/libvirt/images/forge-{}-seed.iso",
        store.claim("default-m1")
    );
    let bytes = std::fs::read(seed).expect("the seed");
    assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0));
    assert!(store.ok(&["logs", "default-m1"]).contains("forge-seed"));

    steps.step("a domain that was removed behind forge's back is told, and forgotten");
    let claim = store.claim("default-m3");
    virsh(&["destroy", &claim], "");
    virsh(&["undefine", &claim], "");
    assert_eq!(store.ok(&["status", "default-m3"]), "Absent");

    steps.step("`cluster down` leaves what is not forge's, and nothing else");
    store.ok(&["cluster", "down", "-y"]);
    assert_eq!(virsh(&["list", "--all", "--name"], "").trim(), "taken");
    assert_eq!(virsh(&["net-list", "--all", "--name"], "").trim(), "theirs");
    assert_eq!(virsh(&["vol-list", "default"], "").trim(), "");
    assert!(
        !Path::new("/var/lib/libvirt/images")
            .read_dir()
            .is_ok_and(|mut left| left.next().is_some())
    );
}
