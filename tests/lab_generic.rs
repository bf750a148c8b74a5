//! A host that was there before forge, in earnest: a virtual machine that a first store makes, turned back into a plain
//! Debian host with an engine, a configuration and containers of its own, which a second store adopts and leaves.

use std::fs;
use std::time::{Duration, Instant};

use forge_lab::old::OldStore;
use forge_lab::{Steps, Store, TWO_CONTAINERS, text};
use serde_json::json;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");

/// What forge made of its machine goes; what a host of somebody else's has comes.
const PLAIN: &str = r#"set -e
nft delete table inet forge 2>/dev/null || :
rm -rf /etc/systemd/system/docker.service.d /etc/docker/forge.env /etc/docker/tls /etc/docker/daemon.json /var/lib/forge
"#;

/// Its owner has told its engine something.
const LABELLED: &str = r#"echo '{"labels": ["room=7"]}' >/etc/docker/daemon.json
systemctl daemon-reload
systemctl restart docker
"#;

/// docker-machine has (libmachine/provision/systemd.go); the files of certificates are there.
const DOCKER_MACHINES: &str = r#"mkdir -p /etc/systemd/system/docker.service.d
cat >/etc/systemd/system/docker.service.d/10-machine.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H tcp://0.0.0.0:2376 -H unix:///var/run/docker.sock --storage-driver overlay2 --tlsverify --tlscacert /etc/docker/ca.pem --tlscert /etc/docker/server.pem --tlskey /etc/docker/server-key.pem --label made=generic
Environment=
END
systemctl daemon-reload
systemctl restart docker
"#;

/// All that has to be the same afterwards.
const FACTS: &str = r#"docker inspect -f '{{.Name}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}' once always
docker info -f '{{.Driver}} {{.ServerVersion}} {{.Images}} {{.LiveRestoreEnabled}} {{.Labels}}'
hostname
cat /etc/docker/daemon.json || :
nft list ruleset | grep -c forge || :
"#;

/// Besides, what is the same once the host was left.
const FILES: &str = r#"find /etc/docker /etc/systemd/system/docker.service.d -type f 2>/dev/null | sort
cat /home/forge/.ssh/authorized_keys
ls -A /var/lib/forge 2>/dev/null || :
"#;

#[test]
fn lab_a_host_with_containers_is_adopted_and_left_as_it_was() {
    let mut steps = Steps::new("an adopted host");
    let (owner, guest) = (Store::new(FORGE), Store::empty(FORGE));
    steps.step("a machine becomes a plain host");
    owner.ok(&["create", "--driver", "qemu", "v1"]);
    let there = |script: &str| as_root(&owner, script);
    there(&format!("{PLAIN}{LABELLED}{TWO_CONTAINERS}"));
    let (facts, files) = (there(FACTS), there(FILES));
    assert!(!facts.contains("/once 0 "), "both run: {facts}");
    let (address, port, print) = way(&owner);
    let key = owner.home().join("machines/v1/id_ed25519");
    let key = key.display().to_string();
    let create = [
        "create",
        "--driver",
        "generic",
        "--generic-ip-address",
        &address,
        "--generic-ssh-port",
        &port,
        "--generic-ssh-user",
        "forge",
        "--generic-ssh-key",
        &key,
        "--generic-ssh-config",
        "none",
        "--generic-host-key",
        &print,
        "n1",
    ];
    steps.step("a dry run");
    let dry = guest.run(&[&create[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, 2, "{}", dry.err);
    assert!(
        dry.err.contains("the 2 containers that run, run on"),
        "{}",
        dry.err
    );
    assert_eq!(there(FILES), files, "nothing was changed");
    steps.step("adopted");
    guest.ok(&create);
    assert_eq!(
        there(FACTS),
        facts,
        "images, containers and their PIDs, host name, storage driver"
    );
    settled(&guest, "n1");
    steps.step("left");
    guest.ok(&["rm", "-y", "n1"]);
    given_back(&owner, (&facts, &files));
}

#[test]
fn lab_point_04_a_machine_of_docker_machines_is_renewed_and_its_containers_notice_nothing() {
    let mut steps = Steps::new("a machine of docker-machine's");
    let (owner, guest) = (Store::new(FORGE), Store::empty(FORGE));
    steps.step("a machine becomes one of docker-machine's, whose certificate has ended");
    owner.ok(&["create", "--driver", "qemu", "v1"]);
    let there = |script: &str| as_root(&owner, script);
    there(PLAIN);
    let (address, port, print) = way(&owner);
    let folder = tempfile::tempdir().expect("a folder");
    let old = OldStore::at(folder.path());
    let fields = json!({
        "IPAddress": address, "SSHUser": "forge",
        "SSHPort": port.parse::<u16>().expect("a port"),
    });
    old.machine("g1", "generic", &fields, &[address.as_str()], 1100);
    for file in ["ca.pem", "server.pem", "server-key.pem"] {
        let text = fs::read(old.root.join("machines/g1").join(file)).expect("a file");
        let line = format!("sudo tee /etc/docker/{file} >/dev/null");
        owner.ssh_with("v1", &line, &text).ok();
    }
    let key = old.key("g1");
    owner
        .ssh_with("v1", "cat >>.ssh/authorized_keys", key.as_bytes())
        .ok();
    there(&format!("{DOCKER_MACHINES}{TWO_CONTAINERS}"));
    let (facts, files) = (there(FACTS), there(FILES));
    assert!(facts.contains("made=generic"), "{facts}");
    assert!(!facts.contains("/once 0 "), "both run: {facts}");
    steps.step("imported");
    let root = old.root.display().to_string();
    guest.ok(&[
        "import",
        "docker-machine",
        &root,
        "--host-key",
        &format!("g1={print}"),
    ]);
    assert_eq!(guest.ssh("g1", "hostname"), there("hostname"));
    let env = guest.run(&["env", "g1"]);
    assert_eq!((env.code, env.text()), (1, String::new()), "{env}");
    assert!(env.err.contains("`forge regenerate-certs g1`"), "{env}");
    steps.step("renewed by one command");
    guest.ok(&["regenerate-certs", "-f", "g1"]);
    assert_eq!(
        there(FACTS),
        facts,
        "containers, their PIDs, and what docker-machine said"
    );
    let env = guest.run(&["env", "g1"]).ok();
    assert_eq!(env.err, "", "{env}");
    settled(&guest, "g1");
    steps.step("removed from the store: it is docker-machine's again");
    guest.ok(&["rm", "-y", "g1"]);
    given_back(&owner, (&facts, &files));
}

/// Its engine answers over TLS, and there is nothing more to do.
fn settled(guest: &Store, name: &str) {
    assert!(
        guest.ok(&["ls"]).contains(" v"),
        "its engine answers over TLS"
    );
    let again = guest.run(&["provision", name]).ok();
    assert!(again.err.contains("nothing to change"), "{}", again.err);
}

/// The host is as it was before; then it goes.
fn given_back(owner: &Store, (facts, files): (&str, &str)) {
    assert_eq!(as_root(owner, FACTS), facts, "as it was before");
    assert_eq!(as_root(owner, FILES), files, "as it was before");
    owner.ok(&["rm", "-y", "v1"]);
    assert_eq!(owner.left(), Vec::<String>::new());
}

/// A script of root's on the machine that is the host.
fn as_root(owner: &Store, script: &str) -> String {
    owner.ok(&["ssh", "v1", "--", "sudo", "sh", "-c", &quoted(script)])
}

/// Where its SSH server is, and the fingerprint of its key.
fn way(owner: &Store) -> (String, String, String) {
    let record = fs::read(owner.home().join("machines/v1/machine.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let ssh = text(&record["instance"]["endpoints"]["ssh"]);
    let (address, port) = ssh.rsplit_once(':').expect("a port");
    let line = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub";
    let print = owner.ok(&["ssh", "v1", "--", line]);
    let print = print.split_whitespace().nth(1).expect("a fingerprint");
    (address.to_owned(), port.to_owned(), print.to_owned())
}

/// A newer package of the engine's, in a repository on the machine itself; and a package that takes two minutes.
const PACKAGES: &str = r#"set -e
mkdir -p /srv/repo /srv/new/DEBIAN /srv/slow/DEBIAN
dpkg -L runc | while read -r path; do
    [ ! -f "$path" ] || echo ".$path"
done | tar -C / -cf - -T - | tar -C /srv/new -xf -
dpkg-query -s runc | sed -e '/^Status:/d' -e 's/^\(Version: .*\)/\1.1/' >/srv/new/DEBIAN/control
dpkg-deb -Znone -b /srv/new /srv/repo/runc.deb >/dev/null
cd /srv/repo
cp /srv/new/DEBIAN/control Packages
printf 'Filename: ./runc.deb\nSize: %s\nSHA256: %s\n' "$(stat -c %s runc.deb)" "$(sha256sum runc.deb | cut -d ' ' -f 1)" >>Packages
rm -f /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/repo ./' >/etc/apt/sources.list
printf 'Package: slow\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: slow\n' >/srv/slow/DEBIAN/control
printf '#!/bin/sh\ntouch /srv/began\nsleep 120\n' >/srv/slow/DEBIAN/postinst
chmod 755 /srv/slow/DEBIAN/postinst
dpkg-deb -Znone -b /srv/slow /srv/slow.deb >/dev/null
setsid dpkg -i /srv/slow.deb >/dev/null 2>&1 </dev/null &
tries=0
until [ -e /srv/began ] || [ $tries -gt 60 ]; do tries=$((tries + 1)); sleep 0.5; done
"#;

#[test]
fn lab_point_07_a_lock_that_is_held_for_two_minutes_is_waited_for() {
    let mut steps = Steps::new("apt's lock");
    let store = Store::new(FORGE);
    steps.step("a machine on which another program installs a package");
    store.ok(&["create", "--driver", "qemu", "v1"]);
    store.ok(&["ssh", "v1", "--", "sudo", "sh", "-c", &quoted(PACKAGES)]);
    let held = Instant::now();
    let packages = "dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' runc slow";
    let before = store.ssh("v1", packages);
    assert!(before.contains("slow 1 half-configured"), "{before}");
    steps.step("upgraded meanwhile");
    let upgraded = store.run(&["upgrade", "v1"]).ok();
    let took = held.elapsed();
    assert!(took > Duration::from_secs(100), "{took:?}: {upgraded}");
    let said = "another program holds the lock /var/lib/dpkg/lock-frontend. It is held by process";
    assert!(upgraded.err.contains(said), "{upgraded}");
    assert!(upgraded.err.contains("(dpkg)"), "{upgraded}");
    let after = store.ssh("v1", packages);
    assert!(after.contains("slow 1 installed"), "{after}");
    assert!(after.contains(".1 installed"), "the newer one: {after}");
    assert_ne!(before, after);
}

/// One word of the shell at the other end.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
