//! The driver `libvirt` from end to end, its machines being domains of real libvirtds in name spaces of the test's
//! own (`tests/lab/with-libvirt`): one machine on a bridge, then a swarm of three managers over two hosts, one of
//! which is cut off. Needs root, for the name spaces.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forge_lab::{Steps, Store, wait};
use serde_json::Value;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-libvirt");

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1200);

/// The libvirtd of this host, and of the other.
const HERE: &str = "qemu:///system";
const THERE: &str = "qemu+ssh://10.199.0.2/system";

/// A foreign domain and a foreign network, as somebody else would have defined them.
const DOMAIN: &str = "<domain type='qemu'><name>taken</name><memory unit='MiB'>64</memory>\
    <os><type arch='x86_64'>hvm</type></os></domain>";
const NETWORK: &str = "<network><name>theirs</name><forward mode='nat'/>\
    <ip address='10.77.0.1' prefix='24'/></network>";

/// A network whose machines other hosts reach, of the same range at each of two hosts.
const LAN: &str = "<network><name>lan</name><forward mode='route'/><ip address='10.78.0.1' prefix='24'>\
    <dhcp><range start='10.78.0.10' end='10.78.0.90'/></dhcp></ip></network>";

const MACHINES: [&str; 3] = ["default-m1", "default-m2", "default-m3"];

#[test]
fn lab_libvirt_machine() {
    scenario("lab_libvirt_machine", |steps, store| {
        foreign();
        what_cannot_be(steps, store);
        on_a_bridge(steps, store);
    });
}

#[test]
fn lab_libvirt_swarm() {
    scenario("lab_libvirt_swarm", |steps, store| {
        foreign();
        over_two_hosts(steps, store);
        cut_off(steps, store);
        to_the_end(steps, store);
    });
}

/// Runs what follows where the hosts are.
fn scenario(name: &str, inside: impl FnOnce(&mut Steps, &Store)) {
    if std::env::var_os("FORGE_LIBVIRT_INSIDE").is_some() {
        return inside(&mut Steps::new(name), &Store::new(FORGE));
    }
    forge_lab::run_inside(FORGE, &[WRAPPER, "--hosts", "2"], name, DEADLINE);
}

fn virsh_at(uri: &str, words: &[&str], document: &str) -> String {
    let mut command = Command::new("virsh");
    command.args(["--quiet", "--connect", uri]).args(words);
    forge_lab::run(&mut command, document.as_bytes(), Duration::from_secs(60))
        .ok()
        .text()
}

fn virsh(words: &[&str], document: &str) -> String {
    virsh_at(HERE, words, document)
}

/// The cable to the other host.
fn cable(state: &str) {
    let mut command = Command::new("ip");
    command.args(["link", "set", "to-host2", state]);
    forge_lab::run(&mut command, b"", Duration::from_secs(10)).ok();
    if state == "up" {
        // It went with the cable.
        let mut command = Command::new("ip");
        command.args(["route", "replace", "10.133.9.0/24", "via", "10.199.0.2"]);
        forge_lab::run(&mut command, b"", Duration::from_secs(10)).ok();
    }
}

/// What somebody else has at this host.
fn foreign() {
    virsh(&["define", "/dev/stdin"], DOMAIN);
    virsh(&["net-define", "/dev/stdin"], NETWORK);
}

fn create(words: &str) -> Vec<&str> {
    let mut all = vec!["create", "--driver", "libvirt"];
    all.extend(words.split(' '));
    all
}

fn what_cannot_be(steps: &mut Steps, store: &Store) {
    steps.step("what cannot be is refused before anything is made");
    for (words, said) in [
        ("taken", "has another domain named `taken`"),
        ("n1 --libvirt-pool fast", "has no storage pool `fast`"),
        (
            "n1 --libvirt-network-cidr 10.77.0.0/16",
            "overlaps libvirt's network `theirs`, which is 10.77.0.0/24",
        ),
        (
            "n1 --libvirt-network lan",
            "has no network `lan`\nhint: there are `theirs`",
        ),
        (
            "n1 --libvirt-network bridge:br9",
            "this host has no bridge `br9`",
        ),
        ("n1 --libvirt-memory 16000000", "MiB in all"),
        ("n1 --libvirt-virsh /nonexistent/virsh", "is not installed"),
        // Nothing listens there.
        (
            "n1 --libvirt-network routed --libvirt-uri qemu+ssh://10.199.0.2:9/system",
            "has to succeed",
        ),
        // It lets nobody in but root.
        (
            "n1 --libvirt-network routed --libvirt-uri qemu+ssh://nobody@10.199.0.2/system",
            "`ssh -o BatchMode=yes nobody@10.199.0.2 true` has to succeed",
        ),
        // Its key is not known under this address, and the user's configuration trusts every host.
        (
            "n1 --libvirt-network routed --libvirt-uri qemu+ssh://10.199.0.3/system",
            "forge trusts no host key by itself",
        ),
    ] {
        let ran = store.run(&create(words)).exits(3);
        assert!(ran.to_string().contains(said), "{ran}");
    }
    for (words, said) in [
        (
            "n1 --libvirt-uri qemu+ssh://10.199.0.3/system?no_verify=1",
            "it has parameters",
        ),
        (
            "n1 --libvirt-uri qemu+ssh://10.199.0.2/system",
            "cannot be reached from here",
        ),
        (
            "n1 --libvirt-uri qemu:///session",
            "use `/system` in place of `/session`",
        ),
        (
            "n1 --libvirt-network routed --libvirt-uri qemu:///system,qemu+ssh://h/system",
            "several hosts are the zones of a cluster",
        ),
    ] {
        let ran = store.run(&create(words)).exits(2);
        assert!(ran.to_string().contains(said), "{ran}");
    }
    assert_eq!(store.ok(&["ls", "-q"]), "");
}

/// A bridge of this host with a DHCP server of its own, which ends with this.
struct Bridge(Child);

impl Bridge {
    fn new() -> Self {
        for line in [
            "link add br0 type bridge",
            "address add 10.55.0.1/24 dev br0",
            "link set br0 up",
        ] {
            forge_lab::run(
                Command::new("ip").args(line.split(' ')),
                b"",
                Duration::from_secs(10),
            )
            .ok();
        }
        let leases =
            Path::new(&std::env::var("FORGE_LIBVIRT_FOLDER").expect("inside")).join("leases");
        let server = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--pid-file",
                "--user=root",
            ])
            .args([
                "--interface=br0",
                "--bind-interfaces",
                "--dhcp-range=10.55.0.50,10.55.0.90",
            ])
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq is installed");
        Self(server)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_a_bridge(steps: &mut Steps, store: &Store) {
    steps.step("a machine on a bridge, whose address its server gives; restarted, it has it again");
    let _bridge = Bridge::new();
    store.ok(&create(
        "n1 --libvirt-accel qemu --libvirt-network bridge:br0",
    ));
    let address = store.ip("n1");
    assert!(address.starts_with("10.55.0."), "{address}");
    assert_eq!(virsh(&["domuuid", "n1"], ""), store.claim("n1"));
    store.ok(&["restart", "n1"]);
    assert_eq!(store.ip("n1"), address);
    assert_eq!(store.ssh("n1", "hostname"), "n1");

    steps.step("the first seed is blank, the console is there");
    let seed = format!(
        "/var/lib/libvirt/images/forge-{}-seed.iso",
        store.claim("n1")
    );
    let bytes = std::fs::read(seed).expect("the seed");
    assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0));
    assert!(store.ok(&["logs", "n1"]).contains("forge-seed"));

    steps.step("a domain that was removed behind forge's back is told, and forgotten");
    let claim = store.claim("n1");
    virsh(&["destroy", &claim], "");
    virsh(&["undefine", &claim], "");
    assert_eq!(store.ok(&["status", "n1"]), "Absent");
    store.ok(&["rm", "-y", "n1"]);
    nothing_left();
}

/// Nothing but the foreign domain and the foreign network.
fn nothing_left() {
    assert_eq!(virsh(&["list", "--all", "--name"], ""), "taken");
    assert_eq!(virsh(&["net-list", "--all", "--name"], ""), "theirs");
    assert_eq!(virsh(&["vol-list", "default"], ""), "");
    assert!(
        !Path::new("/var/lib/libvirt/images")
            .read_dir()
            .is_ok_and(|mut left| left.next().is_some())
    );
}

fn up(network: &str) -> Vec<&str> {
    let mut words = vec!["cluster", "up", "--driver", "libvirt", "--managers", "3"];
    words.extend(["--libvirt-uri", "z2=qemu+ssh://10.199.0.2/system"]);
    words.extend(["--libvirt-uri", "z1=qemu:///system"]);
    words.extend(["--libvirt-network", network, "--libvirt-accel", "qemu"]);
    words
}

fn over_two_hosts(steps: &mut Steps, store: &Store) {
    steps.step("the plan: each host is a zone, and NAT on both sides is refused");
    let refused = store.run(&up("forge")).exits(2);
    assert!(
        refused.err.contains("--libvirt-network routed"),
        "{refused}"
    );
    let mut more = up("routed");
    more.extend(["--zones", "3", "--dry-run"]);
    let refused = store.run(&more).exits(2);
    assert!(refused.err.contains("3 zones are wished"), "{refused}");
    let mut dry = up("routed");
    dry.push("--dry-run");
    let plan = store.run(&dry).exits(2).text();
    assert!(
        plan.contains(&format!("z1 at `{HERE}`")) && plan.contains(&format!("z2 at `{THERE}`")),
        "{plan}"
    );
    assert!(!plan.contains("only labels"), "{plan}");

    steps.step("networks of two hosts with one range are told before anything is made");
    for uri in [HERE, THERE] {
        virsh_at(uri, &["net-define", "/dev/stdin"], LAN);
    }
    let refused = store.run(&up("lan")).exits(3);
    assert_eq!(store.ok(&["ls", "-q"]), "");
    for said in [
        format!("`lan` of zone `z1` at `{HERE}` is 10.78.0.0/24"),
        format!("`lan` of zone `z2` at `{THERE}` is 10.78.0.0/24: they overlap"),
        "net-edit lan".to_owned(),
    ] {
        assert!(refused.err.contains(&said), "{refused}");
    }
    for uri in [HERE, THERE] {
        virsh_at(uri, &["net-undefine", "lan"], "");
    }

    steps.step("a swarm of three managers over two hosts");
    let first = store.json(&up("routed"));
    forge_lab::three_with_a_leader(&first);
    for (name, uri, range) in [
        (MACHINES[0], HERE, "10.133.8."),
        (MACHINES[1], THERE, "10.133.9."),
        (MACHINES[2], HERE, "10.133.8."),
    ] {
        let address = store.ip(name);
        assert!(address.starts_with(range), "{name}: {address}");
        assert_eq!(store.ssh(name, "hostname"), name);
        assert_eq!(virsh_at(uri, &["domuuid", name], ""), store.claim(name));
    }

    steps.step("a second `cluster up` changes nothing");
    assert_eq!(store.json(&up("routed"))["changed"], 0);
    let recorded = ["cluster", "up", "--driver", "libvirt"];
    assert_eq!(store.json(&recorded)["changed"], 0);
    let mut turned = up("routed");
    turned[7] = "z1=qemu+ssh://10.199.0.2/system";
    turned[9] = "z2=qemu:///system";
    let refused = store.run(&turned).exits(1);
    assert!(
        refused.err.contains("machines stay where they are"),
        "{refused}"
    );
}

fn status(store: &Store) -> Value {
    store.run(&["cluster", "status", "--json"]).json()
}

fn cut_off(steps: &mut Steps, store: &Store) {
    steps.step("cut off, the other host is told as lost; the quorum holds");
    cable("down");
    let seen = wait(
        "the managers notice",
        Duration::from_secs(120),
        || match status(store) {
            seen if seen["reachable"] == 2 => Ok(seen),
            seen => Err(seen.to_string()),
        },
    );
    assert_eq!(seen["quorum"], true, "{seen}");
    let told = seen["trouble"].to_string();
    assert!(
        told.contains(&format!(
            "`default-m2`: libvirt at `{THERE}` cannot be reached"
        )),
        "{seen}"
    );
    let states: Vec<&str> = seen["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter_map(|node| node["state"].as_str())
        .collect();
    assert_eq!(states, ["running", "error", "running"], "{seen}");
    let words = store.run(&["cluster", "status"]).exits(1).text();
    assert!(
        words.contains("quorum: 2 of 3 managers take part, 2 needed: holds"),
        "{words}"
    );
    let listed = store.ok(&["ls"]);
    assert_eq!(listed.matches(" Running").count(), 2, "{listed}");
    let refused = store
        .run(&["cluster", "up", "--driver", "libvirt"])
        .exits(1);
    assert!(refused.err.contains(THERE), "{refused}");

    steps.step("joined again, it is whole again");
    cable("up");
    wait(
        "the cluster is whole",
        Duration::from_secs(180),
        || match status(store) {
            seen if seen["trouble"] == Value::Array(Vec::new()) && seen["quorum"] == true => Ok(()),
            seen => Err(seen.to_string()),
        },
    );
}

fn to_the_end(steps: &mut Steps, store: &Store) {
    steps.step("`cluster down` leaves what is not forge's, and nothing else");
    store.ok(&["cluster", "down", "-y"]);
    nothing_left();
    assert_eq!(virsh_at(THERE, &["list", "--all", "--name"], ""), "");
    assert_eq!(virsh_at(THERE, &["net-list", "--all", "--name"], ""), "");
    assert_eq!(virsh_at(THERE, &["vol-list", "default"], ""), "");
}
