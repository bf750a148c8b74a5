//! Certificates are made anew before they end, in time and after it, one after another, and through kills.

mod common;

use std::fs;

use common::certificates::{amiss, answering, read};
use common::points::{ABORTED, aborted, each, points};
use common::sshd::put;
use common::{Ended, FORGE, Lab, files};
use forge_driver::fake::Knob;

/// A store with these machines, ready.
fn made(names: &[&str]) -> Lab {
    let lab = Lab::new();
    lab.forge(&format!("create {}", names.join(" "))).ok();
    lab
}

/// A command, so much later. Waits are not faked: they would pass at once.
fn later(lab: &Lab, when: &str, words: &str) -> Ended {
    let mut all = vec!["-f", when, FORGE];
    all.extend(words.split_whitespace());
    lab.forge(words)
        .under("faketime", &all, &[])
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .run()
}

/// What the engine of a machine shows.
fn served(lab: &Lab, name: &str) -> String {
    let claim = lab.record(name)["claim"].as_str().expect("a claim").parse();
    let folder = lab.provider.folder(claim.expect("a claim"));
    fs::read_to_string(folder.join("root/etc/docker/tls/server.pem")).expect("a certificate")
}

/// All certificates are of one CA, each machine has its own, its engine answers, and nothing is left of what was on its
/// way.
#[track_caller]
fn sound(lab: &Lab, names: &[&str], at: &str) {
    assert_eq!(amiss(lab, names), Vec::<String>::new(), "{at}");
    assert_eq!(answering(lab), names, "{at}");
    for name in names {
        let own = read(lab, &format!("machines/{name}/server.pem"));
        assert_eq!(served(lab, name).trim(), own.trim(), "{at}: {name}");
        assert_eq!(
            lab.record(name)["renewing"],
            serde_json::Value::Null,
            "{at}"
        );
    }
    let left: Vec<_> = files(&lab.home)
        .into_keys()
        .filter(|path| {
            let text = path.to_string_lossy();
            ["/next", "/.next", "/.over"]
                .iter()
                .any(|begun| text.contains(begun))
        })
        .collect();
    assert!(left.is_empty(), "{at}: {left:?} left");
}

#[test]
fn point_01_many_processes_make_one_ca() {
    assert_eq!(common::stores::inconsistent(10), Vec::<String>::new());
}

#[test]
fn point_04_after_four_years_all_is_warned_of_and_renewed_by_one_command() {
    let lab = made(&["n1", "n2"]);
    // In time: three years less some days.
    let soon = later(&lab, "+1085d", "env n1").code(0);
    assert!(
        soon.stderr.contains(
            "warning: machine `n1`: its certificate ends in 9 days; `forge regenerate-certs n1` makes it anew"
        ),
        "{}",
        soon.stderr
    );
    let listed = later(&lab, "+1085d", "ls").code(0);
    assert_eq!(
        listed.stdout.matches("ends in 9 days").count(),
        2,
        "{}",
        listed.stdout
    );
    // Too late: nothing is printed that would lead nowhere.
    let late = later(&lab, "+4y", "env n1").code(1);
    assert_eq!(late.stdout, "");
    assert!(
        late.stderr.contains("lets nobody in") && late.stderr.contains("forge regenerate-certs n1"),
        "{}",
        late.stderr
    );
    let listed = later(&lab, "+4y", "ls").code(0);
    assert_eq!(
        listed.stdout.matches("days ago").count(),
        2,
        "{}",
        listed.stdout
    );
    later(&lab, "+4y", "regenerate-certs --all -f").code(0);
    for name in ["n1", "n2"] {
        let env = later(&lab, "+4y", &format!("env {name}")).code(0);
        assert_eq!(env.stderr, "");
    }
    let listed = later(&lab, "+4y", "ls --json").code(0).json();
    for machine in listed.as_array().expect("a list") {
        assert_eq!(
            (&machine["error"], &machine["engine"]),
            (&"".into(), &"0.0.0".into())
        );
    }
    assert_eq!(amiss(&lab, &["n1", "n2"]), Vec::<String>::new());
}

#[test]
fn a_ca_that_ends_is_renewed_with_all_that_it_signed_by_the_same_command() {
    let lab = made(&["n1", "n2"]);
    let ca = read(&lab, "certs/ca.pem");
    // Its last year: told of, and it goes on.
    later(&lab, "+3400d", "regenerate-certs -f n1 n2").code(0);
    assert_eq!(read(&lab, "certs/ca.pem"), ca);
    assert_eq!(later(&lab, "+3400d", "env n1").code(0).stderr, "");
    let told = later(&lab, "+3600d", "env n1").code(0);
    assert!(
        told.stderr.contains("the CA of its certificate ends in")
            && told.stderr.contains("`forge regenerate-certs --all`"),
        "{}",
        told.stderr
    );
    // Ended.
    let ended = later(&lab, "+11y", "env n1").code(1);
    assert_eq!(ended.stdout, "");
    later(&lab, "+11y", "regenerate-certs --all -f").code(0);
    assert_ne!(read(&lab, "certs/ca.pem"), ca);
    let env = later(&lab, "+11y", "env n1").code(0);
    assert_eq!(env.stderr, "");
    assert_eq!(amiss(&lab, &["n1", "n2"]), Vec::<String>::new());
    assert!(!lab.home.join("certs/next").exists());
}

#[test]
fn a_client_pair_that_ends_is_replaced_without_a_word_to_the_machine() {
    let lab = made(&["n1"]);
    later(&lab, "+2y", "regenerate-certs -f n1").code(0);
    let (client, server) = (read(&lab, "machines/n1/cert.pem"), served(&lab, "n1"));
    let calls = |lab: &Lab| {
        let calls = lab.provider.calls().into_iter();
        calls.filter(|call| !call.starts_with("observe")).count()
    };
    let before = calls(&lab);
    let env = later(&lab, "+1090d", "env n1").code(0);
    assert_eq!(env.stderr, "");
    assert_ne!(read(&lab, "machines/n1/cert.pem"), client);
    assert_eq!(served(&lab, "n1"), server);
    assert_eq!(calls(&lab), before);
    assert_eq!(amiss(&lab, &["n1"]), Vec::<String>::new());
}

#[test]
fn one_machine_gets_a_new_certificate_and_the_others_keep_theirs() {
    let lab = made(&["n1", "n2"]);
    let before = ["n1", "n2"].map(|name| served(&lab, name));
    let client = read(&lab, "certs/cert.pem");
    lab.forge("regenerate-certs -f n1").ok();
    assert_ne!(served(&lab, "n1"), before[0]);
    assert_eq!(served(&lab, "n2"), before[1]);
    assert_eq!(read(&lab, "certs/cert.pem"), client);
    sound(&lab, &["n1", "n2"], "one");
    lab.forge("regenerate-certs -f --client-certs n1 n2").ok();
    assert_ne!(served(&lab, "n2"), before[1]);
    assert_ne!(read(&lab, "certs/cert.pem"), client);
    sound(&lab, &["n1", "n2"], "clients");
}

#[test]
fn a_machine_that_is_off_is_listed_and_the_rest_is_done() {
    let lab = made(&["n1", "n2", "n3"]);
    let ca = read(&lab, "certs/ca.pem");
    lab.forge("stop n2").ok();
    let ended = lab.forge("regenerate-certs --all --ca -f").run().code(1);
    assert!(
        ended.stderr.contains(
            "warning: the earlier CA stays until these machines have certificates of the new one: n2; \
             `forge regenerate-certs --all --ca` goes on\n"
        ) && ended.stderr.contains(
            "error: failed to make the certificate of `n2` anew\n\
             caused by: machine `n2` is not running: it is Stopped\n\
             hint: `forge start n2` starts it\n"
        ),
        "{}",
        ended.stderr
    );
    for name in ["n1", "n3"] {
        assert_ne!(read(&lab, &format!("machines/{name}/ca.pem")), ca, "{name}");
    }
    assert_eq!(answering(&lab), ["n1", "n3"]);
    // It is talked with by its own files, whatever the others have.
    lab.forge("start n2").ok();
    assert_eq!(read(&lab, "machines/n2/ca.pem"), ca);
    assert_eq!(answering(&lab), ["n1", "n2", "n3"]);
    // What is made meanwhile is of the new CA; the last one that is renewed ends it.
    lab.forge("create n4").ok();
    let moved = [served(&lab, "n1"), served(&lab, "n3")];
    lab.forge("regenerate-certs --all --ca -f").ok();
    assert_eq!(
        [served(&lab, "n1"), served(&lab, "n3")],
        moved,
        "done is done"
    );
    sound(&lab, &["n1", "n2", "n3", "n4"], "in the end");
}

#[test]
fn a_machine_that_is_removed_holds_no_ca_up() {
    let lab = made(&["n1", "n2"]);
    lab.forge("kill n2").ok();
    lab.forge("regenerate-certs --all --ca -f").run().code(1);
    lab.forge("rm -y n2").ok();
    lab.forge("create n3").ok();
    sound(&lab, &["n1", "n3"], "after the removal");
}

#[test]
fn an_engine_without_a_certificate_of_the_store_is_nobodys_to_renew() {
    let lab = made(&["n1", "n2"]);
    let mut record = lab.record("n1");
    record["tls"] = serde_json::Value::Null;
    put(&lab, "n1", &record);
    let before = (served(&lab, "n1"), read(&lab, "machines/n1/ca.pem"));
    let refused = lab.forge("regenerate-certs -f n1").run().code(2);
    assert!(
        refused
            .stderr
            .contains("the engine of machine `n1` has no certificate of this store"),
        "{}",
        refused.stderr
    );
    lab.forge("regenerate-certs --all --ca -f").ok();
    assert_eq!(amiss(&lab, &["n2"]), Vec::<String>::new());
    assert!(!lab.home.join("certs/next").exists());
    assert_eq!(
        (served(&lab, "n1"), read(&lab, "machines/n1/ca.pem")),
        before
    );
}

#[test]
fn the_question_is_asked_in_the_words_of_each_name() {
    let lab = made(&["default"]);
    let before = served(&lab, "default");
    let ended = lab.forge("regenerate-certs").run().code(2);
    assert_eq!(ended.stdout, "");
    let asked = "Regenerate TLS machine certs?  Warning: this is irreversible. (y/n): ";
    let by_link = |words: &str| lab.forge(words).called("docker-machine");
    by_link("regenerate-certs").given("n\n").says(0, asked, "");
    let ended = by_link("regenerate-certs").given("").run().code(1);
    assert_eq!(ended.stdout, asked);
    assert_eq!(served(&lab, "default"), before);
    let ended = by_link("regenerate-certs --client-certs")
        .given("y\n")
        .run()
        .code(0);
    assert_eq!(
        ended.stdout,
        format!("{asked}Regenerating TLS certificates\n")
    );
    assert_ne!(served(&lab, "default"), before);
    let ended = by_link("regenerate-certs -force=true default")
        .run()
        .code(0);
    assert_eq!(ended.stdout, "Regenerating TLS certificates\n");
    lab.forge("regenerate-certs -f --ca default").run().code(2);
    lab.forge("regenerate-certs -f --all default").run().code(2);
}

#[test]
fn an_engine_that_does_not_come_back_keeps_what_clients_use() {
    let lab = made(&["n1"]);
    let own = read(&lab, "machines/n1/server.pem");
    lab.turn(Knob::SilentEngine, true);
    lab.forge("regenerate-certs -f n1 --timeout 2")
        .run()
        .code(1);
    assert_eq!(read(&lab, "machines/n1/server.pem"), own);
    lab.turn(Knob::SilentEngine, false);
    let told = lab.forge("env n1").ok();
    assert!(
        told.stderr.contains("is being made anew"),
        "{}",
        told.stderr
    );
    // A start finds out which of the two the machine has.
    lab.forge("start n1").ok();
    assert_ne!(read(&lab, "machines/n1/server.pem"), own);
    sound(&lab, &["n1"], "once it answers");
}

/// Aborts the command at every so many of its points, and has it go on.
fn through_kills(words: &str, names: &[&str], step: usize, least: usize) {
    let passed = points(&made(names), words);
    assert!(passed.len() >= least, "{} points", passed.len());
    let numbers: Vec<usize> = (1..=passed.len()).step_by(step).collect();
    each(numbers.len(), |index| {
        let (lab, number) = (made(names), numbers[index - 1]);
        let at = format!("`{words}` aborted {}", passed[number - 1]);
        let ended = aborted(&lab, words, number);
        assert_eq!(ended.code, ABORTED, "{at}: it was not\n{}", ended.stderr);
        lab.forge("ls").ok();
        let again = lab.forge(words).run();
        assert_eq!(again.code, 0, "{at}: not gone on with\n{}", again.stderr);
        sound(&lab, names, &at);
    });
}

#[test]
fn a_renewal_goes_on_from_every_point() {
    through_kills("regenerate-certs -f n1", &["n1"], 1, 12);
}

#[test]
fn another_ca_takes_over_through_kills_at_every_point() {
    through_kills("regenerate-certs --all --ca -f", &["n1"], 1, 30);
}

#[test]
fn another_ca_takes_over_though_several_machines_are_cut_off() {
    through_kills("regenerate-certs --all --ca -f", &["n1", "n2"], 7, 40);
}

/// A cluster of three managers and a worker, with a service of four tasks.
fn cluster() -> Lab {
    let lab = Lab::new();
    lab.forge("cluster up --managers 3 --workers 1").ok();
    fs::write(lab.provider.root().join("replicas"), "4").expect("written");
    lab
}

const NODES: [&str; 4] = ["default-m1", "default-m2", "default-m3", "default-w1"];

/// What each node is used for, as its managers list it.
fn uses(lab: &Lab) -> Vec<String> {
    let status = lab.forge("cluster status --json").ok().json();
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    nodes
        .map(|node| node["availability"].as_str().expect("a use").to_owned())
        .collect()
}

#[test]
fn the_plan_says_what_moves_and_touches_nothing() {
    let lab = cluster();
    lab.forge("create x1").ok();
    lab.forge("create x2").ok();
    lab.forge("stop x2").ok();
    let before = lab.files();
    let plan = lab.forge("regenerate-certs --all --dry-run").ok();
    let moves =
        "drained, 1 task moves to other nodes; its engine restarts; then it is active again";
    assert_eq!(
        plan.stdout,
        format!(
            "x1: its engine restarts; its containers keep running\n\
             x2: keeps its certificate: machine `x2` is not running: it is Stopped\n\
             cluster default, one machine after another:\n  \
             default-w1 (worker): {moves}\n  \
             default-m2 (manager): {moves}\n  \
             default-m3 (manager): {moves}\n  \
             default-m1 (manager): {moves}\n"
        )
    );
    assert_eq!(lab.files(), before);
}

#[test]
fn the_plan_says_what_is_made_anew_besides_and_what_cannot_be() {
    let lab = Lab::new();
    lab.forge("create x1").ok();
    lab.forge("create x2").ok();
    fs::write(lab.home.join("machines/x2/machine.json"), "{").expect("written");
    let before = lab.files();
    let words = "regenerate-certs --all --ca --client-certs --dry-run";
    let plan = lab.forge(words).run().code(1);
    assert_eq!(
        plan.stdout,
        "a new CA is made; the earlier one counts until every machine has a certificate of the new one\n\
         the pair that clients show is made anew; machines accept the earlier one on\n\
         x1: its engine restarts; its containers keep running\n"
    );
    assert!(
        plan.stderr
            .starts_with("error: `HOME/machines/x2/machine.json` is damaged\n"),
        "{}",
        plan.stderr
    );
    let ended = lab.forge(&format!("{words} --json")).run().code(1);
    let first = ended.stdout.lines().next().expect("a line");
    let json: serde_json::Value = serde_json::from_str(first).expect("JSON");
    assert_eq!(
        (&json["new_ca"], &json["new_client_pair"]),
        (&true.into(), &true.into())
    );
    assert_eq!(lab.files(), before);
}

#[test]
fn a_machine_that_is_not_there_ends_it_before_anything_is_made() {
    let lab = Lab::new();
    lab.forge("create x1").ok();
    let certificates = || {
        let all = lab.files().into_iter();
        all.filter(|(path, _)| path.extension().is_some_and(|end| end == "pem"))
            .collect::<Vec<_>>()
    };
    let before = certificates();
    let ended = lab
        .forge("regenerate-certs -f --client-certs x1 x9")
        .run()
        .code(1);
    assert!(
        ended
            .stderr
            .starts_with("error: machine `x9` does not exist\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(certificates(), before);
}

/// The machines of the events whose `key` says so, in their order.
fn machines(ended: &Ended, key: &str, says: impl Fn(&str) -> bool) -> Vec<String> {
    let events = ended.stdout.lines();
    events
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter(|event| event[key].as_str().is_some_and(&says))
        .map(|event| event["machine"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn nodes_of_a_swarm_are_renewed_one_after_another() {
    let lab = cluster();
    let before = NODES.map(|name| served(&lab, name));
    let ca = read(&lab, "certs/ca.pem");
    let renewed = lab.forge("regenerate-certs --all --ca -f --json").ok();
    assert_eq!(renewed.summary()["changed"], 4, "{}", renewed.stdout);
    let turns = ["default-w1", "default-m2", "default-m3", "default-m1"];
    let ready = |said: &str| said == "ready in the swarm";
    assert_eq!(machines(&renewed, "outcome", ready), turns);
    // A task that takes another's place waits for its end, and is not one that is wished to run until then.
    let mut waited = machines(&renewed, "step", |said| said.starts_with("draining: "));
    waited.dedup();
    assert_eq!(waited, turns);
    for (name, before) in NODES.iter().zip(before) {
        assert_ne!(served(&lab, name), before, "{name}");
    }
    assert_ne!(read(&lab, "certs/ca.pem"), ca);
    sound(&lab, &NODES, "the cluster");
    assert_eq!(uses(&lab), ["active"; 4]);
    // One that is lost is one too many.
    lab.forge("kill default-m2").ok();
    let refused = lab.forge("regenerate-certs -f default-m3").run().code(1);
    assert!(
        refused
            .stderr
            .contains("2 of 3 managers take part, 1 without it, and 2 are needed"),
        "{}",
        refused.stderr
    );
    lab.forge("regenerate-certs -f default-w1").ok();
}

#[test]
fn a_service_whose_tasks_are_all_on_one_node_answers_while_they_move() {
    let lab = Lab::new();
    lab.forge("cluster up --managers 1 --workers 1").ok();
    let replicas = |count: &str| {
        fs::write(lab.provider.root().join("replicas"), count).expect("written");
    };
    let plan = || lab.forge("regenerate-certs --all --dry-run").ok().stdout;
    let silent = lab.provider.root().join("silent");
    replicas("2");
    // The drain of one of two nodes leaves both tasks on the other.
    lab.forge("regenerate-certs --all -f").ok();
    assert!(!silent.exists());
    assert_eq!(
        plan(),
        "cluster default, one machine after another:\n  \
         default-w1 (worker): drained, 2 tasks move to other nodes; its engine restarts; then it is active again\n  \
         default-m1 (manager): its engine restarts; meanwhile the managers decide nothing\n"
    );
    lab.forge("regenerate-certs --all -f").ok();
    assert!(!silent.exists());
    assert_eq!(uses(&lab), ["active"; 2]);
    // Of one alone no other answers.
    replicas("1");
    assert!(
        plan().contains(
            "drained, 1 task moves to other nodes; 1 service is silent until it runs there; its engine restarts"
        ),
        "{}",
        plan()
    );
    lab.forge("regenerate-certs --all -f").ok();
    assert!(silent.exists(), "the test would notice");
}

#[test]
fn a_node_whose_renewal_fails_is_put_back_at_once() {
    let lab = cluster();
    lab.turn(Knob::SilentEngine, true);
    let refused = lab
        .forge("regenerate-certs -f default-w1 --timeout 4")
        .run()
        .code(1);
    assert!(
        refused.stderr.contains("the certificate of `default-w1`"),
        "{}",
        refused.stderr
    );
    lab.turn(Knob::SilentEngine, false);
    assert_eq!(uses(&lab), ["active"; 4]);
}

#[test]
fn a_node_that_was_left_drained_is_put_back_by_the_same_command() {
    let words = "regenerate-certs -f default-m2 default-w1";
    let passed = points(&cluster(), words);
    let saves: Vec<usize> = (1..=passed.len())
        .filter(|number| passed[number - 1].contains("cluster.json"))
        .collect();
    assert_eq!(
        saves.len(),
        8,
        "before and after the drain of each: {passed:?}"
    );
    each(saves.len(), |index| {
        let (lab, number) = (cluster(), saves[index - 1]);
        let at = format!("`{words}` aborted {}", passed[number - 1]);
        assert_eq!(aborted(&lab, words, number).code, ABORTED, "{at}");
        // Any change of the cluster puts it back, too.
        if index % 2 == 0 {
            lab.forge("cluster up --managers 3 --workers 1").ok();
            assert_eq!(uses(&lab), ["active"; 4], "{at}");
        }
        lab.forge(words).ok();
        assert_eq!(uses(&lab), ["active"; 4], "{at}");
        sound(&lab, &NODES, &at);
    });
}

#[test]
fn engines_of_a_swarm_are_upgraded_one_after_another_and_those_that_are_new_have_no_turn() {
    let lab = cluster();
    let upgrade = || lab.forge(&format!("upgrade --json {}", NODES.join(" ")));
    let same = upgrade().ok();
    assert_eq!(same.summary()["changed"], 0);
    assert!(!same.stdout.contains("draining"), "{}", same.stdout);
    fs::write(lab.provider.root().join("newest"), "1.2.3\n").expect("written");
    let upgraded = upgrade().ok();
    assert_eq!(upgraded.summary()["changed"], 4, "{}", upgraded.stdout);
    let turns = ["default-w1", "default-m2", "default-m3", "default-m1"];
    let ready = |said: &str| said == "ready in the swarm";
    assert_eq!(
        machines(&upgraded, "step", |said| said == "draining"),
        turns
    );
    assert_eq!(machines(&upgraded, "outcome", ready), turns);
    assert_eq!(uses(&lab), ["active"; 4]);
    // What fails leaves its node as it was used, and the others alone.
    fs::write(lab.provider.root().join("newest"), "1.2.4\n").expect("written");
    lab.turn(Knob::SilentEngine, true);
    let ended = lab
        .forge("upgrade default-w1 default-m2 --timeout 4")
        .run()
        .code(1);
    assert!(
        ended.stderr.contains("failed to upgrade machine `default-w1`")
            && ended
                .stderr
                .contains("machine `default-m2` keeps its engine: nothing is touched after `default-w1` failed"),
        "{}",
        ended.stderr
    );
    lab.turn(Knob::SilentEngine, false);
    assert_eq!(uses(&lab), ["active"; 4]);
}
