//! A kill at any moment leaves a store that loads, and the same command finishes the job with no second
//! machine: the binary aborts before and after every save and every call of the driver, on a provider that
//! outlives it.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::points::{ABORTED, aborted, each, points};
use common::{Ended, Lab};

/// The store loads, and lists everything that the provider has.
fn loads(lab: &Lab, at: &str) {
    lab.forge("ls").ok();
    let listed: BTreeSet<String> = lab
        .forge("ls --json")
        .ok()
        .json()
        .as_array()
        .expect("a list")
        .iter()
        .map(|machine| {
            assert_ne!(machine["stage"], serde_json::Value::Null, "{at}: {machine}");
            machine["name"].as_str().expect("a name").to_owned()
        })
        .collect();
    for vm in lab.provider.vms().expect("the provider") {
        assert!(
            listed.contains(&vm.name),
            "{at}: `{}` is not listed",
            vm.name
        );
        let record = lab.record(&vm.name);
        assert_eq!(
            record["claim"],
            vm.claim.to_string(),
            "{at}: the machine of the provider is not the recorded one"
        );
    }
    for name in &listed {
        lab.forge(&format!("inspect {name}")).ok();
        lab.forge(&format!("status {name}")).ok();
    }
}

/// Machine `n1` is whole, runs, and is the only one that was ever made.
fn whole(lab: &Lab, at: &str) {
    assert_eq!(lab.provider.creates().len(), 1, "{at}: machines were made");
    let vms = lab.provider.vms().expect("the provider");
    assert_eq!(vms.len(), 1, "{at}");
    assert!(vms[0].on, "{at}: it runs");
    let record = lab.record("n1");
    assert_eq!(record["stage"], "ready", "{at}");
    assert_eq!(record["claim"], vms[0].claim.to_string(), "{at}");
    assert_eq!(
        record["ssh"]["first_host_key"],
        serde_json::Value::Null,
        "{at}"
    );
    lab.forge("env n1").ok();
    no_first_key(lab, at);
    accompanied(lab, at);
    tidy(lab, at);
}

/// What lies beside the record of `n1` for other programs follows from it, and from nothing earlier.
fn accompanied(lab: &Lab, at: &str) {
    let folder = lab.home.join("machines/n1");
    let read = |name: &str| {
        fs::read_to_string(folder.join(name))
            .unwrap_or_else(|error| panic!("{at}: {name}: {error}"))
    };
    let config: serde_json::Value = serde_json::from_str(&read("config.json")).expect("JSON");
    assert_eq!(config["Driver"]["IPAddress"], lab.address("n1"), "{at}");
    let home = lab.home.display().to_string();
    assert_eq!(config["Driver"]["StorePath"], home, "{at}");
    assert_eq!(read("id_rsa"), read("id_ed25519"), "{at}");
    assert_eq!(read("id_rsa.pub"), read("id_ed25519.pub"), "{at}");
    let record = lab.record("n1");
    let own = record["ssh"]["own_host_key"].as_str().expect("a key");
    let known = read("known_hosts");
    assert!(known.ends_with(&format!(" {own}\n")), "{at}: {known}");
    assert_eq!(known.lines().count(), 1, "{at}: {known}");
}

/// Nothing is left of the key of the first contact: not beside the record, not on the machine, not on the
/// seed.
fn no_first_key(lab: &Lab, at: &str) {
    assert!(
        !lab.home.join("machines/n1/first_host_key").exists(),
        "{at}: the first key is still in the store"
    );
    for vm in lab.provider.vms().expect("the provider") {
        let folder = lab.provider.folder(vm.claim);
        let seed = fs::read(folder.join("seed")).expect("a seed");
        assert!(
            seed.iter().all(|byte| *byte == 0),
            "{at}: the seed is blank"
        );
        let keys: Vec<_> = common::files(&folder.join("root/etc/ssh"))
            .into_iter()
            .filter(|(_, bytes)| String::from_utf8_lossy(bytes).contains("PRIVATE KEY"))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(
            keys,
            [folder.join("root/etc/ssh/ssh_host_ed25519_key")],
            "{at}: the machine has its own key alone"
        );
    }
}

/// No temporary file is left beside the records by a command that ended well.
fn tidy(lab: &Lab, at: &str) {
    let names: Vec<String> = fs::read_dir(lab.home.join("machines/n1"))
        .expect("the machine's folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(names.is_empty(), "{at}: {names:?} left");
}

/// Nothing is left of any machine, at the provider or in the store.
fn nothing(lab: &Lab, at: &str) {
    lab.provider_is_empty(at);
    lab.forge("ls -q").says(0, "", "");
    let left: Vec<_> = fs::read_dir(lab.home.join("machines"))
        .expect("machines")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "{at}: {left:?} left");
}

/// A store with the machine `n1`, ready.
fn made() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab
}

/// Aborts `words` at each of its points on a store made by `prepare`, and hands each to `after` once the
/// same command has run again. Returns how many points there were.
fn at_each_point(
    words: &str,
    prepare: impl Fn() -> Lab + Sync,
    after: impl Fn(&Lab, &str) + Sync,
) -> usize {
    let names = points(&prepare(), words);
    each(names.len(), |number| {
        let lab = prepare();
        let at = format!("`{words}` aborted {}", names[number - 1]);
        let ended = aborted(&lab, words, number);
        assert_eq!(ended.code, ABORTED, "{at}: it was not\n{}", ended.stderr);
        loads(&lab, &at);
        // Behind its last save a creation is over: then the machine exists.
        let over = words.starts_with("create ") && number == names.len();
        let again = lab.forge(words).run();
        assert_eq!(
            again.code,
            i32::from(over),
            "{at}: not gone on with\n{}",
            again.stderr
        );
        assert_eq!(
            over,
            again.stderr.contains("machine `n1` already exists"),
            "{at}"
        );
        after(&lab, &at);
    });
    names.len()
}

#[test]
fn create_goes_on_from_every_point() {
    let count = at_each_point("create n1", Lab::new, whole);
    // Keys, record, ledger, CA, client pair, certificate, driver calls: each before and after.
    assert!(count > 50, "{count} points");
}

#[test]
fn a_create_of_several_goes_on_though_one_of_them_is_ready() {
    let names = points(&Lab::new(), "create n1 n2 n3");
    // A sample: from the last third on, where some are ready and others are not.
    let numbers: Vec<usize> = (names.len() * 2 / 3..names.len()).step_by(5).collect();
    let mixed = AtomicUsize::new(0);
    each(numbers.len(), |index| {
        let (lab, number) = (Lab::new(), numbers[index - 1]);
        let ended = aborted(&lab, "create n1 n2 n3", number);
        assert_eq!(ended.code, ABORTED, "{number}: {}", ended.stderr);
        loads(&lab, "create n1 n2 n3");
        let ready = ["n1", "n2", "n3"].map(|name| lab.record(name)["stage"] == "ready");
        let over = ready == [true; 3];
        mixed.fetch_add(
            usize::from(!over && ready.contains(&true)),
            Ordering::SeqCst,
        );
        let again = lab.forge("create n1 n2 n3").run();
        assert_eq!(again.code, i32::from(over), "{number}: {}", again.stderr);
        assert_eq!(lab.provider.creates().len(), 3, "{number}: one of each");
        for name in ["n1", "n2", "n3"] {
            assert_eq!(lab.record(name)["stage"], "ready", "{number}");
        }
    });
    assert!(mixed.into_inner() > 0, "one was ready and another was not");
}

#[test]
fn every_kind_of_effect_has_a_point_before_and_after_it() {
    let lab = Lab::new();
    let mut all = points(&lab, "create n1");
    all.extend(points(&lab, "publish n1 8080"));
    all.extend(points(&lab, "rm -y n1"));
    for effect in [
        "saving id_ed25519",
        "saving first_host_key",
        "saving machine.json",
        "saving companions.root",
        "saving allocation.json",
        "saving ca-key.pem",
        "saving ca.pem",
        "saving key.pem",
        "saving cert.pem",
        "saving server-key.pem",
        "saving server.pem",
        "removing first_host_key",
        "removing machine.json",
        "driver.check",
        "driver.ensure_shared",
        "driver.create",
        "driver.blank_seed",
        "driver.forward",
        "driver.destroy",
        "driver.release_shared",
    ] {
        for side in ["before", "after"] {
            let name = format!("{side} {effect}");
            assert!(
                all.contains(&name),
                "no point `{name}` in\n{}",
                all.join("\n")
            );
        }
    }
    // The record and what follows from it are one write: each of its files becomes the new one at a point of its own.
    for name in [
        "machine.json",
        "config.json",
        "id_rsa",
        "id_rsa.pub",
        "known_hosts",
    ] {
        let point = format!("before renaming {name}");
        assert!(all.contains(&point), "no point `{point}`");
    }
}

#[test]
fn a_save_that_is_cut_off_behind_the_record_is_completed_by_any_changing_command() {
    let names = points(&Lab::new(), "create n1");
    // The first save of the record, and the one that brings the machine's own host key.
    let cut: Vec<usize> = ["config.json", "id_rsa", "known_hosts"]
        .iter()
        .flat_map(|file| {
            let point = format!("before renaming {file}");
            let at: Vec<usize> = (1..=names.len())
                .filter(|number| names[number - 1] == point)
                .collect();
            assert!(!at.is_empty(), "no point `{point}`");
            at
        })
        .collect();
    each(cut.len(), |index| {
        let (lab, number) = (Lab::new(), cut[index - 1]);
        let at = format!("`create n1` aborted {}", names[number - 1]);
        assert_eq!(aborted(&lab, "create n1", number).code, ABORTED, "{at}");
        // The record is there, whole, and something tells that its companions are not.
        let record = lab.record("n1");
        let folder = lab.home.join("machines/n1");
        let left = || -> Vec<String> {
            fs::read_dir(&folder)
                .expect("the folder")
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with(".next-"))
                .collect()
        };
        assert!(!left().is_empty(), "{at}");
        loads(&lab, &at);
        assert!(!left().is_empty(), "{at}: reading changes nothing");
        // A command that has nothing to do with this machine.
        lab.forge("create n2").ok();
        assert!(left().is_empty(), "{at}: {:?}", left());
        assert_eq!(lab.record("n1"), record, "{at}");
        let config = fs::read_to_string(folder.join("config.json")).expect("config.json");
        assert!(config.contains(&lab.address("n1")), "{at}: {config}");
        let known = fs::read_to_string(folder.join("known_hosts")).expect("known_hosts");
        let keys = ["own_host_key", "first_host_key"].map(|key| record["ssh"][key].as_str());
        for key in keys.into_iter().flatten() {
            assert!(
                known.contains(key.trim_end_matches(" first contact")),
                "{at}"
            );
        }
        lab.forge("create n1").ok();
        whole_beside_another(&lab, &at);
    });
}

/// Machine `n1` is whole beside `n2`, which a test made meanwhile.
fn whole_beside_another(lab: &Lab, at: &str) {
    assert_eq!(lab.provider.creates().len(), 2, "{at}: machines were made");
    assert_eq!(lab.record("n1")["stage"], "ready", "{at}");
    accompanied(lab, at);
    tidy(lab, at);
}

#[test]
fn create_with_published_ports_goes_on_from_every_point() {
    at_each_point("create n1 --publish 18080", Lab::new, |lab, at| {
        whole(lab, at);
        assert_eq!(
            lab.provider.vms().expect("the provider")[0].published[0].guest,
            18080,
            "{at}"
        );
    });
}

#[test]
fn rm_goes_on_from_every_point() {
    // After its last effect nothing is left to remove: then the machine does not exist any more.
    let words = "rm -y n1";
    let names = points(&made(), words);
    each(names.len(), |number| {
        let lab = made();
        let at = format!("`{words}` aborted {}", names[number - 1]);
        assert_eq!(aborted(&lab, words, number).code, ABORTED, "{at}");
        loads(&lab, &at);
        let again = lab.forge("rm -f n1").run();
        assert_eq!(again.code, 0, "{at}: not gone on with\n{}", again.stderr);
        nothing(&lab, &at);
        // The name is free again.
        lab.forge("create n1").ok();
        assert_eq!(lab.provider.vms().expect("the provider").len(), 1, "{at}");
    });
}

#[test]
fn a_create_that_was_cut_off_can_be_removed_from_every_point() {
    let names = points(&Lab::new(), "create n1");
    each(names.len(), |number| {
        let lab = Lab::new();
        let at = format!("`create n1` aborted {}", names[number - 1]);
        assert_eq!(aborted(&lab, "create n1", number).code, ABORTED, "{at}");
        let removed = lab.forge("rm -f n1").run();
        assert_eq!(removed.code, 0, "{at}: not removed\n{}", removed.stderr);
        if lab.home.join("machines").exists() {
            nothing(&lab, &at);
        }
    });
}

#[test]
fn start_and_stop_go_on_from_every_point() {
    at_each_point("stop n1", made, |lab, at| {
        assert!(
            !lab.provider.vms().expect("the provider")[0].on,
            "{at}: it is off"
        );
    });
    let stopped = || {
        let lab = made();
        lab.forge("stop n1").ok();
        lab
    };
    at_each_point("start n1", stopped, whole);
    at_each_point("kill n1", made, |lab, at| {
        assert!(
            !lab.provider.vms().expect("the provider")[0].on,
            "{at}: it is off"
        );
    });
    at_each_point("restart n1", made, whole);
}

#[test]
fn publish_goes_on_from_every_point() {
    let published = |lab: &Lab| -> Vec<u16> {
        lab.provider.vms().expect("the provider")[0]
            .published
            .iter()
            .map(|forward| forward.guest)
            .collect()
    };
    at_each_point("publish n1 18080", made, |lab, at| {
        whole(lab, at);
        assert_eq!(published(lab), [18080], "{at}");
        let record = lab.record("n1");
        assert_eq!(record["published"][0]["guest"], 18080, "{at}");
    });
    let with_port = || {
        let lab = made();
        lab.forge("publish n1 18080").ok();
        lab
    };
    at_each_point("publish n1 --remove 18080", with_port, |lab, at| {
        assert!(published(lab).is_empty(), "{at}");
        assert_eq!(lab.record("n1")["published"], serde_json::json!([]), "{at}");
    });
}

#[test]
fn provision_goes_on_from_every_point() {
    // The certificate is lost: it is made anew and brought to the machine.
    let without_certificate = || {
        let lab = made();
        fs::remove_file(lab.home.join("machines/n1/server.pem")).expect("removed");
        lab
    };
    at_each_point("provision n1", without_certificate, |lab, at| {
        whole(lab, at);
        let again = lab.forge("provision n1 --json").ok();
        assert_eq!(again.summary()["changed"], 0, "{at}: {}", again.stdout);
    });
}

/// A generator of numbers that is the same everywhere (Numerical Recipes' 64-bit linear congruence).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

#[test]
fn two_kills_in_a_row_are_survived_as_well() {
    let count = points(&Lab::new(), "create n1").len();
    each(40, |round| {
        let mut numbers = Numbers(round as u64);
        let lab = Lab::new();
        let (first, second) = (1 + numbers.below(count), 1 + numbers.below(count));
        let at = format!("aborted at {first}, then at {second}");
        assert_eq!(aborted(&lab, "create n1", first).code, ABORTED, "{at}");
        // The second run may be over before it comes to its point, or have nothing left to do.
        let over =
            |ended: &Ended| ended.code == 0 || ended.stderr.contains("machine `n1` already exists");
        let ended = aborted(&lab, "create n1", second);
        assert!(
            over(&ended) || ended.code == ABORTED,
            "{at}\n{}",
            ended.stderr
        );
        loads(&lab, &at);
        let last = lab.forge("create n1").run();
        assert!(over(&last), "{at}\n{}", last.stderr);
        whole(&lab, &at);
    });
}

#[test]
fn a_removal_that_was_cut_off_is_not_taken_for_a_machine() {
    let lab = made();
    let names = points(&made(), "rm -y n1");
    let at = 1 + names
        .iter()
        .position(|name| name == "before driver.destroy")
        .expect("a point");
    assert_eq!(aborted(&lab, "rm -y n1", at).code, ABORTED);
    for words in ["create n1", "start n1", "env n1"] {
        let ended = lab.forge(words).run();
        assert_eq!(ended.code, 1, "{words}");
        assert_eq!(ended.stdout, "");
        assert!(
            ended
                .stderr
                .contains("the removal of machine `n1` has begun and did not end"),
            "{words}: {}",
            ended.stderr
        );
    }
    lab.forge("rm -y n1").ok();
    nothing(&lab, "after all");
}
