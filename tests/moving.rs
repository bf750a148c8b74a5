//! Machines move to another store whole, or not at all, and nothing in it knows where they came from.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::host::Host;
use common::points::{ABORTED, each};
use common::{Ended, Lab, Run, until};
use forge_lab::old::{OldStore, Sshd};
use serde_json::{Value, json};

const PASSPHRASE: &str = "several words in a row";

/// The command, which knows the passphrase.
fn knowing<'a>(lab: &'a Lab, words: &str) -> Run<'a> {
    let path = lab.folder().join("passphrase");
    fs::write(&path, PASSPHRASE).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
    lab.forge(words).env("FORGE_PASSPHRASE_FILE", path)
}

/// A store with a machine that is stopped, with a file of its own and a published port.
fn stopped() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1 --publish 80").ok();
    let claim = lab.record("n1")["claim"].as_str().expect("one").to_owned();
    let guest = lab.provider.root().join("vms").join(claim).join("root");
    fs::write(guest.join("data"), "of the guest").expect("written");
    lab.forge("stop n1").ok();
    lab
}

/// The file that an export of everything makes.
fn exported(lab: &Lab, more: &str) -> PathBuf {
    let file = lab.folder().join("moving.forge");
    knowing(lab, &format!("export --all {more} -o {}", file.display())).ok();
    file
}

fn import<'a>(lab: &'a Lab, file: &Path) -> Run<'a> {
    knowing(lab, &format!("import {}", file.display()))
}

fn set(lab: &Lab, name: &str, field: &str, value: Value) {
    lab.alter(name, |record| record[field] = value);
}

/// Whether the text stands in a file that forge goes by, or that it made for others.
#[track_caller]
fn nowhere(files: &BTreeMap<PathBuf, Vec<u8>>, text: &str) {
    for (path, bytes) in files {
        let found = bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes());
        assert!(!found, "`{text}` stands in {}", path.display());
    }
}

fn says(ended: &Ended, text: &str) {
    assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
}

/// Point 10: not portable.
#[test]
fn a_machine_moves_with_its_disk_and_knows_no_path() {
    let (here, there) = (stopped(), Lab::new());
    let before = (here.record("n1"), here.files());
    let file = exported(&here, "--with-disk");
    assert_eq!(here.record("n1"), before.0, "here nothing changes");
    let mode = fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let packed = [(file.clone(), fs::read(&file).expect("a file"))];
    for text in ["of the guest", "machines/n1", "PRIVATE KEY"] {
        nowhere(&packed.clone().into(), text);
    }
    let ended = import(&there, &file).ok();
    says(&ended, "`forge start n1` starts what came with a disk");
    let record = there.record("n1");
    for kept in ["claim", "name", "created", "driver"] {
        assert_eq!(record[kept], before.0[kept], "{kept}");
    }
    assert_eq!(record["ssh"], before.0["ssh"], "its keys are the same");
    let nic = |record: &Value| record["placement"]["nic"]["address"].clone();
    assert_eq!(nic(&record), nic(&before.0), "its guest has that address");
    assert_ne!(there.address("n1"), here.address("n1"));
    let published = record["published"][0]["host"].as_str().expect("one");
    assert!(published.starts_with(&there.address("n1")), "{published}");
    // It starts, has a certificate for its new address, and what was on its disk.
    there.forge("start n1").ok();
    let env = there.forge("env n1").ok();
    assert!(env.stdout.contains(&there.address("n1")), "{}", env.stdout);
    let claim = record["claim"].as_str().expect("one");
    let data = there
        .provider
        .root()
        .join("vms")
        .join(claim)
        .join("root/data");
    assert_eq!(fs::read_to_string(data).expect("its disk"), "of the guest");
    let names = there.record("n1")["tls"]["names"].to_string();
    assert!(names.contains(&there.address("n1")), "{names}");
    let same = |lab: &Lab| fs::read(lab.home.join("certs/ca.pem")).expect("a CA");
    assert_eq!(
        same(&there),
        same(&here),
        "an empty store takes the authority"
    );
    let mut files = there.files();
    files.retain(|path, _| !path.starts_with(there.home.join("logs")));
    nowhere(&files, &here.folder().display().to_string());
    assert!(!there.home.join(".import").exists());
    // A second time it is here already.
    let ended = import(&there, &file).run().code(3);
    says(
        &ended,
        "machines of these names are in this store already: `n1`",
    );
    there.forge("rm -y n1").ok();
    there.provider_is_empty("afterwards");
}

#[test]
fn a_store_that_is_moved_by_hand_knows_no_path() {
    let lab = stopped();
    lab.forge("start n1").ok();
    let moved = lab.folder().join("elsewhere");
    fs::rename(&lab.home, &moved).expect("moved");
    let home = lab.home.display().to_string();
    let run = |words: &str| lab.forge(words).env("FORGE_HOME", &moved).ok();
    assert!(run("env n1").stdout.contains(&moved.display().to_string()));
    run("stop n1");
    let mut files = common::files(&moved);
    files.retain(|path, _| !path.starts_with(moved.join("logs")));
    nowhere(&files, &home);
}

#[test]
fn what_could_not_work_elsewhere_is_refused_before_a_passphrase_is_asked_for() {
    let lab = stopped();
    let file = lab.folder().join("out");
    let refused = |words: &str, code: i32, text: &str| {
        let ended = lab.forge(&format!("export {words}")).run().code(code);
        says(&ended, text);
        assert!(!file.exists());
    };
    let out = file.display();
    refused(&format!("-o {out}"), 2, "no machine is named");
    refused(&format!("n1 --all -o {out}"), 2, "cannot be used with");
    refused(&format!("n2 -o {out}"), 1, "machine `n2` does not exist");
    refused(
        &format!("n1 -o {out}"),
        1,
        "its disk lies in this store\nhint: `--with-disk` takes disks along",
    );
    set(&lab, "n1", "config", serde_json::json!({"travel": "never"}));
    refused(
        &format!("n1 --with-disk -o {out}"),
        1,
        "machine `n1` of the driver `fake` would not work elsewhere\ncaused by: it is bound to this host",
    );
    set(&lab, "n1", "config", serde_json::json!({}));
    lab.forge("create n2").ok();
    refused(
        &format!("n2 --with-disk -o {out}"),
        1,
        "machine `n2` is not stopped but running: its disk would change while it is copied\nhint: `forge stop n2`",
    );
    refused(
        &format!("--all -o {out}"),
        1,
        "2 machines cannot be exported",
    );
    refused(
        "n1 --with-disk -o passphrase-to-be/x",
        1,
        "there is no terminal",
    );
    let taken = lab.folder().join("taken");
    fs::write(&taken, "mine").expect("written");
    let ended = knowing(
        &lab,
        &format!("export n1 --with-disk -o {}", taken.display()),
    )
    .run()
    .code(1);
    says(&ended, "exists");
    assert_eq!(fs::read_to_string(taken).expect("a file"), "mine");
    let ended = knowing(&lab, "export n1 --with-disk -o nowhere/x")
        .run()
        .code(1);
    says(&ended, "failed to write");
    let left: Vec<_> = lab
        .provider
        .vms()
        .expect("machines")
        .iter()
        .map(|vm| lab.provider.folder(vm.claim).join(".packed"))
        .filter(|path| path.exists())
        .collect();
    assert!(left.is_empty(), "a copy is left: {left:?}");
    Lab::bare().forge("export --all -o x").run().code(1);
}

#[test]
fn a_file_that_is_not_whole_changes_nothing() {
    let (here, there) = (stopped(), Lab::new());
    let file = exported(&here, "--with-disk");
    let whole = fs::read(&file).expect("a file");
    let before = there.files();
    let refused = |bytes: &[u8], text: &str| {
        fs::write(&file, bytes).expect("written");
        let ended = import(&there, &file).run().code(1);
        says(&ended, text);
        let mut after = there.files();
        after.retain(|path, _| !path.starts_with(there.home.join("logs")));
        assert_eq!(
            after.keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
    };
    // Where the frames begin: behind two lines and their proof.
    let lines = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let start = lines.map(|(index, _)| index).nth(1).expect("two lines") + 17;
    let frame = (64 << 10) + 16;
    for edge in (start..whole.len()).step_by(frame) {
        for place in [edge, (edge + frame).min(whole.len()) - 1] {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            refused(&flipped, "damaged");
        }
    }
    refused(&whole[..whole.len() - 1], "damaged or cut off");
    refused(&whole[..start - 1], "ends too early");
    refused(&whole[..10], "first lines are damaged");
    refused(b"something else\n", "it is no forge-export");
    fs::write(&file, &whole).expect("as it was");
    let wrong = there.folder().join("wrong");
    fs::write(&wrong, "another passphrase").expect("written");
    let words = format!("import {}", file.display());
    let ended = there
        .forge(&words)
        .env("FORGE_PASSPHRASE_FILE", &wrong)
        .run()
        .code(1);
    says(&ended, "the passphrase does not open it");
    says(
        &there.forge("import nothing").run().code(1),
        "failed to open `",
    );
    says(&there.forge("import .").run().code(2), "it is no file");
    assert!(
        !there.home.join("store.json").exists(),
        "no store was made for it"
    );
    import(&there, &file).ok();
}

#[test]
fn a_machine_that_stays_where_it_is_is_reached_from_both_stores() {
    let here = Lab::new();
    here.forge("create n1").ok();
    set(
        &here,
        "n1",
        "config",
        serde_json::json!({"travel": "records"}),
    );
    here.forge("create n2").ok();
    set(
        &here,
        "n2",
        "config",
        serde_json::json!({"travel": "records"}),
    );
    for key in ["id_ed25519", "id_ed25519.pub"] {
        fs::remove_file(here.home.join("machines/n2").join(key)).expect("removed");
    }
    let out = here.folder().join("moving.forge");
    let words = format!("export --all -o {}", out.display());
    let ended = knowing(&here, &words).run().code(1);
    says(&ended, "its SSH key `id_ed25519` is not there");
    assert!(!out.exists());
    // One without SSH has no key.
    let mut ssh = here.record("n2")["ssh"].clone();
    ssh["user"] = "".into();
    set(&here, "n2", "ssh", ssh);
    let file = exported(&here, "");
    let there = Lab::new();
    let at_here = |run: Run<'_>| run.env("FORGE_FAKE_PROVIDER", here.provider.root()).ok();
    at_here(import(&there, &file));
    assert_eq!(there.address("n1"), here.address("n1"));
    let env = at_here(there.forge("env n1"));
    assert!(
        env.stdout
            .contains(&there.home.join("machines/n1").display().to_string())
            || env.stdout.contains("HOME/machines/n1")
    );
    at_here(there.forge("provision n1"));
    assert_eq!(here.provider.creates().len(), 2, "none is made again");
    at_here(there.forge("ip n2"));
    // The store that it came from has it already, under the same name.
    let ended = import(&here, &file).run().code(3);
    says(
        &ended,
        "machines of these names are in this store already: `n1`, `n2`",
    );
}

/// Changes what the driver of a machine was told.
fn tell(lab: &Lab, name: &str, values: &[(&str, Value)]) {
    let mut config = lab.record(name)["config"].clone();
    for (field, value) in values {
        config[field] = value.clone();
    }
    set(lab, name, "config", config);
}

#[test]
fn a_machine_of_docker_machines_keeps_its_only_key() {
    let (here, there) = (Lab::bare(), Lab::bare());
    let old = OldStore::at(&here.folder().join("old"));
    let host = format!(
        "127.77.{}.{}",
        std::process::id() / 250 % 250,
        1 + std::process::id() % 250
    );
    old.machine(
        "g1",
        "generic",
        &json!({"IPAddress": host, "SSHPort": 2222, "Password": "of the host"}),
        &[&host],
        1,
    );
    let at = format!("{host}:2222").parse().expect("an address");
    let sshd = Sshd::start(at, &old.key("g1"));
    let words = format!(
        "import docker-machine {} --host-key g1={}",
        old.root.display(),
        sshd.fingerprint
    );
    knowing(&here, &words).ok();
    here.forge("ssh g1 exit 42").run().code(42);
    let secrets = |lab: &Lab| lab.record("g1")["imported"]["secrets"].clone();
    assert_eq!(secrets(&here), json!({"Password": "generic/Password"}));
    let out = here.folder().join("moving.forge");
    let words = format!("export g1 -o {}", out.display());
    let ended = knowing(&here, &words).run().code(1);
    says(
        &ended,
        "machine `g1` of the driver `imported` would not work elsewhere\ncaused by: it is this host",
    );
    // Only a host of another name travels; where it is, the record of the machine says as well.
    tell(&here, "g1", &[("host", "g1.example".into())]);
    let file = exported(&here, "");
    import(&there, &file).ok();
    tell(&there, "g1", &[("host", host.into())]);
    assert_eq!(secrets(&there), json!({"Password": null}), "it stayed");
    let key = |lab: &Lab| fs::read(lab.home.join("machines/g1/id_rsa")).expect("its key");
    assert_eq!(key(&here), key(&there));
    there.forge("ssh g1 exit 42").run().code(42);
    // What follows from the record is made anew.
    for name in ["config.json", "known_hosts", "id_rsa.pub"] {
        assert!(there.home.join("machines/g1").join(name).exists(), "{name}");
    }
}

/// `n1` is of this host, so it cannot be exported.
#[track_caller]
fn stays_here(here: &Lab, driver: &str) {
    let out = here.folder().join("moving.forge");
    let ended = knowing(here, &format!("export n1 -o {}", out.display()))
        .run()
        .code(1);
    says(
        &ended,
        &format!(
            "machine `n1` of the driver `{driver}` would not work elsewhere\ncaused by: it is this host"
        ),
    );
}

#[test]
fn an_engine_known_by_its_url_travels_unless_it_is_of_this_host() {
    let (here, there) = (Lab::bare(), Lab::bare());
    here.forge("create --driver none --url tcp://127.0.0.1:2376 n1")
        .ok();
    stays_here(&here, "none");
    tell(
        &here,
        "n1",
        &[
            ("url", "tcp://n1.example:2376".into()),
            ("host", "n1.example".into()),
        ],
    );
    import(&there, &exported(&here, "")).ok();
    assert_eq!(here.record("n1"), there.record("n1"));
}

#[test]
fn an_adopted_host_is_entered_from_both_stores() {
    let (here, there, host) = (Lab::bare(), Lab::bare(), Host::new());
    here.forge(&format!("create {} n1", host.trusted())).ok();
    stays_here(&here, "generic");
    let address = here.record("n1")["config"]["host"].clone();
    tell(
        &here,
        "n1",
        &[("host", "n1.example".into()), ("hostname", Value::Null)],
    );
    import(&there, &exported(&here, "")).ok();
    tell(&there, "n1", &[("host", address)]);
    there.forge("ssh n1 exit 42").run().code(42);
    there.forge("provision n1").ok();
    assert_eq!(
        fs::read(here.home.join("machines/n1/id_ed25519")).expect("a key"),
        fs::read(there.home.join("machines/n1/id_ed25519")).expect("a key")
    );
}

#[test]
fn what_does_not_come_along_is_told() {
    let (here, there) = (Lab::new(), Lab::new());
    here.forge("create n1").ok();
    set(&here, "n1", "config", json!({"travel": "records"}));
    let claim = here.record("n1")["claim"].as_str().expect("one").to_owned();
    let remembered = here.home.join("drivers/fake").join(claim);
    fs::create_dir_all(&remembered).expect("a folder");
    fs::write(remembered.join("small"), "x").expect("written");
    fs::write(remembered.join("a name"), "x").expect("written");
    fs::write(remembered.join("\u{e4}"), "x").expect("written");
    fs::write(remembered.join("large"), vec![0; (4 << 20) + 1]).expect("written");
    let out = here.folder().join("moving.forge");
    let ended = knowing(&here, &format!("export n1 -o {}", out.display())).ok();
    for (name, why) in [
        ("a name", "has a name with a blank"),
        ("\u{e4}", "has a name with a blank"),
        ("large", "is larger than 4 MiB"),
    ] {
        let path = remembered.join(name).display().to_string();
        let path = path.replace(&here.home.display().to_string(), "HOME");
        says(&ended, &format!("warning: `{path}` is left out: it {why}"));
    }
    assert!(!ended.stderr.contains("small"), "{}", ended.stderr);
    let came = import(&there, &out);
    came.env("FORGE_FAKE_PROVIDER", here.provider.root()).ok();
    let names: Vec<_> = there
        .files()
        .into_keys()
        .filter(|path| path.starts_with(there.home.join("drivers/fake")))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    assert_eq!(names, ["small"]);
}

#[test]
fn an_export_that_waited_looks_at_clusters_again() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    set(&lab, "n1", "config", json!({"travel": "records"}));
    let lock = fs::File::open(lab.home.join("locks/machine-n1.lock")).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let running = knowing(&lab, "export n1 -o out").start();
    let fds = PathBuf::from(format!("/proc/{}/fd", running.child.id()));
    until("it waits", || {
        let open = fs::read_dir(&fds).expect("it runs").flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|path| path.ends_with("machine-n1.lock"))
    });
    let member = json!({"cluster": "web", "zone": "z1", "role": "worker"});
    set(&lab, "n1", "member", member);
    drop(lock);
    let ended = running.wait(&lab).code(1);
    says(
        &ended,
        "one of them came into a cluster or left it\nhint: run the same command again",
    );
    assert!(!lab.folder().join("out").exists());
}

#[test]
fn names_are_compared_before_disks_are_copied() {
    let (here, there) = (stopped(), Lab::new());
    there.forge("create n1").ok();
    let file = exported(&here, "--with-disk");
    let list = there.folder().join("points");
    let ended = import(&there, &file)
        .env("FORGE_POINTS", &list)
        .run()
        .code(3);
    says(
        &ended,
        "machines of these names are in this store already: `n1`",
    );
    let passed = fs::read_to_string(&list).unwrap_or_default();
    assert!(!passed.contains("putting a disk aside"), "{passed}");
    there.forge("rm -y n1").ok();
    import(&there, &file).env("FORGE_POINTS", &list).ok();
    let passed = fs::read_to_string(&list).expect("points");
    assert!(passed.contains("putting a disk aside"), "{passed}");
}

#[test]
fn a_store_with_machines_of_its_own_keeps_its_authority() {
    let (here, there) = (stopped(), Lab::new());
    there.forge("create other").ok();
    let ca = fs::read(there.home.join("certs/ca.pem")).expect("a CA");
    let file = exported(&here, "--with-disk");
    // The address between machines is taken: that of the first of each store.
    let ended = import(&there, &file).run().code(3);
    says(&ended, "belongs to another machine of this store");
    assert!(!there.home.join("machines/n1").exists());
    there.forge("rm -y other").ok();
    import(&there, &file).ok();
    there.forge("start n1").ok();
    there.forge("env n1").ok();
    let read = |path: &str| fs::read(there.home.join(path)).expect("a file");
    assert_eq!(read("certs/ca.pem"), ca);
    assert_eq!(read("machines/n1/ca.pem"), ca);
}

#[test]
fn the_machines_of_a_cluster_travel_together() {
    let here = Lab::new();
    here.forge("cluster up web --managers 1 --workers 1").ok();
    for name in ["web-m1", "web-w1"] {
        here.forge(&format!("stop {name}")).run();
    }
    let names: Vec<String> = here
        .forge("ls -q")
        .ok()
        .stdout
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        here.forge(&format!("kill {name}")).ok();
    }
    let ended = here
        .forge(&format!("export {} --with-disk -o x", names[0]))
        .run()
        .code(2);
    says(
        &ended,
        &format!(
            "the machines of cluster `web` travel together, and these are not named: {}",
            names[1]
        ),
    );
    let file = exported(&here, "--with-disk");
    let there = Lab::new();
    import(&there, &file).ok();
    let mut clusters = [&here, &there].map(|lab| {
        let text = fs::read(lab.home.join("clusters/web/cluster.json")).expect("a record");
        serde_json::from_slice::<Value>(&text).expect("JSON")
    });
    assert_eq!(clusters[0], clusters[1]);
    assert_eq!(
        clusters[0]["cluster_id"].take(),
        clusters[1]["cluster_id"].take()
    );
    for name in &names {
        there.forge(&format!("start {name}")).ok();
        assert_eq!(here.record(name)["member"], there.record(name)["member"]);
    }
}

#[test]
fn an_import_that_is_killed_anywhere_leaves_no_half_machine_and_goes_on() {
    let here = stopped();
    here.forge("create n2").ok();
    here.forge("stop n2").ok();
    let file = exported(&here, "--with-disk");
    let bytes = fs::read(&file).expect("a file");
    let place = |lab: &Lab| {
        let file = lab.folder().join("moving.forge");
        fs::write(&file, &bytes).expect("copied");
        file
    };
    let points = {
        let lab = Lab::new();
        let list = lab.folder().join("points");
        import(&lab, &place(&lab)).env("FORGE_POINTS", &list).ok();
        fs::read_to_string(list).expect("points").lines().count()
    };
    assert!(points > 30, "{points}");
    // One in so many, others in each run.
    let step = if std::env::var_os("FORGE_LAB_KILLS").is_some() {
        1
    } else {
        8
    };
    let first = std::process::id() as usize % step;
    println!("every {step}. of {points} points, from {first} on");
    let (kills, killed) = ((points - first) / step, AtomicUsize::new(0));
    each(kills, |number| {
        let at = first + number * step;
        let lab = Lab::new();
        let file = place(&lab);
        let ended = import(&lab, &file)
            .env("FORGE_ABORT_AT", at.to_string())
            .run();
        // How many points there are differs a little from run to run: two machines come in at once.
        if ended.code != 0 {
            assert_eq!(ended.code, ABORTED, "{}", ended.stderr);
            killed.fetch_add(1, Ordering::Relaxed);
        }
        // What is there is whole.
        let listed = lab.forge("ls -q").run().stdout.replace('\n', " ");
        if !listed.is_empty() {
            lab.forge(&format!("start {listed}")).ok();
        }
        if number % 3 == 0 && !listed.is_empty() {
            // Whoever gives it up has nothing left of it.
            lab.forge(&format!("rm -y {listed}")).ok();
        }
        if lab.home.join(".import").exists() || !listed.contains("n2") {
            import(&lab, &file).ok();
        }
        assert!(!lab.home.join(".import").exists(), "{at}");
        lab.forge("start n1 n2").ok();
        lab.forge("env n2").ok();
        lab.forge("rm -y n1 n2").ok();
        lab.provider_is_empty(&at.to_string());
    });
    let killed = killed.into_inner();
    assert!(killed * 4 >= kills * 3, "{killed} of {kills} were killed");
}

/// What a kill at its very last step leaves takes room until another comes.
#[test]
fn what_an_import_that_had_come_to_its_end_left_behind_is_cleared_away() {
    let (here, there) = (stopped(), Lab::new());
    let file = exported(&here, "--with-disk");
    let over = there.home.join(".import.over");
    there.forge("ls").ok();
    fs::create_dir_all(&over).expect("a folder");
    fs::write(over.join("import.json"), "{").expect("written");
    import(&there, &file).ok();
    assert!(!over.exists() && !there.home.join(".import").exists());
    import(&there, &file).run().code(3);
    there.forge("start n1").ok();
}

#[test]
fn an_import_that_is_given_up_leaves_nothing_once_another_comes() {
    let (here, other) = (stopped(), Lab::new());
    other.forge("create m1").ok();
    other.forge("stop m1").ok();
    let (first, second) = (
        exported(&here, "--with-disk"),
        exported(&other, "--with-disk"),
    );
    let there = Lab::new();
    let killed = import(&there, &first)
        .env("FORGE_ABORT_AT", "1 after driver.unpack")
        .run();
    killed.code(ABORTED);
    assert_eq!(there.provider.vms().expect("machines").len(), 1);
    there.forge("ls -q").says(0, "", "");
    // Nothing lists it but what says how one goes on.
    let said = "an import of n1 was cut off: what it had begun takes room, and is listed nowhere\nhint: `forge import FILE` with the same file goes on";
    says(&there.forge("ls").ok(), said);
    let found = there.forge("doctor --json").run().json();
    let found = found["findings"].as_array().expect("findings").iter();
    let imports: Vec<_> = found.filter(|entry| entry["what"] == "import").collect();
    assert_eq!(imports.len(), 1);
    assert_eq!(imports[0]["ok"], false);
    import(&there, &second).ok();
    assert_eq!(there.forge("ls").ok().stderr, "");
    let vms = there.provider.vms().expect("machines");
    assert_eq!(vms.iter().map(|vm| &*vm.name).collect::<Vec<_>>(), ["m1"]);
    assert!(!there.home.join("machines/n1").exists());
}
