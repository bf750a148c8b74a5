//! Points 2 and 8 of docker-machine's users: a creation that fails leaves nothing, or what it left is listed with the
//! command that goes on; many machines are made at once, and a second run changes nothing. Kills at every point are in
//! `resume.rs` and `resume_cluster.rs`.

mod common;

use std::collections::BTreeSet;

use common::points::{ABORTED, aborted, each, points};
use common::sshd::put;
use common::{Lab, until};
use forge_driver::fake::Knob;
use serde_json::Value;

/// What the list says of `n1`; `None` when it is not listed.
fn listed(lab: &Lab) -> Option<Value> {
    let all = lab.forge("ls --json").ok().json();
    let mut all = all.as_array().expect("a list").clone();
    assert!(all.len() < 2, "{all:?}");
    all.pop()
}

/// After a fault nothing is left, or `n1` is listed with the command that goes on. Whether it is.
fn accounted_for(lab: &Lab, at: &str) -> bool {
    match listed(lab) {
        Some(row) => {
            let left = row["error"].as_str().expect("a text");
            let over = row["stage"] == "ready" && left.is_empty();
            assert!(
                over || left.ends_with("`forge create --driver fake n1` goes on"),
                "{at}: {row}"
            );
            true
        }
        None => {
            lab.provider_is_empty(at);
            false
        }
    }
}

/// Nothing of a machine is anywhere: no machine, no network, no key, no address.
fn nothing(lab: &Lab, at: &str) {
    lab.provider_is_empty(at);
    let left: Vec<_> = common::files(&lab.home.join("machines"))
        .into_keys()
        .collect();
    assert!(left.is_empty(), "{at}: {left:?}");
}

/// The name serves again, and the machine works.
fn made_again(lab: &Lab, at: &str) {
    let again = lab.forge("create n1").run();
    let over = again.stderr.contains("machine `n1` already exists");
    assert!(over || again.code == 0, "{at}: {}", again.stderr);
    assert_eq!(lab.provider.vms().expect("the provider").len(), 1, "{at}");
    lab.forge("env n1").ok();
}

#[test]
fn point_02_a_creation_that_fails_at_a_stage_leaves_nothing_or_what_goes_on() {
    let faults = [
        (Knob::Down, None),
        (Knob::SilentSsh, Some("launched")),
        (Knob::HiddenHostKey, Some("launched")),
        (Knob::HangingCommands, Some("launched")),
        (Knob::SilentEngine, Some("reached")),
    ];
    // Each fault twice: the machine is removed, or gone on with.
    each(faults.len() * 2, |number| {
        let (knob, stage) = faults[(number - 1) / 2];
        let (lab, at) = (Lab::new(), format!("{knob:?}"));
        lab.turn(knob, true);
        let failed = lab.forge("create n1 --timeout 2").run();
        assert!([1, 3].contains(&failed.code), "{at}: {}", failed.stderr);
        lab.turn(knob, false);
        let left = accounted_for(&lab, &at);
        let row = listed(&lab).unwrap_or_default();
        assert_eq!(row["stage"].as_str(), stage, "{at}: {row}");
        if left && number % 2 == 0 {
            lab.forge("rm -y n1").ok();
        }
        if !left || number % 2 == 0 {
            nothing(&lab, &at);
        }
        made_again(&lab, &at);
    });
}

#[test]
fn point_02_a_creation_that_is_killed_is_listed_with_the_command_that_goes_on() {
    let names = points(&Lab::new(), "create n1");
    // A sample: `resume.rs` has all, and looks at other things.
    let sample: Vec<usize> = (1..names.len()).step_by(6).collect();
    each(sample.len(), |index| {
        let (lab, number) = (Lab::new(), sample[index - 1]);
        let at = format!("killed {}", names[number - 1]);
        assert_eq!(aborted(&lab, "create n1", number).code, ABORTED, "{at}");
        let left = accounted_for(&lab, &at);
        if index % 2 == 0 && lab.home.join("machines").exists() {
            lab.forge("rm -f n1").ok();
            nothing(&lab, &at);
        } else if left {
            assert_eq!(lab.forge("ls -q").ok().stdout, "n1\n", "{at}");
        }
        made_again(&lab, &at);
    });
}

#[test]
fn point_08_five_machines_are_made_at_the_same_time() {
    let lab = Lab::new();
    lab.turn(Knob::HoldCreate, true);
    let creating = lab.forge("create n1 n2 n3 n4 n5").start();
    // None of these requests has been answered yet.
    let asked = || -> BTreeSet<String> {
        let calls = lab.provider.calls().into_iter();
        calls.filter(|call| call.starts_with("create ")).collect()
    };
    until("five requests under way at once", || asked().len() == 5);
    assert!(lab.provider.vms().expect("the provider").is_empty());
    lab.turn(Knob::HoldCreate, false);
    creating.wait(&lab).code(0);
    let on = lab
        .provider
        .vms()
        .expect("the provider")
        .iter()
        .filter(|vm| vm.on)
        .count();
    assert_eq!(on, 5);
}

#[test]
fn point_08_a_second_run_of_what_was_declared_changes_nothing() {
    let lab = Lab::new();
    let words = "cluster up five --managers 3 --workers 2 --zones 3 --json";
    let first = lab.forge(words).ok().summary();
    assert!(
        first["changed"].as_u64().is_some_and(|changed| changed > 0),
        "{first}"
    );
    let (records, made) = (lab.files(), lab.provider.creates());
    assert_eq!(made.len(), 5);
    let second = lab.forge(words).ok().summary();
    assert_eq!(second["changed"], 0, "{second}");
    assert_eq!(lab.provider.creates(), made);
    let after = lab.files();
    let changed: Vec<_> = records
        .iter()
        .filter(|(path, bytes)| after.get(*path) != Some(bytes))
        .map(|(path, _)| path)
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "json" || kind == "pem")
        })
        .collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn what_goes_on_is_told_with_the_driver_that_began() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let mut record = lab.record("n1");
    record["stage"] = "claimed".into();
    put(&lab, "n1", &record);
    let goes_on = "`forge create --driver fake n1` goes on";
    let row = listed(&lab).expect("n1");
    assert_eq!(row["error"], format!("claimed: {goes_on}"));
    // Another driver's options and image are of no use to it.
    let ended = lab.forge("create --driver qemu n1").run().code(1);
    assert_eq!(
        ended.stderr,
        format!(
            "error: machine `n1` exists, of the driver `fake` and not `qemu`\nhint: {goes_on} with it; `forge rm n1` removes it\nlog: LOG\n"
        )
    );
}
