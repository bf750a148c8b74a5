//! A kill at any moment on the way to a cluster, or on its way out, leaves a store that loads, and the same
//! command finishes the job: one swarm, no second machine, nothing left.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::points::{ABORTED, aborted, counted, each, points};
use common::{Lab, until};
use forge_driver::fake::Knob;
use serde_json::Value;

const UP: &str = "cluster up --managers 1 --workers 2 --zones 2 --json";
const DOWN: &str = "cluster down -y";
const MACHINES: [&str; 3] = ["default-m1", "default-w1", "default-w2"];

/// The folders of the machines' files.
fn roots(lab: &Lab) -> Vec<PathBuf> {
    let vms = lab.provider.vms().expect("the provider");
    vms.iter()
        .map(|vm| lab.provider.folder(vm.claim).join("root"))
        .collect()
}

/// Every command that looks can look; what it finds may be anything but damaged.
fn loads(lab: &Lab, at: &str) {
    lab.forge("ls").ok();
    lab.forge("cluster ls").ok();
    for name in ["cluster status", "cluster status --json"] {
        let status = lab.forge(name).run();
        assert!(status.code <= 1, "{at}: {}", status.stderr);
        assert!(
            !status.stderr.contains("damaged"),
            "{at}: {}",
            status.stderr
        );
    }
    let listed = lab.forge("ls -q").ok().stdout;
    for vm in lab.provider.vms().expect("the provider") {
        assert!(
            listed.lines().any(|name| name == vm.name),
            "{at}: `{}` is not listed",
            vm.name
        );
    }
}

/// One swarm of three, founded once, of machines that were made once; nothing is left of the probe.
fn whole(lab: &Lab, at: &str) {
    assert_eq!(lab.provider.creates().len(), 3, "{at}: machines were made");
    let founded: usize = roots(lab)
        .iter()
        .filter_map(|root| fs::read_to_string(root.join("etc/docker/founded")).ok())
        .map(|text| text.lines().count())
        .sum();
    assert_eq!(founded, 1, "{at}: swarms were founded");
    let status = lab.forge("cluster status --json").ok().json();
    let nodes = status["nodes"].as_array().expect("nodes");
    let zones: Vec<[&Value; 3]> = nodes
        .iter()
        .map(|node| [&node["name"], &node["zone"], &node["health"]])
        .collect();
    assert_eq!(zones.len(), 3, "{at}: {status}");
    assert!(
        nodes.iter().all(|node| node["health"] == "ready"),
        "{at}: {status}"
    );
    let set = roots(lab)
        .iter()
        .filter(|root| root.join("etc/docker/node.json").exists())
        .count();
    assert_eq!(set, 3, "{at}: every node has its zone");
    let left: Vec<PathBuf> = roots(lab)
        .iter()
        .map(|root| root.join("etc/docker/images"))
        .chain([lab.provider.root().join("services")])
        .filter(|folder| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()))
        .collect();
    assert!(left.is_empty(), "{at}: the probe left {left:?}");
    let again = lab.forge(UP).ok().summary();
    assert_eq!(again["changed"], 0, "{at}: {again}");
}

/// Nothing is left of the cluster, at the provider or in the store.
fn nothing(lab: &Lab, at: &str) {
    lab.provider_is_empty(at);
    // A kill right behind the removal of a record leaves an empty folder, which counts as none.
    for folder in ["machines", "clusters"] {
        let left: Vec<PathBuf> = common::files(&lab.home.join(folder)).into_keys().collect();
        assert!(left.is_empty(), "{at}: {left:?} left");
    }
    lab.forge("ls -q").says(0, "", "");
    lab.forge("cluster ls -q").says(0, "", "");
}

/// Which points are tried: all that concern the cluster, and every third of the machines', which are tried
/// one by one where a single machine is made; those between the files of one save only there. By name: machines
/// are worked on at the same time, so what lies at a number differs from run to run.
///
/// Machines that leave at the same time may each find themselves the last one of their network, so how often
/// its release is asked for differs, too: the first is passed by every run. A store that is new has a name of
/// this run's own until it is complete.
fn tried(names: &[String]) -> Vec<String> {
    counted(names)
        .into_iter()
        .filter(|name| !name.contains("release_shared") || name.starts_with("1 "))
        .filter(|name| !name.contains(" .new-store-") && !name.contains(" renaming "))
        .enumerate()
        .filter(|(index, name)| name.contains("cluster.json") || index % 3 == 0)
        .map(|(_, name)| name)
        .collect()
}

#[test]
fn cluster_up_goes_on_from_every_point() {
    let names = points(&Lab::new(), UP);
    assert!(
        names
            .iter()
            .filter(|name| name.contains("saving cluster.json"))
            .count()
            >= 8,
        "before and after: the intent, the founder, the id, the end: {names:?}"
    );
    let tried = tried(&names);
    each(tried.len(), |index| {
        let (lab, point) = (Lab::new(), &tried[index - 1]);
        let at = format!("`{UP}` aborted at {point}");
        assert_eq!(aborted(&lab, UP, point).code, ABORTED, "{at}");
        loads(&lab, &at);
        let again = lab.forge(UP).run();
        assert_eq!(again.code, 0, "{at}: not gone on with\n{}", again.stderr);
        whole(&lab, &at);
    });
}

#[test]
fn cluster_down_goes_on_from_every_point() {
    let up = || {
        let lab = Lab::new();
        lab.forge(UP).ok();
        lab
    };
    let names = points(&up(), DOWN);
    assert!(names.len() > 60, "{names:?}");
    let tried = tried(&names);
    each(tried.len(), |index| {
        let (lab, point) = (up(), &tried[index - 1]);
        let at = format!("`{DOWN}` aborted at {point}");
        assert_eq!(aborted(&lab, DOWN, point).code, ABORTED, "{at}");
        loads(&lab, &at);
        let gone = !lab.home.join("clusters/default/cluster.json").exists();
        let again = lab.forge(DOWN).run();
        assert_eq!(
            again.code,
            i32::from(gone),
            "{at}: not gone on with\n{}",
            again.stderr
        );
        nothing(&lab, &at);
    });
}

#[test]
fn a_removal_that_has_begun_is_not_turned_round() {
    let lab = Lab::new();
    lab.forge(UP).ok();
    assert_eq!(aborted(&lab, DOWN, "1 before driver.destroy").code, ABORTED);
    let up = lab.forge(UP).run();
    assert_eq!(up.code, 1, "{}", up.stdout);
    assert!(up.stderr.contains("removal"), "{}", up.stderr);
    lab.forge(DOWN).ok();
    nothing(&lab, "after all");
}

#[test]
fn ctrl_c_on_the_way_to_a_cluster_is_gone_on_with() {
    let stages: [(Knob, &str); 4] = [
        (Knob::HoldCreate, "starting the virtual machine"),
        (Knob::SilentSsh, "no SSH server answers yet"),
        (Knob::HiddenHostKey, "no host key was shown"),
        (Knob::SilentEngine, "does not accept connections"),
    ];
    for (knob, reached) in stages {
        let lab = Lab::new();
        lab.turn(knob, true);
        let running = lab.forge(UP).start();
        until(reached, || lab.logged().contains(reached));
        running.interrupt();
        // What the provider does is let finish.
        std::thread::sleep(Duration::from_millis(200));
        lab.turn(knob, false);
        let ended = running.wait(&lab).code(130);
        assert!(
            ended
                .stderr
                .contains("interrupted; everything done so far is saved"),
            "{knob:?}: {}",
            ended.stderr
        );
        let at = format!("interrupted at {knob:?}");
        loads(&lab, &at);
        lab.forge(UP).ok();
        whole(&lab, &at);
    }
}

#[test]
fn a_port_is_published_on_all_machines_or_on_none() {
    let lab = Lab::new();
    lab.forge(UP).ok();
    lab.forge("publish default-w2 18081:19000").ok();
    let published = || MACHINES.map(|name| lab.record(name)["published"].clone());
    let before = published();
    let taken = lab.forge("cluster publish default 18080 18081").run();
    assert_eq!(taken.code, 1, "{}", taken.stdout);
    assert!(
        taken.stderr.contains("is taken by machine `default-w2`"),
        "{}",
        taken.stderr
    );
    assert_eq!(published(), before, "nothing was changed");
    lab.forge("cluster publish default 18080").ok();
    let shown = lab.forge("cluster publish default").ok().stdout;
    for name in MACHINES {
        assert!(shown.contains(&format!("{name} 18080 -> ")), "{shown}");
    }
    lab.forge("cluster publish default --remove 18080").ok();
    assert_eq!(published(), before);
}

#[test]
fn a_cluster_has_the_machines_of_one_driver() {
    let lab = Lab::new();
    lab.forge(UP).ok();
    for words in [
        "cluster up --driver qemu --managers 3",
        "cluster up --driver libvirt --dry-run",
    ] {
        let refused = lab.forge(words).run();
        assert_eq!(refused.code, 1, "{}", refused.stdout);
        assert!(
            refused
                .stderr
                .contains("is one of the driver `fake`, and `"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(lab.provider.creates().len(), 3);
    // An empty variable names none: then it is the cluster's own.
    lab.forge("cluster up --dry-run")
        .env("FORGE_DRIVER", "")
        .ok();
}

#[test]
fn a_cluster_is_looked_at_while_its_provider_does_not_answer() {
    let lab = Lab::new();
    lab.forge(UP).ok();
    lab.turn(Knob::Down, true);
    let status = lab.forge("cluster status").run();
    assert_eq!(status.code, 1, "{}", status.stderr);
    for text in [
        "`default-m1`: the provider is down",
        "1 of 1 managers take part",
    ] {
        assert!(
            status.stdout.contains(text) || status.stderr.contains(text),
            "{text}\n{}\n{}",
            status.stdout,
            status.stderr
        );
    }
    let up = lab.forge("cluster up --dry-run").run();
    assert_eq!(up.code, 1, "{}", up.stdout);
    assert!(up.stderr.contains("the provider is down"), "{}", up.stderr);
    lab.turn(Knob::Down, false);
    whole(&lab, "after the provider was down");
}

#[test]
fn two_at_the_same_time_make_one_swarm() {
    let lab = Lab::new();
    let both = [lab.forge(UP).start(), lab.forge(UP).start()];
    let ended = both.map(|running| running.wait(&lab));
    for ended in &ended {
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
    let ids: Vec<Value> = ended
        .iter()
        .map(|ended| ended.summary()["cluster_id"].clone())
        .collect();
    assert_eq!(ids[0], ids[1]);
    whole(&lab, "two at once");
    for name in MACHINES {
        assert_eq!(lab.record(name)["stage"], "ready");
    }
}
