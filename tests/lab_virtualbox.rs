//! The driver `virtualbox` from end to end: a swarm of three managers whose machines the real VBoxManage made. What runs
//! them in the place of VirtualBox's kernel module is in `tests/lab/with-virtualbox`. Needs root, for name spaces.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use forge_lab::{Dice, Steps, Store};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-virtualbox");

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1200);

/// The address that every machine has behind NAT.
const BEHIND_NAT: &str = "10.0.2.15";

#[test]
fn lab_virtualbox_swarm() {
    if std::env::var_os("FORGE_VIRTUALBOX_INSIDE").is_some() {
        return inside();
    }
    forge_lab::run_inside(FORGE, &[WRAPPER], "lab_virtualbox_swarm", DEADLINE);
}

#[test]
fn lab_virtualbox_host_only() {
    if std::env::var_os("FORGE_VIRTUALBOX_INSIDE").is_some() {
        return host_only();
    }
    forge_lab::run_inside(FORGE, &[WRAPPER], "lab_virtualbox_host_only", DEADLINE);
}

fn manage(words: &[&str]) -> String {
    forge_lab::run(
        Command::new("VBoxManage").args(words),
        b"",
        Duration::from_secs(60),
    )
    .ok()
    .text()
}

/// A program that stands where VBoxManage is looked for.
fn program(store: &Store, name: &str, script: &str) -> PathBuf {
    let file = store.home().with_file_name(name);
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("chmod");
    file
}

fn host_only() {
    let mut steps = Steps::new("virtualbox: host-only");
    let store = Store::new(FORGE);
    steps.step("a machine is reached at its own address");
    let create = "create --driver virtualbox --virtualbox-hostonly-cidr 192.168.57.1/24";
    let create: Vec<&str> = create.split(' ').collect();
    store.ok(&[&create[..], &["h1"]].concat());
    let ip = store.ip("h1");
    assert!(ip.starts_with("192.168.57."), "{ip}");
    assert_eq!(store.ok(&["url", "h1"]), format!("tcp://{ip}:2376"));
    assert_eq!(store.ssh("h1", "hostname"), "h1");
    let mut greeting = [0; 8];
    TcpStream::connect((ip.as_str(), 22))
        .and_then(|mut stream| stream.read_exact(&mut greeting))
        .expect("SSH answers there");
    assert_eq!(&greeting, b"SSH-2.0-");
    let addresses = store.ssh("h1", "ip -4 -o addr");
    assert!(addresses.contains(&format!("{ip}/24")), "{addresses}");
    let leases = manage(&["list", "dhcpservers"]);
    assert!(
        leases.contains(&format!("VM NIC: {} slot 1", store.claim("h1"))),
        "{leases}"
    );

    steps.step("what overlaps it is refused with both shown, and its ports need no publishing");
    let other = "create --driver virtualbox h2 --virtualbox-hostonly-cidr";
    let other: Vec<&str> = other.split(' ').collect();
    let refused = store
        .run(&[&other[..], &["192.168.57.2/24"]].concat())
        .exits(3);
    let shown = refused.to_string();
    assert!(
        shown.contains("192.168.57.0/24 with this host at 192.168.57.2")
            && shown.contains("`vboxnet0`, which is 192.168.57.0/24"),
        "{shown}"
    );
    let told = store.run(&["publish", "h1", "8080"]).exits(2).to_string();
    assert!(told.contains("an address of its own"), "{told}");

    steps.step("switched off it keeps its address, and the last takes the interface along");
    store.ok(&["stop", "h1"]);
    assert_eq!(store.ip("h1"), ip);
    store.ok(&["rm", "-f", "h1"]);
    let left = manage(&["list", "hostonlyifs"]);
    assert!(!left.contains("vboxnet"), "{left}");
}

fn inside() {
    let mut steps = Steps::new("virtualbox");
    let store = Store::new(FORGE);
    steps.step("what cannot be is refused before anything is made");
    let elsewhere = store.home().with_file_name("theirs");
    let elsewhere = elsewhere.to_str().expect("text");
    manage(&[
        "createvm",
        "--name",
        "taken",
        "--register",
        "--basefolder",
        elsewhere,
    ]);
    let theirs = "dhcpserver add --network theirs --server-ip 10.77.0.1 --netmask 255.255.255.0 \
        --lower-ip 10.77.0.10 --upper-ip 10.77.0.20 --enable";
    manage(&theirs.split_whitespace().collect::<Vec<_>>());
    let old = program(&store, "old", "echo 6.0.24r139119");
    let garbled = program(
        &store,
        "garbled",
        "[ $1 != --version ] && echo garbage || echo 7.1.4r165100",
    );
    for (words, said) in [
        ("taken".to_owned(), "has another machine named `taken`"),
        (
            "n1 --virtualbox-intnet-cidr 10.77.0.0/16".to_owned(),
            "overlaps VirtualBox's network `theirs`, which is 10.77.0.0/24",
        ),
        (
            "n1 --virtualbox-hostonly-cidr 192.168.99.1/24".to_owned(),
            "allows no host-only network 192.168.99.0/24 here",
        ),
        (
            "n1 --virtualbox-vboxmanage /nonexistent/VBoxManage".to_owned(),
            "is not installed",
        ),
        (
            format!("n1 --virtualbox-vboxmanage {}", old.display()),
            "6.0.24r139119 is too old",
        ),
        (
            format!("n1 --virtualbox-vboxmanage {}", garbled.display()),
            "`VBoxManage list vms` answered what forge does not understand",
        ),
    ] {
        let mut all = vec!["create", "--driver", "virtualbox"];
        all.extend(words.split(' '));
        let ran = store.run(&all).exits(3);
        assert!(ran.to_string().contains(said), "{ran}");
    }
    assert_eq!(store.ok(&["ls", "-q"]), "");

    steps.step("a swarm of three managers in two zones");
    let up = "cluster up --driver virtualbox --managers 3 --zones 2 --virtualbox-disk-size 24G";
    let up: Vec<&str> = up.split(' ').collect();
    // Killed again and again while machines are made, it goes on, and makes no machine twice.
    let mut dice = Dice::new();
    for round in 1..=3 {
        let after = Duration::from_millis(300 + dice.below(round * 1500));
        let mut running = store.command(&up);
        running.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = running.spawn().expect("forge starts");
        std::thread::sleep(after);
        running.kill().expect("killed");
        running.wait().expect("ended");
        steps.note(&format!("killed after {} ms", after.as_millis()));
    }
    let first = store.json(&up);
    let there = manage(&["list", "vms"]);
    let made = there.lines().filter(|line| line.contains("\"default-m"));
    assert_eq!(made.count(), 3, "{there}");
    forge_lab::three_with_a_leader(&first);
    let names = ["default-m1", "default-m2", "default-m3"];
    let place = |name: &str| store.machine(name)["placement"]["nic"]["address"].clone();
    let places = names.map(place);
    let leases = manage(&["list", "dhcpservers"]);
    for (name, place) in names.iter().zip(&places) {
        let address = place.as_str().expect("an address");
        assert!(address.starts_with("10.133.7."), "{name}: {address}");
        assert_eq!(store.ssh(name, "hostname"), *name);
        // The guest has the address that VirtualBox's server was told to give it, and the swarm knows no other.
        assert!(leases.contains(&format!("VM NIC: {} slot 1", store.claim(name))));
        assert!(
            store
                .ssh(name, "ip -4 -o addr")
                .contains(&format!("{address}/24"))
        );
        let swarm = store.ssh(
            name,
            "docker info --format '{{.Swarm.NodeAddr}} {{.Swarm.RemoteManagers}}'",
        );
        assert!(swarm.starts_with(address), "{swarm}");
        assert!(!swarm.contains(BEHIND_NAT), "{swarm}");
        // It has grown, and is linked to the one base.
        let sectors = store.ssh(name, "cat /sys/block/sda/size");
        assert_eq!(sectors.parse(), Ok((24_u64 << 30) / 512), "{sectors}");
        let shown = manage(&["showvminfo", &store.claim(name), "--machinereadable"]);
        assert!(shown.contains("/disk.vdi\""), "{shown}");
    }
    let bases = manage(&["list", "hdds"]);
    let bases = bases.lines().filter(|line| line.contains("/bases/"));
    assert_eq!(bases.count(), 1);

    steps.step("a second `cluster up` changes nothing");
    assert_eq!(store.json(&up)["changed"], 0);

    steps.step("a published port leads through NAT, also after a restart");
    let ip = store.ip("default-m2");
    let listener = TcpListener::bind((ip.as_str(), 18080)).expect("listens");
    let taken = |ran: forge_lab::Ran| {
        let shown = ran.exits(1).to_string();
        assert!(
            shown.contains(&format!("port 18080 of {ip} is taken"))
                && shown.contains("lab_virtualbox"),
            "{shown}"
        );
    };
    let publish = ["publish", "default-m2", "18080:8080"];
    taken(store.run(&publish));
    drop(listener);
    store.ok(&publish);
    store.ok(&["stop", "default-m2"]);
    let listener = TcpListener::bind((ip.as_str(), 18080)).expect("listens");
    taken(store.run(&["start", "default-m2"]));
    drop(listener);
    store.ok(&["start", "default-m2"]);
    assert_eq!(store.ip("default-m2"), ip);
    assert_eq!(place("default-m2"), places[1]);
    assert!(
        store
            .ssh("default-m2", "ip -4 -o addr")
            .contains(places[1].as_str().unwrap_or("?"))
    );
    let serve = "sudo -n nft insert rule inet forge input tcp dport 8080 accept && sudo -n /usr/sbin/sshd -p 8080";
    store.ssh("default-m2", serve);
    let said = forge_lab::wait(
        "an answer at the published port",
        Duration::from_secs(60),
        || {
            let mut stream =
                TcpStream::connect((ip.as_str(), 18080)).map_err(|error| error.to_string())?;
            let deadline = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut text = [0; 8];
            deadline
                .and_then(|()| stream.read_exact(&mut text))
                .map_err(|error| error.to_string())?;
            Ok(text)
        },
    );
    assert_eq!(&said, b"SSH-2.0-");

    steps.step("the first seed is blank, the console is there");
    let folder = store
        .home()
        .join("drivers/virtualbox")
        .join(store.claim("default-m1"));
    let bytes = std::fs::read(folder.join("seed.iso")).expect("the seed");
    assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0));
    assert!(store.ok(&["logs", "default-m1"]).contains("forge-seed"));

    steps.step("a pause is told, and a machine comes back from it");
    let claim = store.claim("default-m3");
    manage(&["controlvm", &claim, "pause"]);
    assert_eq!(store.ok(&["status", "default-m3"]), "Paused");
    store.ok(&["start", "default-m3"]);
    assert_eq!(store.ok(&["status", "default-m3"]), "Running");

    steps.step("a machine that was removed behind forge's back is told, and forgotten");
    manage(&["controlvm", &claim, "poweroff"]);
    manage(&["unregistervm", &claim, "--delete"]);
    assert_eq!(store.ok(&["status", "default-m3"]), "Absent");

    steps.step("`cluster down` leaves what is not forge's, and nothing else");
    store.ok(&["cluster", "down", "-y"]);
    let vms = manage(&["list", "vms"]);
    assert!(
        vms.contains("\"taken\"") && !vms.contains("default-"),
        "{vms}"
    );
    let servers = manage(&["list", "dhcpservers"]);
    let servers: Vec<&str> = servers
        .lines()
        .filter_map(|line| line.strip_prefix("NetworkName:"))
        .map(str::trim)
        .filter(|name| !name.starts_with("HostInterfaceNetworking"))
        .collect();
    assert_eq!(servers, ["theirs"]);
    for list in ["hdds", "dvds", "runningvms"] {
        let left = manage(&["list", list]);
        assert!(!left.contains("Location:") && !left.contains('{'), "{left}");
    }
}
