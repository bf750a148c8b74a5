//! What the commands that answer a question about a machine say, by both names: its state, its address, and how `docker`
//! is led to it.

mod common;

use std::fs;

use common::{Lab, Run};
use forge_driver::fake::Knob;

/// The command `docker-machine` with these words.
fn docker_machine<'a>(lab: &'a Lab, words: &str) -> Run<'a> {
    lab.forge(words).called("docker-machine")
}

fn made(names: &str) -> Lab {
    let lab = Lab::new();
    lab.forge(&format!("create {names}")).ok();
    lab
}

const PROGRAMS: [&str; 2] = ["forge", "docker-machine"];

#[test]
fn config_is_five_options_of_an_engine_that_answers() {
    let lab = made("n1 default");
    for name in ["n1", "default"] {
        let text = format!(
            "--tlsverify\n--tlscacert=\"HOME/machines/{name}/ca.pem\"\n--tlscert=\"HOME/machines/{name}/cert.pem\"\n--tlskey=\"HOME/machines/{name}/key.pem\"\n-H=tcp://{}:2376\n",
            lab.address(name)
        );
        for program in PROGRAMS {
            let words = if name == "default" {
                "config"
            } else {
                "config n1"
            };
            lab.forge(words).called(program).says(0, &text, "");
        }
    }
    let json = lab.forge("config --json n1").ok().json();
    assert_eq!(json["host"], format!("tcp://{}:2376", lab.address("n1")));
    docker_machine(&lab, "config a b").says(
        1,
        "",
        "Error: Expected one machine name as an argument\n",
    );
    lab.forge("stop n1").ok();
    docker_machine(&lab, "config n1").says(
        1,
        "",
        "Error running connection boilerplate: Host is not running\n",
    );
    lab.forge("config n1").says(
        1,
        "",
        "error: machine `n1` is not running: it is Stopped\nhint: `forge start n1` starts it\n",
    );
}

#[test]
fn nothing_is_said_of_an_engine_that_does_not_answer_to_the_pair_in_the_machines_folder() {
    let lab = made("n1 n2");
    let at = format!("{}:2376", lab.address("n1"));
    let silent = format!("the engine's port {at} does not accept connections");
    lab.turn(Knob::SilentEngine, true);
    for command in ["env n1", "config n1", "version n1"] {
        lab.forge(command).says(
            1,
            "",
            &format!(
                "error: the engine of machine `n1` does not answer over TLS at {at}\ncaused by: {silent}\nhint: `forge logs n1` shows what it says; `forge provision n1` mends what differs\n"
            ),
        );
    }
    let certs = format!(
        "Error checking and/or regenerating the certs: There was an error validating certificates for host \"{at}\": {silent}\nYou can attempt to regenerate them using 'docker-machine regenerate-certs [name]'.\n"
    );
    docker_machine(&lab, "env n1").says(1, "", &format!("Error checking TLS connection: {certs}"));
    docker_machine(&lab, "config n1").says(
        1,
        "",
        &format!("Error running connection boilerplate: {certs}"),
    );
    docker_machine(&lab, "version n1").says(
        1,
        "",
        &format!("Unable to query docker version: {silent}\n"),
    );
    lab.turn(Knob::SilentEngine, false);
    // The files in the folder count: `docker` would be refused with another machine's certificate and no key to it.
    let folder = lab.home.join("machines/n1");
    let key = fs::read(folder.join("key.pem")).expect("a key");
    fs::write(folder.join("key.pem"), "").expect("emptied");
    for program in PROGRAMS {
        for command in ["env n1", "config n1"] {
            let ended = lab.forge(command).called(program).run().code(1);
            assert_eq!(ended.stdout, "", "{command}");
            assert!(ended.stderr.contains("client key"), "{}", ended.stderr);
        }
    }
    fs::write(folder.join("key.pem"), key).expect("put back");
    lab.forge("env n1").ok();
    // An engine whose certificate another CA has signed.
    let ca = lab.home.join("machines/n1/ca.pem");
    let other = Lab::new();
    other.forge("create n1").ok();
    fs::copy(other.home.join("machines/n1/ca.pem"), &ca).expect("copied");
    let ended = lab.forge("config n1").run().code(1);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("TLS handshake"), "{}", ended.stderr);
    lab.forge("config n2").ok();
}

#[test]
fn active_is_the_machine_that_docker_host_leads_to_and_nobody_is_asked() {
    let lab = made("n1 n2");
    let host = |name: &str| format!("tcp://{}:2376", lab.address(name));
    let calls = lab.provider.calls().len();
    lab.turn(Knob::Down, true);
    for program in PROGRAMS {
        for (words, name) in [
            ("active", "n1"),
            ("active -t 1", "n2"),
            ("active --timeout=3", "n1"),
        ] {
            lab.forge(words)
                .called(program)
                .env("DOCKER_HOST", host(name))
                .says(0, &format!("{name}\n"), "");
        }
    }
    let json = lab.forge("active --json").env("DOCKER_HOST", host("n2"));
    assert_eq!(
        json.ok().json(),
        serde_json::json!({"name": "n2", "url": host("n2")})
    );
    for value in ["", "tcp://192.0.2.7:2376", "unix:///var/run/docker.sock"] {
        docker_machine(&lab, "active")
            .env("DOCKER_HOST", value)
            .says(1, "", "No active host found\n");
    }
    lab.forge("active").says(
        1,
        "",
        "error: no machine is active: DOCKER_HOST is not set\nhint: `eval $(forge env NAME)` sets it for this shell\n",
    );
    lab.forge("active").env("DOCKER_HOST", "tcp://192.0.2.7:2376").says(
        1,
        "",
        "error: no machine is active: none has DOCKER_HOST, `tcp://192.0.2.7:2376`, as its URL\nhint: `forge ls` shows the machines and their URLs\n",
    );
    docker_machine(&lab, "active n1").says(1, "", "Error: Too many arguments given\n");
    lab.forge("active n1").run().code(2);
    assert_eq!(lab.provider.calls().len(), calls, "the provider was asked");
    docker_machine(&Lab::bare(), "active").says(1, "", "No active host found\n");
}

#[test]
fn version_is_that_of_an_engine_or_of_the_program() {
    let lab = made("n1");
    let own = env!("CARGO_PKG_VERSION");
    for words in ["version", "--version"] {
        lab.forge(words).says(0, &format!("forge {own}\n"), "");
        docker_machine(&lab, words).says(
            0,
            &format!("docker-machine version 0.16.2, build forge-{own}\n"),
            "",
        );
    }
    assert_eq!(
        lab.forge("version --json").ok().json(),
        serde_json::json!({"version": own})
    );
    for program in PROGRAMS {
        lab.forge("version n1")
            .called(program)
            .says(0, "0.0.0\n", "");
    }
    assert_eq!(
        lab.forge("version --json n1").ok().json(),
        serde_json::json!({"name": "n1", "version": "0.0.0", "api": "1.41"})
    );
    docker_machine(&lab, "version a b").says(
        1,
        "",
        "Error: Expected one machine name as an argument\n",
    );
    lab.forge("stop n1").ok();
    docker_machine(&lab, "version n1").says(1, "", "Host is not running\n");
}

#[test]
fn the_hint_repeats_the_command_line() {
    let lab = made("n1 default");
    for (words, says) in [
        ("env n1", "# eval $(docker-machine env n1)\n"),
        (
            "env --shell fish n1",
            "# eval (docker-machine env --shell fish n1)\n",
        ),
        (
            "-debug=false env -shell=cmd",
            "REM \t@FOR /f \"tokens=*\" %i IN ('docker-machine -debug=false env -shell=cmd') DO @%i\n",
        ),
        ("env -u", "# eval $(docker-machine env -u)\n"),
    ] {
        let ended = docker_machine(&lab, words).ok();
        assert!(ended.stdout.ends_with(says), "{}", ended.stdout);
    }
    let program = "/opt/my tools/docker-machine";
    let ended = lab.forge("env n1").called(program).ok();
    assert!(
        ended
            .stdout
            .ends_with("# eval $(\"/opt/my tools/docker-machine\" env n1)\n"),
        "{}",
        ended.stdout
    );
    // A line end in a word would end the comment, and a shell would run what follows.
    let ended = lab
        .words(&["env", "n1", "--shell", "x\ntouch ran\n"])
        .called("docker-machine")
        .ok();
    assert_eq!(ended.stdout.lines().count(), 6, "{}", ended.stdout);
}

#[test]
fn a_shell_of_any_other_name_is_a_posix_one_to_docker_machine_and_an_error_to_forge() {
    let lab = made("n1");
    let ended = docker_machine(&lab, "env --shell xonsh n1").ok();
    assert!(
        ended.stdout.starts_with("export DOCKER_TLS_VERIFY=\"1\"\n"),
        "{}",
        ended.stdout
    );
    let ended = lab.forge("env --shell xonsh n1").run().code(2);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("xonsh"), "{}", ended.stderr);
}

#[test]
fn the_variable_that_keeps_proxies_away_is_the_one_that_says_something() {
    let lab = made("n1");
    let ip = lab.address("n1");
    let near = format!("10.0.0.1,{ip}0");
    for (small, capital, says) in [
        (None, None, format!("export NO_PROXY=\"{ip}\"\n")),
        (
            Some(""),
            Some("a.example"),
            format!("export NO_PROXY=\"a.example,{ip}\"\n"),
        ),
        (
            Some("b.example"),
            Some("a.example"),
            format!("export no_proxy=\"b.example,{ip}\"\n"),
        ),
        (
            Some(near.as_str()),
            None,
            format!("export no_proxy=\"{near},{ip}\"\n"),
        ),
        (
            None,
            Some(ip.as_str()),
            format!("export NO_PROXY=\"{ip}\"\n"),
        ),
    ] {
        for program in PROGRAMS {
            let mut set = lab.forge("env --no-proxy n1").called(program);
            let mut unset = lab.forge("env -u --no-proxy").called(program);
            for (name, value) in [("no_proxy", small), ("NO_PROXY", capital)] {
                if let Some(value) = value {
                    set = set.env(name, value);
                    unset = unset.env(name, value);
                }
            }
            let set = set.ok().stdout;
            assert_eq!(
                set.split_inclusive('\n').nth(4),
                Some(says.as_str()),
                "{set}"
            );
            let name = says.split(['=', ' ']).nth(1).expect("a name");
            assert_eq!(
                unset.ok().stdout.lines().nth(4),
                Some(format!("unset {name}").as_str())
            );
        }
    }
}

#[test]
fn what_was_for_the_classic_swarm_is_refused_with_what_serves_instead() {
    let lab = made("n1");
    for line in [
        "create --swarm n2",
        "create -swarm-master --swarm-discovery token://x n2",
        "create --swarm-image=swarm:1.2.0 -d fake n2",
        "create --swarm-opt a=b --swarm-opt -c n2",
    ] {
        let ended = docker_machine(&lab, line).run().code(1);
        assert_eq!(ended.stdout, "");
        assert!(
            ended
                .stderr
                .starts_with("Error setting machine configuration from flags provided: `--swarm")
                && ended.stderr.contains("forge cluster up"),
            "{}",
            ended.stderr
        );
        lab.forge(line).run().code(2);
    }
    lab.forge("ls -q").says(0, "n1\n", "");
    for command in ["env --swarm n1", "config --swarm n1"] {
        let ended = lab.forge(command).run().code(2);
        assert_eq!(ended.stdout, "");
        assert!(
            ended.stderr.contains("forge cluster env"),
            "{}",
            ended.stderr
        );
        let ended = docker_machine(&lab, command).run().code(1);
        assert_eq!(ended.stdout, "");
        assert!(
            ended.stderr.contains("forge cluster env"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_state_is_a_word_also_where_nobody_can_tell() {
    let lab = made("n1 n2");
    lab.forge("stop n2").ok();
    for program in PROGRAMS {
        lab.forge("status n2 n1")
            .called(program)
            .says(0, "Stopped\nRunning\n", "");
    }
    // The answer of one machine's provider is late, and hides no other's.
    let late = lab.provider.root().join(Knob::HoldObserve.file());
    fs::write(&late, "").expect("turned on");
    docker_machine(&lab, "status -t 1 n1").says(
        0,
        "Timeout\n",
        "error getting state for host n1: its provider did not answer within 1 s\n",
    );
    lab.forge("status -t 1 n1").says(
        1,
        "Timeout\n",
        "error: the state of machine `n1` is not known\ncaused by: its provider did not answer within 1 s\nhint: `forge doctor` looks for what is missing\n",
    );
    fs::remove_file(late).expect("turned off");
    lab.turn(Knob::Down, true);
    docker_machine(&lab, "status n1").says(
        0,
        "Error\n",
        "error getting state for host n1: the provider is down\n",
    );
    lab.forge("status n1").says(
        1,
        "Error\n",
        "error: the state of machine `n1` is not known\ncaused by: the provider is down\nhint: `forge doctor` looks for what is missing\n",
    );
    assert_eq!(
        lab.forge("status --json n1")
            .run()
            .code(1)
            .stdout
            .lines()
            .next(),
        Some("[{\"name\":\"n1\",\"stage\":\"ready\",\"state\":\"Error\"}]")
    );
    lab.turn(Knob::Down, false);
    let claim = lab.record("n2")["claim"]
        .as_str()
        .expect("a claim")
        .to_owned();
    fs::remove_dir_all(lab.provider.root().join("vms").join(claim)).expect("removed");
    lab.forge("status n2").says(0, "Absent\n", "");
    docker_machine(&lab, "status n2").says(0, "Error\n", "");
}

#[test]
fn a_machine_that_is_off_has_an_address_only_for_forge() {
    let lab = made("n1 n2");
    let (one, two) = (lab.address("n1"), lab.address("n2"));
    lab.forge("stop n1").ok();
    lab.forge("ip n2 n1")
        .says(0, &format!("{two}\n{one}\n"), "");
    docker_machine(&lab, "ip n1 n2").says(
        1,
        &format!("{two}\n"),
        "Error getting IP address: Host is not running\n",
    );
    // Nobody says that it is off.
    lab.turn(Knob::Down, true);
    docker_machine(&lab, "ip n1 n2").says(0, &format!("{one}\n{two}\n"), "");
}

#[test]
fn each_of_several_that_are_not_there_is_told() {
    let lab = made("n1");
    let missing = |name: &str| {
        format!(
            "Docker machine \"{name}\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\n"
        )
    };
    for command in [
        "ip",
        "url",
        "status",
        "inspect",
        "start",
        "stop",
        "restart",
        "kill",
        "provision",
    ] {
        docker_machine(&lab, &format!("{command} x n1 y")).says(
            1,
            "",
            &format!("{}{}", missing("x"), missing("y")),
        );
    }
    for command in [
        "ip",
        "url",
        "status",
        "inspect",
        "env",
        "config",
        "start",
        "stop",
        "restart",
        "kill",
        "provision",
        "ssh",
    ] {
        let ended = lab.forge(command).run().code(1);
        assert_eq!(ended.stdout, "", "{command}");
        assert!(
            ended.stderr.contains("error: no machine is named, and there is no machine `default`\nhint: `forge ls` shows the machines\n"),
            "{command}: {}",
            ended.stderr
        );
        docker_machine(&lab, command).says(
            1,
            "",
            "Error: No machine name(s) specified and no \"default\" machine exists\n",
        );
    }
}

#[test]
fn a_forced_removal_forgets_what_the_provider_keeps_and_names_its_claim() {
    let lab = made("n1 n2 n3");
    let claim = |name: &str| {
        let record = lab.record(name);
        record["claim"].as_str().expect("a claim").to_owned()
    };
    let (one, two, three) = (claim("n1"), claim("n2"), claim("n3"));
    lab.turn(Knob::Down, true);
    let left = |name: &str, claim: &str| {
        format!(
            "warning: machine `{name}` is removed here alone; what driver `fake` has of it may be left, it carries the claim {claim}: the provider is down\n"
        )
    };
    lab.forge("rm -y n1").run().code(1);
    lab.forge("ls -q").says(0, "n1\nn2\nn3\n", "");
    lab.forge("rm -f n1").says(
        0,
        "",
        &format!("n1: removing\n{}n1: removed\n", left("n1", &one)),
    );
    docker_machine(&lab, "rm -f n2").says(
        0,
        "About to remove n2\nWARNING: This action will delete both local reference and remote instance.\nSuccessfully removed n2\n",
        &left("n2", &two),
    );
    // A record that cannot be read still shows whose machine it was.
    let path = lab.home.join("machines/n3/machine.json");
    let text = fs::read_to_string(&path).expect("a record");
    let (whole, _) = text.split_at(text.len() / 2);
    fs::write(&path, whole).expect("cut off");
    let ended = lab.forge("rm -f n3").ok();
    assert!(
        ended.stderr.contains(&left("n3", &three)),
        "{}",
        ended.stderr
    );
    lab.forge("ls -q").says(0, "", "");
    lab.turn(Knob::Down, false);
    assert_eq!(lab.provider.vms().expect("the provider").len(), 3);
    // Their names are free.
    lab.forge("create n1").ok();
}

#[test]
fn a_forced_removal_of_what_is_not_there_succeeds() {
    let lab = made("n1");
    let before = "About to remove x, n1\nWARNING: This action will delete both local reference and remote instance.\n";
    let missing = "Error removing host \"x\": Docker machine \"x\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\nCan't remove \"x\"\n";
    docker_machine(&lab, "rm -f x n1").says(
        0,
        &format!("{before}Successfully removed n1\n"),
        missing,
    );
    docker_machine(&Lab::bare(), "rm -f x").says(0, &before.replace(", n1", ""), missing);
    lab.forge("rm -f x").says(0, "", "");
}

#[test]
fn several_machines_are_changed_at_once_and_each_failure_is_a_line() {
    let lab = made("n1 n2 n3");
    lab.forge("stop n2").ok();
    let ended = docker_machine(&lab, "stop n1 n2 n3").run().code(1);
    assert_eq!(ended.stderr, "Machine \"n2\" is already stopped.\n");
    let mut said: Vec<&str> = ended.stdout.lines().collect();
    said.sort_unstable();
    assert_eq!(
        said,
        [
            "Machine \"n1\" was stopped.",
            "Machine \"n3\" was stopped.",
            "Stopping \"n1\"...",
            "Stopping \"n2\"...",
            "Stopping \"n3\"...",
        ]
    );
    let ended = docker_machine(&lab, "stop n1 n2").run().code(1);
    assert_eq!(
        ended.stderr,
        "Machine \"n1\" is already stopped.\nMachine \"n2\" is already stopped.\n"
    );
    // Under its own name the wish is what counts.
    lab.forge("stop n1 n2 n3").ok();
    lab.forge("kill n1").ok();
    lab.forge("start n1 n2").ok();
    lab.forge("start n1 n2 n3").ok();
    lab.forge("status n1 n2 n3")
        .says(0, "Running\nRunning\nRunning\n", "");
    for command in ["stop", "start", "restart", "kill", "provision", "rm -y"] {
        lab.forge(&format!("{command} n1 n1")).ok();
        if command == "kill" {
            lab.forge("start n1").ok();
        }
    }
    lab.forge("ls -q").says(0, "n2\nn3\n", "");
}

#[test]
fn a_question_is_left_by_an_interruption() {
    let lab = made("n1");
    for (program, asks) in [("forge", "y/N"), ("docker-machine", "y/n")] {
        let script = format!(
            "rm -f fifo; mkfifo fifo; exec 3<>fifo; {program} rm n1 <&3 >said 2>&1 & pid=$!\nuntil grep -q {asks} said; do sleep 0.05; done; kill -TERM $pid; wait $pid; echo rc=$?"
        );
        lab.bash(&script).says(0, "rc=130\n", "");
        lab.forge("ls -q").says(0, "n1\n", "");
    }
    // Only the beginning of an answer that has no end is read.
    let script = "yes | tr -d '\\n' | forge rm n1 2>/dev/null; echo rc=$?";
    lab.bash(script).says(0, "rc=1\n", "");
}

#[test]
fn a_reader_who_has_gone_is_no_failure_and_a_full_disk_is_one() {
    let lab = made("n1 n2");
    for program in PROGRAMS {
        for words in [
            "ls",
            "env n1",
            "config n1",
            "ip n1 n2",
            "status n1 n2",
            "inspect n1",
            "version",
        ] {
            // Nobody reads any more when it begins to write.
            let script = format!("{{ sleep 0.2; {program} {words}; echo rc=$? >&2; }} | true");
            lab.bash(&script).says(0, "", "rc=0\n");
            let ended = lab
                .bash(&format!("{program} {words} >/dev/full; echo rc=$?"))
                .run();
            assert_eq!(ended.stdout, "rc=1\n", "{program} {words}");
            assert!(
                ended.stderr.contains("failed to write to standard output")
                    && !ended.stderr.contains("panicked"),
                "{}",
                ended.stderr
            );
        }
    }
}
