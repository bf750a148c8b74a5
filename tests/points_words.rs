//! Points of docker-machine's users that are a matter of words and exit codes, each by its number in tests/README.md.

mod common;

use std::fs;

use common::points::{ABORTED, aborted, each, points};
use common::{Lab, files};

const PROGRAMS: [&str; 2] = ["forge", "docker-machine"];

fn made() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab
}

#[test]
fn point_17_an_address_stays_through_stop_and_start() {
    let lab = Lab::new();
    lab.forge("create n1 n2").ok();
    for program in PROGRAMS {
        let ip = || lab.forge("ip n1 n2").called(program).ok().stdout;
        let url = || lab.forge("url n1").called(program).ok().stdout;
        let before = (ip(), url());
        lab.forge("stop n1 n2").ok();
        // In the other order, so that the first one to come would get the first address.
        lab.forge("start n2").ok();
        lab.forge("start n1").ok();
        assert_eq!((ip(), url()), before);
        lab.forge("kill n1").ok();
        lab.forge("create n3").ok();
        lab.forge("start n1").ok();
        assert_eq!((ip(), url()), before, "another machine was made meanwhile");
        lab.forge("rm -y n3").ok();
    }
}

#[test]
fn point_20_eval_of_an_env_that_fails_sets_nothing_and_fails() {
    let lab = made();
    lab.forge("create n2").ok();
    lab.forge("stop n2").ok();
    for program in PROGRAMS {
        for line in [
            "env nope",
            "env",
            "env n2",
            "env --no-such-flag n1",
            "env a b",
            "env -u n1",
        ] {
            let ended = lab.forge(line).called(program).run();
            assert_ne!(ended.code, 0, "{program} {line}");
            assert_eq!(ended.stdout, "", "{program} {line}");
            assert_ne!(ended.stderr, "", "{program} {line}");
            // As scripts do it, and as careful ones do it.
            let script = format!(
                "eval \"$({program} {line})\"; echo \"host=$DOCKER_HOST\"; lines=$({program} {line}) && echo ok"
            );
            let ended = lab.bash(&script).run();
            assert_ne!(ended.code, 0, "{script}");
            assert_eq!(ended.stdout, "host=\n", "{script}");
        }
        let host = format!("host=tcp://{}:2376\n", lab.address("n1"));
        lab.bash(&format!(
            "eval \"$({program} env n1)\"; echo \"host=$DOCKER_HOST\""
        ))
        .says(0, &host, "");
        lab.bash(&format!(
            "eval $({program} env n1) && echo \"host=$DOCKER_HOST\""
        ))
        .says(0, &host, "");
    }
}

#[test]
fn point_21_an_unknown_flag_is_an_error() {
    let lab = made();
    for program in PROGRAMS {
        for words in [
            "--no-such-flag ls",
            "ls --no-such-flag",
            "create --no-such-flag n2",
            "rm -y --no-such-flag n1",
            "frob",
        ] {
            let ended = lab.forge(words).called(program).run();
            assert_ne!(ended.code, 0, "{program} {words}");
            assert_eq!(ended.stdout, "", "{program} {words}");
        }
    }
    lab.forge("ls -q").says(0, "n1\n", "");
}

#[test]
fn point_21_the_end_of_input_removes_nothing() {
    let lab = made();
    let ended = lab.forge("rm n1").run();
    assert_ne!(ended.code, 0);
    lab.forge("ls -q").says(0, "n1\n", "");
    lab.forge("rm n1").called("docker-machine").ok();
    lab.forge("ls -q").says(0, "n1\n", "");
    // On a terminal, too, whose end of input is a key.
    let typed = lab.folder().join("typed");
    fs::write(&typed, [4]).expect("written");
    for (program, fails) in [("forge", true), ("docker-machine", false)] {
        let script = format!("script -qec '{program} rm n1' /dev/null <typed");
        let ended = lab.bash(&script).run();
        assert_eq!(ended.code != 0, fails, "{}", ended.stdout);
        assert!(ended.stdout.contains("n1"), "it asked: {}", ended.stdout);
        lab.forge("ls -q").says(0, "n1\n", "");
    }
}

#[test]
fn point_21_a_filter_of_labels_without_a_value_is_an_error_and_no_crash() {
    let lab = made();
    for program in PROGRAMS {
        for filter in ["label=x", "label=", "label", "=", "name=["] {
            let ended = lab.words(&["ls", "--filter", filter]).called(program).run();
            assert_ne!(ended.code, 0, "{program} {filter}");
            assert_eq!(ended.stdout, "", "{program} {filter}");
            assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
            assert!(ended.code < 128, "{program} {filter}: {}", ended.code);
        }
    }
}

#[test]
fn point_21_a_save_that_is_cut_off_leaves_a_whole_record() {
    let saves = |words: &str, lab: &Lab| -> Vec<usize> {
        let names = points(lab, words);
        let of_record =
            |name: &&String| name.contains("machine.json") || name.contains("config.json");
        let at = names.iter().enumerate().filter(|(_, name)| of_record(name));
        at.map(|(at, _)| at + 1).collect()
    };
    let at = saves("create n1", &Lab::new());
    assert!(at.len() > 8, "{} points", at.len());
    each(at.len(), |number| {
        let lab = Lab::new();
        assert_eq!(aborted(&lab, "create n1", at[number - 1]).code, ABORTED);
        for (path, bytes) in files(&lab.home.join("machines")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // What was still being written lies under names that nobody reads.
            if name.ends_with(".json") && !name.starts_with('.') {
                serde_json::from_slice::<serde_json::Value>(&bytes)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
        // What the provider has, a record tells of.
        let machines = lab.provider.vms().expect("the provider");
        let listed = lab.forge("ls -q").ok().stdout;
        assert!(machines.is_empty() || listed == "n1\n", "{listed:?}");
    });
}
