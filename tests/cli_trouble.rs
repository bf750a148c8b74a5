//! Bad luck: damaged records, folders of others, missing tools, full disks, Ctrl-C in every stage. Each
//! ends with a clear error, and nothing is lost or left behind unlisted. And secrets stay where they are.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{FORGE, Lab, Running, until};
use forge_driver::fake::{FakeDriver, Knob};
use forge_driver::{Driver, Power};

/// The names of the machines that the provider has.
fn made(lab: &Lab) -> Vec<String> {
    let vms = lab.provider.vms().expect("the provider");
    vms.into_iter().map(|vm| vm.name).collect()
}

#[test]
fn damaged_and_newer_records_are_listed_and_can_be_removed() {
    let lab = Lab::new();
    lab.forge("create n1 n2 n3").ok();
    let path = |name: &str| lab.home.join("machines").join(name).join("machine.json");
    let text = fs::read_to_string(path("n2")).expect("a record");
    fs::write(path("n2"), &text[..text.len() / 2]).expect("cut off");
    let newer = fs::read_to_string(path("n3"))
        .expect("a record")
        .replace("\"format\": 2", "\"format\": 999");
    fs::write(path("n3"), &newer).expect("newer");

    let list = lab.forge("ls --json").ok().json();
    let error = |at: usize| list[at]["error"].as_str().expect("text").to_owned();
    assert_eq!(
        (list[0]["state"].as_str(), error(0).as_str()),
        (Some("Running"), "")
    );
    assert!(
        error(1).ends_with("machines/n2/machine.json` is damaged"),
        "{}",
        error(1)
    );
    assert_eq!(error(2), "made by a newer forge");
    lab.forge("ls -q").says(0, "n1\nn2\nn3\n", "");

    let newer_says = "error: `HOME/machines/n3/machine.json` has format 999, and this forge knows formats up to 2\nhint: a newer forge wrote it: install that version, or set FORGE_HOME to another folder\n";
    for words in ["inspect n3", "env n3", "status n3"] {
        lab.forge(words).says(1, "", newer_says);
    }
    for words in ["rm -y n3", "start n3", "create n3"] {
        lab.forge(words)
            .says(1, "", &format!("{newer_says}log: LOG\n"));
    }
    let damaged = lab.forge("rm -y n2").run().code(1);
    assert!(
        damaged
            .stderr
            .contains("error: `HOME/machines/n2/machine.json` is damaged\ncaused by: EOF"),
        "{}",
        damaged.stderr
    );
    assert_eq!(
        fs::read_to_string(path("n3")).expect("a record"),
        newer,
        "left as it is"
    );

    lab.forge("rm -f n2 n3").ok();
    lab.forge("ls -q").says(0, "n1\n", "");
    assert_eq!(made(&lab), ["n1"], "their machines are gone as well");
    // What cannot be read holds no other command up.
    lab.forge("create n4").ok();
}

#[test]
fn a_machine_whose_record_is_empty_is_found_by_its_name() {
    let lab = Lab::new();
    lab.forge("create n1 n2").ok();
    fs::write(lab.home.join("machines/n1/machine.json"), "").expect("emptied");
    lab.forge("rm -f n1").ok();
    assert_eq!(made(&lab), ["n2"], "the machine has gone with its record");
}

#[test]
fn a_cluster_whose_record_is_damaged_can_be_removed() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let folder = lab.home.join("clusters/k1");
    fs::create_dir(&folder).expect("mkdir");
    fs::write(folder.join("cluster.json"), "{\"format\": 1, ").expect("damaged");
    fs::write(folder.join(".cluster.json.new"), "half").expect("a write that was cut off");
    let refused = lab.forge("cluster down -y k1").run().code(1);
    assert!(
        refused
            .stderr
            .contains("clusters/k1/cluster.json` is damaged")
            && refused.stderr.contains("`forge cluster down -f k1`"),
        "{}",
        refused.stderr
    );
    assert!(folder.exists(), "left as it is");
    lab.forge("cluster down -f k1").ok();
    assert!(!folder.exists());
    lab.forge("ls -q").says(0, "n1\n", "");
}

#[test]
fn a_store_that_others_may_write_into_is_refused() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    fs::set_permissions(&lab.home, fs::Permissions::from_mode(0o777)).expect("chmod");
    let refused = lab.forge("ls").run().code(1);
    assert!(
        refused
            .stderr
            .contains("others may write into the store `HOME` (mode 0777)"),
        "{}",
        refused.stderr
    );
    fs::set_permissions(&lab.home, fs::Permissions::from_mode(0o700)).expect("chmod");
    lab.forge("ls -q").says(0, "n1\n", "");
}

#[test]
fn errors_are_events_where_json_is_wished() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let ended = lab.forge("start n2 --json").run().code(1);
    let event = ended.summary();
    assert_eq!(event["event"], "error", "{event}");
    assert_eq!(event["kind"], "notfound");
    assert_eq!(event["message"], "machine `n2` does not exist");
    let again = lab.forge("rm -y n1 n1 --json").ok().summary();
    assert_eq!(
        again["machines"].as_array().map(Vec::len),
        Some(1),
        "{again}"
    );
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let path = lab.home.join("store.json");
    let text = fs::read_to_string(&path).expect("a store");
    fs::write(&path, text.replace("\"format\": 2", "\"format\": 999")).expect("newer");
    let before = lab.files();
    let says = "error: `HOME/store.json` has format 999, and this forge knows formats up to 2\nhint: a newer forge wrote it: install that version, or set FORGE_HOME to another folder\n";
    for words in [
        "ls",
        "create n2",
        "rm -f n1",
        "env n1",
        "cluster up --dry-run",
    ] {
        lab.forge(words).says(1, "", says);
    }
    assert_eq!(lab.files(), before);
    // So that the folder for sockets is found and removed.
    fs::write(path, text).expect("put back");
}

#[test]
fn a_store_of_another_user_is_refused_and_left_alone() {
    let lab = Lab::new();
    let me = rustix::process::geteuid().as_raw();
    let (store, owner) = if me == 0 {
        std::os::unix::fs::chown(&lab.home, Some(65534), None).expect("given away");
        (lab.home.clone(), 65534)
    } else {
        // Not root: the root of the file system is somebody else's.
        (Path::new("/").to_owned(), 0)
    };
    let shown = if me == 0 { "HOME" } else { "/" };
    let says = format!(
        "error: the store `{shown}` belongs to user {owner}, not to you (user {me})\nhint: set FORGE_HOME to a folder of your own, or run forge as that user\n"
    );
    let before = lab.files();
    for words in [
        "ls",
        "ls -q",
        "create n1",
        "rm -f n1",
        "env n1",
        "cluster up --dry-run",
    ] {
        lab.forge(words)
            .env("FORGE_HOME", &store)
            .says(1, "", &says);
    }
    assert_eq!(lab.files(), before);
    if me == 0 {
        std::os::unix::fs::chown(&lab.home, Some(me), None).expect("taken back");
    }
}

#[test]
fn without_qemu_the_check_fails_before_anything_is_touched() {
    let lab = Lab::new();
    let empty = lab.folder().join("no-programs");
    fs::create_dir(&empty).expect("a folder");
    let ended = lab
        .forge("create --driver qemu n1")
        .env("PATH", &empty)
        .run()
        .code(3);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("qemu-system-"), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("hint: ") && ended.stderr.contains("forge doctor"),
        "{}",
        ended.stderr
    );
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn without_a_named_driver_the_one_that_works_is_taken_and_told() {
    let lab = Lab::new();
    let programs = lab.folder().join("programs");
    fs::create_dir(&programs).expect("a folder");
    let bare = |words: &str| {
        lab.forge(words)
            .without("FORGE_DRIVER")
            .env("PATH", &programs)
            .run()
            .code(3)
            .stderr
    };
    let none = bare("create n1");
    assert!(
        none.starts_with("driver: qemu (no driver has what it needs here"),
        "{none}"
    );
    let named = bare("create --virtualbox-memory 2048 n1");
    assert!(
        named.starts_with("driver: virtualbox (`--virtualbox-memory` is its option"),
        "{named}"
    );
    assert!(
        named.contains("`VBoxManage`, which speaks to VirtualBox, is not installed"),
        "{named}"
    );
    // A dry run touches no host: the choice is told there as well.
    for program in ["qemu-system-x86_64", "qemu-system-aarch64", "qemu-img"] {
        let file = programs.join(program);
        fs::write(&file, "#!/bin/false\n").expect("a program");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let told = lab
        .forge("cluster up --dry-run")
        .without("FORGE_DRIVER")
        .env("PATH", &programs)
        .run();
    assert!(
        told.stderr.starts_with("driver: qemu (QEMU is installed"),
        "{}",
        told.stderr
    );
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn doctor_asks_with_the_options_of_the_environment() {
    let lab = Lab::bare();
    let found = lab
        .forge("doctor --json")
        .env("FORGE_VIRTUALBOX_VBOXMANAGE", "/nonexistent/VBoxManage")
        .env("FORGE_LIBVIRT_URI", "lxc:///")
        .run()
        .json();
    for (area, what) in [
        ("virtualbox", "`/nonexistent/VBoxManage`"),
        ("libvirt", "options in the environment"),
    ] {
        let told = found["findings"].as_array().expect("findings");
        let one = told
            .iter()
            .find(|one| one["area"] == area && one["what"] == what)
            .unwrap_or_else(|| panic!("{area}: {found}"));
        assert_eq!(one["ok"], false, "{one}");
    }
}

#[test]
fn an_overlapping_network_is_refused_with_both_shown() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let ended = lab
        .forge("create --driver qemu --qemu-network-cidr 10.133.0.0/16 n2")
        .run()
        .code(3);
    assert_eq!(
        ended.stderr,
        "error: the network 10.133.0.0/16 overlaps the network 10.133.7.0/24 of this store\nhint: use 10.133.7.0/24 itself, or a range outside it\n"
    );
    lab.forge("ls -q").says(0, "n1\n", "");
}

#[test]
fn a_full_disk_is_told_and_the_same_command_goes_on_when_there_is_room() {
    let lab = Lab::new();
    let script = r#"
set -e
home=$1 forge=$2 images=$3
cp -a "$home/images" "$images"
mount -t tmpfs -o size=256k,mode=0700 tmpfs "$home"
cp -a "$images" "$home/images"
dd if=/dev/zero of="$home/filler" bs=4k 2>/dev/null || :
code=0
"$forge" create n1 2>"$images/err" || code=$?
echo "full: $code"
rm "$home/filler"
dd if=/dev/zero of="$home/filler" bs=4k count=20 2>/dev/null || :
code=0
"$forge" create n1 2>>"$images/err" || code=$?
echo "nearly full: $code"
rm "$home/filler"
"$forge" create n1 2>/dev/null || [ "$code" = 0 ]
"$forge" ls --json
"$forge" rm -f n1 2>/dev/null
id=$(sed -n 's/.*"id": "\(........\).*/\1/p' "$home/store.json")
rm -rf "/tmp/forge-$(id -u)/$id"
"#;
    let saved = lab.folder().join("images");
    let run = lab.forge("ls -q").under(
        "unshare",
        &["-rm", "sh", "-c", script, "sh"],
        &[lab.home.as_path(), Path::new(FORGE), &saved],
    );
    let ended = run.run().code(0);
    let errors = fs::read_to_string(saved.join("err")).expect("errors");
    assert!(
        ended.stdout.starts_with("full: 1\n"),
        "{}\n{errors}",
        ended.stdout
    );
    assert!(errors.contains("No space left on device"), "{errors}");
    assert!(
        errors.contains("hint: free some space, then run the same command again"),
        "{errors}"
    );
    let list = ended.stdout.lines().last().expect("a list");
    let list: serde_json::Value = serde_json::from_str(list).expect("JSON");
    assert_eq!(
        (&list[0]["name"], &list[0]["stage"]),
        (&"n1".into(), &"ready".into())
    );
    assert_eq!(lab.provider.creates().len(), 1, "one machine in all");
}

/// Starts `words`, waits for `waiting`, interrupts, and expects exit code 130; then the same command, with
/// the knob back, does the job.
fn interrupted(words: &str, knob: Knob, waiting: impl Fn(&Lab) -> bool, release: bool) -> Lab {
    let lab = Lab::new();
    if !words.starts_with("create") {
        lab.forge("create n1").ok();
    }
    lab.turn(knob, true);
    let running = lab.forge(words).start();
    until(&format!("`{words}` waits with {knob:?}"), || waiting(&lab));
    running.interrupt();
    if release {
        // The step under way ends by itself, and is saved.
        std::thread::sleep(Duration::from_millis(200));
        lab.turn(knob, false);
    }
    let ended = running.wait(&lab).code(130);
    assert_eq!(ended.stdout, "");
    assert!(
        ended.stderr.contains(
            "interrupted: finishing the step under way and saving; once more leaves at once\n"
        ) && ended
            .stderr
            .contains("interrupted; everything done so far is saved\n")
            && ended
                .stderr
                .contains("hint: run the same command again: it goes on where it stopped\n"),
        "{knob:?}: {}",
        ended.stderr
    );
    lab.forge("ls -q").says(0, "n1\n", "");
    if !release {
        lab.turn(knob, false);
    }
    lab.forge(words).ok();
    assert_eq!(
        lab.provider.creates().len(),
        1,
        "{knob:?}: one machine in all"
    );
    assert_eq!(lab.record("n1")["stage"], "ready", "{knob:?}");
    lab
}

#[test]
fn ctrl_c_while_the_provider_creates() {
    let asked = |lab: &Lab| {
        lab.provider
            .calls()
            .iter()
            .any(|call| call.starts_with("create "))
    };
    interrupted("create n1", Knob::HoldCreate, asked, true);
}

#[test]
fn ctrl_c_while_waiting_for_ssh() {
    interrupted(
        "create n1",
        Knob::SilentSsh,
        |lab| lab.logged().contains("no SSH server answers yet"),
        false,
    );
}

#[test]
fn ctrl_c_at_the_first_contact() {
    interrupted(
        "create n1",
        Knob::HiddenHostKey,
        |lab| lab.logged().contains("no host key was shown"),
        false,
    );
    interrupted(
        "create n1",
        Knob::HangingCommands,
        |lab| lab.logged().contains("first contact"),
        true,
    );
}

#[test]
fn ctrl_c_while_waiting_for_the_engine() {
    interrupted(
        "create n1",
        Knob::SilentEngine,
        |lab| lab.logged().contains("does not accept connections"),
        false,
    );
}

#[test]
fn ctrl_c_while_a_guest_shuts_down() {
    let lab = interrupted(
        "stop n1",
        Knob::DeafToShutdown,
        |lab| {
            lab.provider
                .calls()
                .iter()
                .any(|call| call.ends_with("Shutdown"))
        },
        false,
    );
    assert!(!lab.provider.vms().expect("the provider")[0].on);
}

#[test]
fn a_start_waits_for_a_shutdown_that_has_begun() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab.turn(Knob::GoingDown, true);
    let late = lab.forge("start n1 --timeout 1").run().code(1);
    assert!(
        late.stderr.contains("`forge kill n1` switches it off"),
        "{}",
        late.stderr
    );
    let waits = || {
        lab.logged()
            .matches("its shutdown, which has begun")
            .count()
    };
    let before = waits();
    let start = lab.forge("start n1").start();
    until("it waits", || waits() > before);
    let provider = FakeDriver::listening(lab.provider.root()).expect("the provider");
    let claim = lab.provider.vms().expect("the provider")[0].claim;
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(provider.set_power(claim, Power::Kill))
        .expect("off");
    lab.turn(Knob::GoingDown, false);
    start.wait(&lab).code(0);
    let vms = lab.provider.vms().expect("the provider");
    assert!(vms[0].on && vms[0].starts == 2, "{vms:?}");
}

#[test]
fn ctrl_c_while_waiting_for_a_lock() {
    let lab = Lab::new();
    lab.turn(Knob::HoldCreate, true);
    let first = lab.forge("create n1").start();
    until("the first one is at work", || {
        lab.provider
            .calls()
            .iter()
            .any(|call| call.starts_with("create "))
    });
    let second = lab.forge("create n1").start();
    until("the second one waits", || {
        lab.logged().contains("waiting for machine `n1`")
    });
    let pid = first.child.id();
    second.interrupt();
    let ended = second.wait(&lab).code(130);
    assert!(
        ended
            .stderr
            .contains("interrupted; everything done so far is saved"),
        "{}",
        ended.stderr
    );
    assert!(
        lab.logged().contains(&format!("pid {pid} (")),
        "the holder is named"
    );
    lab.turn(Knob::HoldCreate, false);
    first.wait(&lab).code(0);
    assert_eq!(lab.provider.creates().len(), 1);
}

#[test]
fn the_second_ctrl_c_leaves_at_once() {
    let lab = Lab::new();
    lab.turn(Knob::HoldCreate, true);
    let mut running: Running = lab.forge("create n1").start();
    until("it is at work", || {
        lab.provider
            .calls()
            .iter()
            .any(|call| call.starts_with("create "))
    });
    until("it leaves while the provider still works", || {
        let over = running.child.try_wait().expect("its state").is_some();
        if !over {
            running.interrupt();
            std::thread::sleep(Duration::from_millis(100));
        }
        over
    });
    running.wait(&lab).code(130);
    lab.turn(Knob::HoldCreate, false);
    lab.forge("create n1").ok();
    assert_eq!(lab.provider.creates().len(), 1);
}

#[test]
fn keys_are_in_their_files_and_nowhere_else() {
    let lab = Lab::new();
    let over = AtomicBool::new(false);
    let (said, lines) = std::thread::scope(|scope| {
        let sampling = scope.spawn(|| {
            let mut lines = BTreeSet::new();
            while !over.load(Ordering::SeqCst) {
                for entry in fs::read_dir("/proc").expect("proc").flatten() {
                    if let Ok(line) = fs::read(entry.path().join("cmdline")) {
                        lines.insert(String::from_utf8_lossy(&line).into_owned());
                    }
                }
            }
            lines
        });
        let mut said = String::new();
        for words in [
            "create --debug n1 n2",
            "create --json n3",
            "provision --debug n1",
            "stop --debug n1",
            "start --debug n1",
            "publish --debug n1 18080",
            "inspect n1",
            "ls --json",
            "ssh-config",
            "env n1",
        ] {
            let ended = lab.forge(words).run();
            said.push_str(&ended.stdout);
            said.push_str(&ended.stderr);
        }
        over.store(true, Ordering::SeqCst);
        (said, sampling.join().expect("sampled"))
    });
    let files = lab.files();
    let mut keys = Vec::new();
    for (path, bytes) in &files {
        let text = String::from_utf8_lossy(bytes);
        if !text.contains("PRIVATE KEY") {
            continue;
        }
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(
            [
                "id_ed25519",
                "id_rsa",
                "server-key.pem",
                "key.pem",
                "ca-key.pem"
            ]
            .contains(&name.as_str()),
            "{} holds a private key",
            path.display()
        );
        let mode = fs::metadata(path).expect("stat").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        // The last full line of the material: the first ones are alike in all keys.
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('-')).collect();
        let line = lines[lines.len().saturating_sub(2)];
        assert!(line.len() > 20, "{line}");
        keys.push(line.to_owned());
    }
    // Three machines with SSH key under both names, server key and a copy of the client's; the client's own and the CA's.
    assert_eq!(keys.len(), 3 * 4 + 2);
    let logs = lab.logged();
    assert!(
        logs.contains("provisioning") && said.contains("n1"),
        "something was said and logged"
    );
    assert!(
        lines.iter().any(|line| line.contains("create\0")),
        "forge was seen"
    );
    assert!(
        lines.iter().any(|line| line.contains("sh\0-c")),
        "a child was seen"
    );
    for (place, text) in [
        ("output", &said),
        ("logs", &logs),
        ("command lines", &lines.into_iter().collect()),
    ] {
        assert!(!text.contains("PRIVATE KEY"), "{place}");
        for key in &keys {
            assert!(!text.contains(key.as_str()), "{place} hold a key");
        }
    }
}
