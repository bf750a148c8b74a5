//! First contact with a real machine: no private key that came with the seed is in use or lies anywhere
//! afterwards, and a machine that shows another key is refused.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use forge_lab::{Steps, Store, run, wait};
use serde_json::Value;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn lab_first_contact_leaves_no_key_of_ours() {
    let mut steps = Steps::new("first contact");
    steps.step("a machine, its accelerator tried");
    let store = Store::new(FORGE).trying();
    let first = thread::scope(|scope| {
        let made = scope.spawn(|| store.run(&["create", "n1"]).ok());
        let path = store.home().join("machines/n1/first_host_key");
        let first = wait("the first host key is on disk", PATIENCE, || {
            let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            text.contains("END OPENSSH")
                .then_some(text.clone())
                .ok_or(text)
        });
        made.join().expect("runs");
        first
    });
    accelerator(&store, &mut steps);

    steps.step("the seed is blank and the first key forgotten");
    let machine = store.machine("n1");
    assert_eq!(machine["ssh"]["first_host_key"], Value::Null);
    let own = machine["ssh"]["own_host_key"]
        .as_str()
        .expect("a key")
        .to_owned();
    let folder = store.home().join("machines/n1");
    assert!(!folder.join("first_host_key").exists());
    let driver = store.home().join("drivers/qemu").join(store.claim("n1"));
    let seed = fs::read(driver.join("seed.iso")).expect("the medium is still attached");
    assert!(
        !seed.is_empty() && seed.iter().all(|byte| *byte == 0),
        "the seed is blank"
    );
    let key = fs::read_to_string(folder.join("id_ed25519")).expect("our own key");
    assert!(key.contains("OPENSSH PRIVATE KEY"));

    steps.step("the machine shows its own key, and no key of another kind");
    shown(&store, &own);
    assert_eq!(
        store.ssh("n1", "ls /etc/ssh | grep -v pub | grep key | sort"),
        "ssh_host_ed25519_key"
    );
    let public = store.ssh("n1", "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(public, own);

    steps.step("no private key lies on its disk but its own, its engine's and the swarm's");
    let files = store.ssh(
        "n1",
        "sudo sh -c \"find / /run /tmp -xdev -type f -size -64M -not -path '/usr/*' -not -path '/boot/*' -print0 | \
         xargs -0 grep -laE -- '-----BEGIN [A-Z ]*PRIVATE KEY-----' | sort -u\"",
    );
    assert_eq!(
        files,
        "/etc/docker/tls/server-key.pem\n/etc/ssh/ssh_host_ed25519_key"
    );
    let data = store.ssh(
        "n1",
        "sudo find / -xdev \\( -name 'user-data*' -o -name 'vendor-data*' -o -name 'obj.pkl' -o -name '*.seed' \\) -not -path '/usr/*' | sort; \
         sudo ls -A /run/forge-seed 2>/dev/null; true",
    );
    assert_eq!(data, "", "user data on the disk");

    steps.step("a reboot keeps the own key, and the medium has nothing to bring back");
    let boot = store.ssh("n1", "cat /proc/sys/kernel/random/boot_id");
    store.ok(&["restart", "n1"]);
    assert_ne!(store.ssh("n1", "cat /proc/sys/kernel/random/boot_id"), boot);
    shown(&store, &own);
    assert_eq!(store.ssh("n1", "hostname; id -un"), "n1\nforge");
    assert_eq!(store.machine("n1")["ssh"], machine["ssh"]);

    steps.step("from its second start on it boots what its own disk holds");
    let words = store.process("n1").words;
    assert!(!words.iter().any(|word| word == "-kernel"), "{words:?}");
    // An upgrade of the kernel: another file, to which /vmlinuz points.
    store.ssh(
        "n1",
        "set -e; cd /boot; v=$(uname -r); sudo cp vmlinuz-$v vmlinuz-9.9-lab; sudo cp initrd.img-$v initrd.img-9.9-lab; \
         sudo ln -sfn boot/vmlinuz-9.9-lab /vmlinuz; sudo ln -sfn boot/initrd.img-9.9-lab /initrd.img; \
         sudo sed -i 's/quiet$/quiet forge.upgraded/' /boot/grub/grub.cfg; sync",
    );
    store.ok(&["stop", "n1"]);

    steps.step("what is left on the stopped disk");
    on_the_disk(&store, &driver, &own, &[&key, &first]);
    store.ok(&["start", "n1"]);
    let line = store.ssh("n1", "cat /proc/cmdline");
    assert!(
        line.contains("forge.upgraded") && line.contains("BOOT_IMAGE=/vmlinuz"),
        "{line}"
    );
    shown(&store, &own);

    steps.step("a machine with another key is refused, both keys shown");
    store.ssh(
        "n1",
        "set -e; cd /etc/ssh; sudo cp ssh_host_ed25519_key kept; sudo cp ssh_host_ed25519_key.pub kept.pub; \
         sudo rm ssh_host_ed25519_key ssh_host_ed25519_key.pub; \
         sudo ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key; sudo systemctl reload ssh",
    );
    let other = wait("another key is shown", PATIENCE, || {
        let key = scanned(&store);
        (!key.is_empty() && key != own)
            .then_some(key.clone())
            .ok_or(key)
    });
    let refused = store.ssh_with("n1", "touch /tmp/entered", b"");
    assert_eq!(refused.code, 1, "{refused}");
    for key in [&own, &other] {
        let print = fingerprint(key);
        assert!(refused.err.contains(&print), "{print} in {refused}");
    }
    let provision = store.run(&["provision", "n1"]);
    assert_eq!(provision.code, 1, "{provision}");
    // The owner of both ends says that all is well: then it is let in again.
    let record = folder.join("machine.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, text.replace(&own, &other)).expect("write");
    assert_eq!(
        store.ssh("n1", "test -e /tmp/entered || echo no"),
        "no",
        "the refused connection did nothing"
    );
    let again = store.json(&["provision", "n1"]);
    assert_eq!(again["changed"], 0, "{again}");
}

/// What was chosen is what runs, and what doctor shows.
fn accelerator(store: &Store, steps: &mut Steps) {
    let words = store.process("n1").words;
    let used = words
        .windows(2)
        .find(|pair| pair[0] == "-accel")
        .map(|pair| pair[1].split(',').next().unwrap_or_default().to_owned())
        .expect("an accelerator");
    let doctor = store.run(&["doctor", "--json"]);
    let found = doctor.json();
    let detail = found["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(|entry| {
            if entry["finding"].is_object() {
                &entry["finding"]
            } else {
                entry
            }
        })
        .find(|finding| finding["what"] == "accelerator")
        .and_then(|finding| finding["detail"].as_str())
        .unwrap_or_else(|| panic!("no accelerator in {doctor}"))
        .to_owned();
    steps.note(&format!("accelerator {detail}"));
    assert!(
        detail.starts_with(&format!("{used}: ")),
        "{used} runs, and doctor says {detail}"
    );
}

/// The one key that the SSH server shows to a newcomer. One connection after the other: QEMU's user-mode
/// network has room for two that wait (libslirp's `listen(s, 1)`), and `ssh-keyscan`, which opens one for
/// each kind at once, speaks only when it is spoken to, so the third would hang until its end.
fn scanned(store: &Store) -> String {
    let port = store.machine("n1")["placement"]["ssh"]["host"]
        .as_str()
        .and_then(|host| host.rsplit(':').next().map(str::to_owned))
        .expect("a port");
    let address = store.ip("n1");
    let mut keys: Vec<String> = Vec::new();
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let words = ["-T", "60", "-t", kind, "-p", &port, &address];
        let said = run(Command::new("ssh-keyscan").args(words), b"", PATIENCE);
        keys.extend(
            said.text()
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once(' ').map(|(_, key)| key.to_owned())),
        );
    }
    assert!(keys.len() < 2, "one key: {keys:?}");
    keys.pop().unwrap_or_default()
}

/// The key that a newcomer is shown. A machine that has just started may be too busy for the first of them.
fn shown(store: &Store, own: &str) {
    let key = wait("a key is shown", PATIENCE, || {
        let key = scanned(store);
        (!key.is_empty()).then_some(key).ok_or_else(String::new)
    });
    assert_eq!(key, own);
}

fn fingerprint(key: &str) -> String {
    let said = run(
        Command::new("ssh-keygen").args(["-l", "-f", "-"]),
        key.as_bytes(),
        PATIENCE,
    )
    .ok();
    said.text()
        .split(' ')
        .nth(1)
        .expect("a fingerprint")
        .to_owned()
}

/// The raw disk of the stopped machine holds neither of the private keys that the host ever had, not even
/// in blocks that no file has any more where the file system gives those back.
fn on_the_disk(store: &Store, driver: &std::path::Path, own: &str, private: &[&str]) {
    let raw = driver.join("disk.qcow2");
    let search = |what: &str| {
        run(
            Command::new("grep")
                .args(["-c", "-a", "-F", "--", what])
                .arg(&raw),
            b"",
            PATIENCE,
        )
        .text()
    };
    for key in private {
        // The first line of the body is the same in all keys of a kind; the later ones hold the secret.
        let body: Vec<&str> = key.lines().filter(|line| !line.contains("-----")).collect();
        for line in &body[2..] {
            assert_eq!(search(line), "0", "a line of a private key: {line}");
        }
    }
    assert_ne!(
        search(own.split(' ').nth(1).expect("a key")),
        "0",
        "the search finds what is there"
    );
    let stores: Vec<PathBuf> = files(store.home());
    let mut private: Vec<String> = stores
        .iter()
        .filter(|path| !path.components().any(|part| part.as_os_str() == "images"))
        .filter(|path| {
            fs::read(path)
                .is_ok_and(|bytes| bytes.windows(19).any(|part| part == b"OPENSSH PRIVATE KEY"))
        })
        .map(|path| {
            path.strip_prefix(store.home())
                .expect("below")
                .display()
                .to_string()
        })
        .filter(|path| !path.ends_with("disk.qcow2"))
        .collect();
    private.sort();
    assert_eq!(
        private,
        ["machines/n1/id_ed25519", "machines/n1/id_rsa"],
        "private SSH keys in the store"
    );
}

fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.metadata().is_ok_and(|meta| meta.len() < 64 << 20) {
            all.push(path);
        }
    }
    all
}
