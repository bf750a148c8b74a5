//! What scripts that were written for docker-machine depend on, to the letter: the name by which the program is started,
//! its words and exit codes, the store it keeps machines in, and the stores that it leaves alone.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use common::{FORGE, Lab, Run, files};
use forge_driver::fake::Knob;

const NO_DEFAULT: &str = "Error: No machine name(s) specified and no \"default\" machine exists\n";
const BEFORE_REMOVAL: &str = "About to remove n1\nWARNING: This action will delete both local reference and remote instance.\n";

/// The command `docker-machine` with these words.
fn docker_machine<'a>(lab: &'a Lab, words: &str) -> Run<'a> {
    lab.forge(words).called("docker-machine")
}

fn no_machine(name: &str) -> String {
    format!(
        "Docker machine \"{name}\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\n"
    )
}

fn machines(lab: &Lab) -> String {
    lab.forge("ls -q").ok().stdout
}

#[test]
fn the_name_of_a_link_is_what_counts() {
    let lab = Lab::new();
    let link = lab.folder().join("docker-machine");
    symlink(FORGE, &link).expect("a link");
    let program = link.display().to_string();
    lab.forge("ip n1")
        .under(&program, &["ip", "n1"], &[])
        .says(1, "", &no_machine("n1"));
    lab.forge("-v").under(&program, &["-v"], &[]).says(
        0,
        &format!(
            "docker-machine version 0.16.2, build forge-{}\n",
            env!("CARGO_PKG_VERSION")
        ),
        "",
    );
    let created = lab
        .forge("create n1")
        .under(&program, &["create", "n1"], &[])
        .ok();
    assert!(
        created
            .stdout
            .ends_with(&format!("run: {program} env n1\n")),
        "{}",
        created.stdout
    );
}

#[test]
fn a_machine_is_created_and_ended_in_docker_machines_words() {
    let lab = Lab::new();
    docker_machine(&lab, "create n1").says(
        0,
        "Running pre-create checks...\nCreating machine...\nDocker is up and running!\nTo see how to connect your Docker Client to the Docker Engine running on this virtual machine, run: docker-machine env n1\n",
        "",
    );
    docker_machine(&lab, "create n1").says(1, "", "Docker machine \"n1\" already exists\n");
    docker_machine(&lab, "start n1").says(
        1,
        "Starting \"n1\"...\n",
        "Machine \"n1\" is already running.\n",
    );
    docker_machine(&lab, "stop n1").says(
        0,
        "Stopping \"n1\"...\nMachine \"n1\" was stopped.\n",
        "",
    );
    docker_machine(&lab, "stop n1").says(
        1,
        "Stopping \"n1\"...\n",
        "Machine \"n1\" is already stopped.\n",
    );
    docker_machine(&lab, "url n1").says(1, "", "Host is not running\n");
    docker_machine(&lab, "env n1").says(
        1,
        "",
        "Error checking TLS connection: Host is not running\n",
    );
    docker_machine(&lab, "start n1").says(
        0,
        "Starting \"n1\"...\nMachine \"n1\" was started.\nStarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\n",
        "",
    );
    docker_machine(&lab, "restart n1").says(
        0,
        "Restarting \"n1\"...\nRestarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\n",
        "",
    );
    docker_machine(&lab, "kill n1").says(0, "Killing \"n1\"...\nMachine \"n1\" was killed.\n", "");
    docker_machine(&lab, "rm -y n1").says(
        0,
        &format!("{BEFORE_REMOVAL}Successfully removed n1\n"),
        "",
    );
    lab.provider_is_empty("removed");
    lab.forge("create n2").ok();
    docker_machine(&lab, "provision n2").says(
        0,
        "Waiting for SSH to be available...\nDetecting the provisioner...\n",
        "",
    );
    docker_machine(&lab, "stop n2").ok();
    docker_machine(&lab, "restart n2").says(
        0,
        "Restarting \"n2\"...\nStarting \"n2\"...\nMachine \"n2\" was started.\nRestarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\n",
        "",
    );
    // What docker-machine did not do is told as forge tells it.
    let published = docker_machine(&lab, "publish n2 18080").ok();
    assert!(
        published.stdout.starts_with("n2 18080 -> "),
        "{}",
        published.stdout
    );
}

#[test]
fn a_machine_that_is_not_there_is_told_in_docker_machines_words() {
    let made = Lab::new();
    made.forge("create n1").ok();
    // Without a store, and with one.
    for lab in [Lab::bare(), made] {
        for command in [
            "env",
            "ip",
            "url",
            "status",
            "inspect",
            "start",
            "stop",
            "restart",
            "kill",
            "provision",
            "ssh",
        ] {
            docker_machine(&lab, &format!("{command} x")).says(1, "", &no_machine("x"));
            docker_machine(&lab, command).says(1, "", NO_DEFAULT);
        }
        docker_machine(&lab, "ip default").says(1, "", &no_machine("default"));
        docker_machine(&lab, "rm -y x").says(
            1,
            &BEFORE_REMOVAL.replace("n1", "x"),
            &format!("Error removing host \"x\": {}", no_machine("x")),
        );
    }
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_1() {
    let lab = Lab::new();
    let usage = |words: &str, says: &str| {
        let ended = docker_machine(&lab, words).run().code(1);
        assert_eq!(ended.stdout, "", "{words}");
        assert!(
            ended.stderr.starts_with("Incorrect Usage.\n\n") && ended.stderr.contains(says),
            "{words}: {}",
            ended.stderr
        );
    };
    usage(
        "create --no-such-flag n1",
        "Usage: docker-machine create [OPTIONS] [NAMES]...",
    );
    usage(
        "rm -no-such-flag n1",
        "Usage: docker-machine rm [OPTIONS] [NAMES]...",
    );
    docker_machine(&lab, "frob").says(
        1,
        "",
        "docker-machine: 'frob' is not a docker-machine command. See 'docker-machine --help'.\n",
    );
    for (words, says) in [
        (
            "create a b c",
            "Invalid command line. Found extra arguments [b c]\n",
        ),
        (
            "create bad_name",
            "Error creating machine: Invalid hostname specified. Allowed hostname chars are: 0-9a-zA-Z . -\n",
        ),
        (
            "env -u n1",
            "Error: Expected no machine name when the -u flag is present\n",
        ),
        (
            "env a b",
            "Error: Expected one machine name as an argument\n",
        ),
    ] {
        docker_machine(&lab, words).says(1, "", says);
    }
    assert_eq!(machines(&lab), "");
    let help = docker_machine(&lab, "").ok();
    assert!(
        help.stdout.contains("Usage: docker-machine"),
        "{}",
        help.stdout
    );
    assert_eq!(help.stderr, "");
    docker_machine(&lab, "rm -help").ok();
}

#[test]
fn a_pre_create_check_that_fails_ends_with_3() {
    let lab = Lab::new();
    let empty = lab.folder().join("no-programs");
    fs::create_dir(&empty).expect("a folder");
    let ended = docker_machine(&lab, "create -driver qemu n1")
        .env("PATH", &empty)
        .run()
        .code(3);
    assert_eq!(ended.stdout, "Running pre-create checks...\n");
    assert!(
        ended.stderr.starts_with("Error with pre-create check: \"")
            && ended.stderr.contains("qemu-system-"),
        "{}",
        ended.stderr
    );
    assert_eq!(machines(&lab), "");
}

#[test]
fn help_begins_with_the_usage_and_comes_before_the_error_that_no_machine_is_named() {
    let lab = Lab::new();
    for words in ["", "--help", "help"] {
        let said = docker_machine(&lab, words).ok().stdout;
        let mut lines = said.lines().filter(|line| !line.is_empty());
        let usage = lines.next().expect("a line");
        assert!(usage.starts_with("Usage: docker-machine "), "{said}");
        assert_eq!(
            lines.next(),
            Some("Create and manage machines running Docker.")
        );
    }
    for command in ["active", "create", "env", "regenerate-certs", "scp", "url"] {
        let said = docker_machine(&lab, &format!("{command} -h")).ok().stdout;
        assert!(
            said.starts_with(&format!("Usage: docker-machine {command} ")),
            "{said}"
        );
    }
    let nobody = docker_machine(&lab, "create -d virtualbox").run().code(1);
    assert!(nobody.stdout.starts_with("Usage: docker-machine create "));
    assert!(nobody.stdout.contains("--virtualbox-memory"));
    assert_eq!(nobody.stderr, "Error: No machine name specified\n");
    let nobody = docker_machine(&lab, "rm").run().code(1);
    assert!(nobody.stdout.starts_with("Usage: docker-machine rm "));
    assert_eq!(
        nobody.stderr,
        "Error: Expected to get one or more machine names as arguments\n"
    );
}

/// What its own test suite made its machines of.
#[test]
fn a_machine_of_the_driver_none_may_be_a_name_alone() {
    let lab = Lab::new();
    docker_machine(&lab, "create -d bogus x").says(
        1,
        "",
        "Driver \"bogus\" not found. Do you have the plugin binary \"docker-machine-driver-bogus\" accessible in your PATH?\n\
         hint: the drivers are `qemu`, `libvirt`, `virtualbox`, `generic`, `none`, `fake`\n",
    );
    for name in ["m10", "m2"] {
        let made = docker_machine(&lab, &format!("create -d none --url none {name}")).ok();
        assert!(
            !made.stdout.contains("up and running"),
            "nothing is: {}",
            made.stdout
        );
    }
    docker_machine(&lab, "create -d none --url none m2").says(
        1,
        "",
        "Docker machine \"m2\" already exists\n",
    );
    let all = "NAME   ACTIVE   DRIVER   STATE   URL    SWARM   DOCKER    ERRORS\n\
               m2     -        none             none           Unknown   \n\
               m10    -        none             none           Unknown   \n";
    docker_machine(&lab, "ls").says(0, all, "");
    docker_machine(&lab, "ls --filter state= --filter driver=none").says(0, all, "");
    docker_machine(&lab, "ls -q --filter state=").says(0, "m2\nm10\n", "");
    docker_machine(&lab, "ls -q --filter state=Running").says(0, "", "");
    docker_machine(&lab, "url m2").says(0, "none\n", "");
    docker_machine(&lab, "status m2").says(0, "\n", "");
    docker_machine(&lab, "inspect -f {{.Driver.URL}}{{.Driver.IPAddress}} m2")
        .says(0, "none\n", "");
    docker_machine(&lab, "env m2").says(
        1,
        "",
        "Error checking TLS connection: Host is not running\n",
    );
    docker_machine(&lab, "ip m2").says(1, "", "Error getting IP address: Host is not running\n");
    let stopped = docker_machine(&lab, "stop m2").run().code(1);
    assert_eq!(stopped.stderr, "hosts without a driver cannot be stopped\n");
    // By its own name, the word is one of ours, and nothing is pretended either.
    lab.forge("status m2").says(0, "None\n", "");
    let env = lab.forge("env m2").run().code(1);
    assert!(
        env.stderr
            .starts_with("error: machine `m2` is a name with nothing behind it\n"),
        "{}",
        env.stderr
    );
    docker_machine(&lab, "rm -y m2 m10").ok();
    assert_eq!(machines(&lab), "");
}

/// Whether anybody is there or not.
#[test]
fn the_url_of_a_machine_of_the_driver_none_is_what_was_said() {
    let lab = Lab::new();
    // Nobody listens at 9, the port of `discard`.
    let url = "tcp://127.0.0.1:9";
    docker_machine(&lab, &format!("create -d none --url {url} far")).ok();
    docker_machine(&lab, "status far").says(0, "Stopped\n", "");
    docker_machine(&lab, "ip far").says(0, "127.0.0.1\n", "");
    docker_machine(&lab, "ls -f {{.URL}}").says(0, &format!("{url}\n"), "");
    for name in ["docker-machine", "forge"] {
        let shown = lab.forge("url far").called(name);
        shown.says(0, &format!("{url}\n"), "");
    }
    let env = lab.forge("env far").run().code(1);
    assert_eq!(
        env.stderr,
        "error: machine `far` is not running: it is Stopped\n\
         hint: it is known by its URL alone: it is started where it is\n"
    );
}

#[test]
fn options_are_read_as_go_reads_them() {
    let lab = Lab::new();
    docker_machine(
        &lab,
        "-debug=false --native-ssh create n1 -driver fake --github-api-token x",
    )
    .ok();
    docker_machine(&lab, "create -d=fake -publish 18080 n2").ok();
    docker_machine(&lab, "ls -quiet").says(0, "n1\nn2\n", "");
    docker_machine(&lab, "ls --q=true").says(0, "n1\nn2\n", "");
    docker_machine(&lab, "rm --y -force=true n1 n2").ok();
    assert_eq!(machines(&lab), "");
}

#[test]
fn only_a_yes_removes_and_anything_else_does_nothing_and_succeeds() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let asked = format!("{BEFORE_REMOVAL}Are you sure? (y/n): ");
    for answer in ["", "\n", "n\n", "no\n", "oh yes\n"] {
        docker_machine(&lab, "rm n1")
            .given(answer)
            .says(0, &asked, "");
        assert_eq!(machines(&lab), "n1\n", "{answer:?}");
    }
    docker_machine(&lab, "rm n1").given("Yes\n").says(
        0,
        &format!("{asked}Successfully removed n1\n"),
        "",
    );
    assert_eq!(machines(&lab), "");
}

#[test]
fn an_error_without_words_of_its_own_is_one_line_and_what_to_try() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab.turn(Knob::Down, true);
    let ended = docker_machine(&lab, "stop n1").run().code(1);
    assert_eq!(
        ended.stderr.lines().next(),
        Some("failed to stop machine `n1`: the provider is down")
    );
    assert!(!ended.stderr.contains("error: "), "{}", ended.stderr);
}

#[test]
fn machine_debug_shows_everything_and_has_to_be_a_truth() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    for (value, shows) in [("1", true), ("true", true), ("0", false), ("", false)] {
        let ended = docker_machine(&lab, "stop n1")
            .env("MACHINE_DEBUG", value)
            .ok();
        assert_eq!(
            ended.stderr.contains("driver.set_power took"),
            shows,
            "{value}"
        );
        let ended = lab.forge("start n1").env("MACHINE_DEBUG", value).ok();
        assert_eq!(
            ended.stderr.contains("driver.set_power took"),
            shows,
            "{value}"
        );
    }
    docker_machine(&lab, "ls -q").env("MACHINE_DEBUG", "maybe").says(
        1,
        "",
        "Error parsing boolean value from MACHINE_DEBUG: strconv.ParseBool: parsing \"maybe\": invalid syntax\n",
    );
    lab.forge("ls -q").env("MACHINE_DEBUG", "maybe").says(
        2,
        "",
        "error: MACHINE_DEBUG is neither true nor false: `maybe`\n",
    );
    lab.forge("ls -q")
        .env("MACHINE_DEBUG", "maybe")
        .env("FORGE_DEBUG", "0")
        .says(0, "n1\n", "");
}

/// Copies the store of `lab` to `root`, where its machine is called `name`.
fn copied(lab: &Lab, root: &Path, name: &str) {
    for (path, bytes) in lab.files() {
        let path = root.join(path.strip_prefix(&lab.home).expect("in the store"));
        private(path.parent().expect("a folder"));
        fs::write(path, bytes).expect("written");
    }
    let machines = root.join("machines");
    fs::rename(machines.join("n1"), machines.join(name)).expect("renamed");
}

fn private(folder: &Path) {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .expect("a folder");
}

#[test]
fn the_nearest_word_says_where_the_store_is() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let names = ["flag", "forge-home", "machine-storage-path", ".forge"];
    let place = |at: usize| lab.folder().join(names[at]).display().to_string();
    for (at, name) in names.iter().enumerate() {
        copied(&lab, Path::new(&place(at)), name.trim_start_matches('.'));
    }
    // One word after the other is left out, by both names.
    for (left_out, name) in names.iter().enumerate() {
        for program in ["forge", "docker-machine"] {
            let flag = place(0);
            let words = ["--storage-path", flag.as_str(), "ls", "-q"];
            let words = if left_out < 1 {
                &words[..]
            } else {
                &words[2..]
            };
            let mut run = lab.words(words).called(program).without("FORGE_HOME");
            if left_out < 2 {
                run = run.env("FORGE_HOME", place(1));
            }
            if left_out < 3 {
                run = run.env("MACHINE_STORAGE_PATH", place(2));
            }
            run.says(0, &format!("{}\n", name.trim_start_matches('.')), "");
        }
    }
    // An empty variable says nothing.
    lab.forge("ls -q")
        .without("FORGE_HOME")
        .env("MACHINE_STORAGE_PATH", "")
        .says(0, "forge\n", "");
    // What cannot be read leads nowhere, and not to another store.
    let ended = lab
        .forge("ls -q")
        .without("FORGE_HOME")
        .env(
            "MACHINE_STORAGE_PATH",
            std::ffi::OsStr::from_bytes(b"/s\xe9"),
        )
        .run()
        .code(2);
    assert!(
        ended
            .stderr
            .starts_with("error: MACHINE_STORAGE_PATH makes no sense\ncaused by: "),
        "{}",
        ended.stderr
    );
}

/// A store as docker-machine leaves it.
fn foreign_store(root: &Path) {
    for (path, text) in [
        ("certs/ca.pem", "-----BEGIN CERTIFICATE-----\n"),
        ("certs/ca-key.pem", "-----BEGIN RSA PRIVATE KEY-----\n"),
        (
            "machines/old/config.json",
            "{\n    \"ConfigVersion\": 3,\n    \"Driver\": {\n        \"IPAddress\": \"192.0.2.7\",\n        \"MachineName\": \"old\"\n    },\n    \"DriverName\": \"generic\",\n    \"Name\": \"old\"\n}",
        ),
        ("machines/old/id_rsa", "-----BEGIN RSA PRIVATE KEY-----\n"),
        ("machines/old/ca.pem", "-----BEGIN CERTIFICATE-----\n"),
    ] {
        let path = root.join(path);
        private(path.parent().expect("a folder"));
        fs::write(path, text).expect("written");
    }
}

/// Every file and every folder below `root`.
fn everything(root: &Path) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<PathBuf>) {
    let mut folders = vec![root.to_owned()];
    let mut at = 0;
    while let Some(folder) = folders.get(at).cloned() {
        at += 1;
        let mut inner: Vec<PathBuf> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_dir())
            .collect();
        inner.sort();
        folders.extend(inner);
    }
    (files(root), folders)
}

#[test]
fn a_store_of_docker_machine_is_refused_and_no_file_of_it_is_touched() {
    let lab = Lab::bare();
    foreign_store(&lab.home);
    let before = everything(&lab.home);
    let says = "error: `HOME` is a store of docker-machine, in which forge changes nothing\nhint: `forge --storage-path DIR import docker-machine HOME` takes its machines over into a store of forge's in DIR\n";
    for words in [
        "ls",
        "ls -q",
        "create n1",
        "env old",
        "ip",
        "rm -f old",
        "start old",
        "cluster up --dry-run",
        "cluster ls",
        "image build",
        "image ls",
    ] {
        lab.forge(words).says(1, "", says);
        let other = docker_machine(&lab, words).env("MACHINE_STORAGE_PATH", &lab.home);
        let ended = other.without("FORGE_HOME").given("y\n").run().code(1);
        assert_eq!(ended.stdout, "", "{words}");
        assert!(
            ended.stderr.contains("import docker-machine HOME"),
            "{words}: {}",
            ended.stderr
        );
    }
    let doctor = lab.forge("doctor --json").run().json();
    let found = doctor["findings"].as_array().expect("a list");
    assert!(
        found.iter().any(|finding| finding["area"] == "store"
            && finding["ok"] == false
            && finding["remedy"]
                .to_string()
                .contains("import docker-machine")),
        "{doctor}"
    );
    assert_eq!(everything(&lab.home), before);
}

#[test]
fn a_foreign_machine_in_a_store_of_ours_is_refused_by_name() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    foreign_store(&lab.folder().join("other"));
    let moved = lab.home.join("machines/old");
    fs::rename(lab.folder().join("other/machines/old"), &moved).expect("moved");
    let before = everything(&lab.home);
    for words in ["ls -q", "create n2", "rm -f old", "ip n1"] {
        lab.forge(words).says(
            1,
            "",
            "error: the store `HOME` holds machines that docker-machine made: `old`\nhint: move their folders to `DIR/machines`; `forge import docker-machine DIR` takes them over from there\n",
        );
    }
    assert_eq!(everything(&lab.home), before);
    fs::remove_dir_all(moved).expect("taken away");
    lab.forge("ls -q").says(0, "n1\n", "");
}
