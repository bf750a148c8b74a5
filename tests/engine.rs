//! What an engine is told: by `create` and `provision`, in the machine's files, records and lists.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::sshd::put;
use common::{Lab, files, until};
use forge_driver::fake::Knob;
use serde_json::{Value, json};

/// The folder of the only machine's files.
fn root(lab: &Lab) -> PathBuf {
    let vms = lab.provider.vms().expect("the provider");
    lab.provider.folder(vms[0].claim).join("root")
}

fn read(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(root(lab).join(name)).unwrap_or_default()
}

fn daemon(lab: &Lab) -> Value {
    serde_json::from_str(&read(lab, "etc/docker/daemon.json")).expect("JSON")
}

/// How often the engine was started.
fn starts(lab: &Lab) -> usize {
    read(lab, "etc/docker/restarts").lines().count()
}

const OPTIONS: &str = "--engine-opt log-level=debug --engine-opt live-restore --engine-env HTTP_PROXY=http://p:3128 --engine-label zone=z1 --engine-label disk=fast --engine-insecure-registry r.example:5000 --engine-registry-mirror https://m.example --engine-storage-driver overlay2 --tls-san n1.example --tls-san 192.0.2.7";

#[test]
fn an_engine_is_told_what_was_wished_of_it_and_a_second_run_changes_nothing() {
    let lab = Lab::new();
    lab.forge(&format!("create n1 {OPTIONS}")).ok();
    let text = "{\n  \"insecure-registries\": [\n    \"r.example:5000\"\n  ],\n  \"labels\": [\n    \"zone=z1\",\n    \"disk=fast\"\n  ],\n  \"live-restore\": true,\n  \"log-driver\": \"json-file\",\n  \"log-level\": \"debug\",\n  \"log-opts\": {\n    \"max-file\": \"3\",\n    \"max-size\": \"10m\"\n  },\n  \"registry-mirrors\": [\n    \"https://m.example\"\n  ],\n  \"storage-driver\": \"overlay2\"\n}\n";
    assert_eq!(read(&lab, "etc/docker/daemon.json"), text);
    assert_eq!(
        read(&lab, "etc/docker/forge.env"),
        "FORGE_ENGINE_FLAGS=\"-H tcp://0.0.0.0:2376 --tlsverify --tlscacert=/etc/docker/tls/ca.pem --tlscert=/etc/docker/tls/server.pem --tlskey=/etc/docker/tls/server-key.pem\"\nHTTP_PROXY=\"http://p:3128\"\n"
    );
    let names = lab.record("n1")["tls"]["names"].clone();
    let names: Vec<&str> = names
        .as_array()
        .expect("names")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        names.contains(&"n1.example") && names.contains(&"192.0.2.7"),
        "{names:?}"
    );

    let before = files(&root(&lab));
    let again = lab.forge("provision n1 --json").ok().summary();
    assert_eq!(again["changed"], 0);
    assert_eq!(files(&root(&lab)), before, "a second run changes no byte");
    assert_eq!(starts(&lab), 1);

    let config = lab.home.join("machines/n1/config.json");
    let config: Value =
        serde_json::from_slice(&std::fs::read(config).expect("config.json")).expect("JSON");
    let engine = &config["HostOptions"]["EngineOptions"];
    assert_eq!(
        engine["ArbitraryFlags"],
        json!(["log-level=debug", "live-restore"])
    );
    assert_eq!(engine["Env"], json!(["HTTP_PROXY=http://p:3128"]));
    assert_eq!(engine["Labels"], json!(["zone=z1", "disk=fast"]));
    assert_eq!(engine["InsecureRegistry"], json!(["r.example:5000"]));
    assert_eq!(engine["RegistryMirror"], json!(["https://m.example"]));
    assert_eq!(engine["StorageDriver"], "overlay2");
    assert_eq!(
        config["HostOptions"]["AuthOptions"]["ServerCertSANs"],
        json!(["n1.example", "192.0.2.7"])
    );
    lab.forge("ls -q --filter label=zone=z1")
        .says(0, "n1\n", "");
    lab.forge("ls -q --filter label=zone=z2").says(0, "", "");
    lab.words(&[
        "inspect",
        "-f",
        "{{index .HostOptions.EngineOptions.Labels 1}}",
        "n1",
    ])
    .says(0, "disk=fast\n", "");
}

#[test]
fn provision_adds_changes_and_takes_back() {
    let lab = Lab::new();
    lab.forge("create n1 --engine-label a=b --engine-opt mtu=1400")
        .ok();
    lab.forge("provision n1 --engine-label a=c --engine-label d=e --engine-opt debug")
        .ok();
    let told = daemon(&lab);
    assert_eq!(told["labels"], json!(["a=c", "d=e"]));
    assert_eq!((&told["mtu"], &told["debug"]), (&json!(1400), &json!(true)));
    assert_eq!(starts(&lab), 2);
    assert_eq!(lab.record("n1")["engine"]["labels"], json!(["a=c", "d=e"]));
    assert_eq!(lab.record("n1").get("engine_past"), None);
    // What others wrote stays when forge's own is taken back.
    let mut own = told;
    own["labels"] = json!(["a=c", "d=e", "own=1"]);
    std::fs::write(
        root(&lab).join("etc/docker/daemon.json"),
        own.to_string() + "\n",
    )
    .expect("written");
    lab.forge("provision n1 --engine-reset --engine-opt mtu=1500")
        .ok();
    let told = daemon(&lab);
    assert_eq!(told["labels"], json!(["own=1"]));
    assert_eq!((&told["mtu"], told.get("debug")), (&json!(1500), None));
    assert_eq!(
        lab.forge("provision n1 --json").ok().summary()["changed"],
        0
    );
    // A name for the certificate.
    lab.forge("provision n1 --tls-san other.example").ok();
    assert!(
        lab.record("n1")["tls"]["names"]
            .to_string()
            .contains("other.example")
    );
}

#[test]
fn a_change_that_was_cut_off_is_gone_on_with_by_the_next_provisioning() {
    let lab = Lab::new();
    lab.forge("create n1 --engine-label a=b").ok();
    lab.turn(Knob::SilentSsh, true);
    lab.forge("provision n1 --engine-reset --timeout 1")
        .run()
        .code(1);
    assert_eq!(lab.record("n1")["engine_past"][0]["labels"], json!(["a=b"]));
    lab.turn(Knob::SilentSsh, false);
    lab.forge("provision n1").ok();
    assert_eq!(daemon(&lab).get("labels"), None);
    assert_eq!(lab.record("n1").get("engine_past"), None);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    for (words, said) in [
        (
            "--engine-label a=b --engine-label a=c",
            "`--engine-label a=b` and `--engine-label a=c` contradict each other",
        ),
        (
            "--engine-label a",
            "`--engine-label a` makes no sense\ncaused by: it has to be `NAME=VALUE`",
        ),
        (
            "--engine-env A",
            "`--engine-env A` makes no sense\ncaused by: it has to be `NAME=VALUE`",
        ),
        (
            "--engine-registry-mirror m.example",
            "`--engine-registry-mirror m.example` is no URL",
        ),
        (
            "--engine-opt host=tcp://0.0.0.0:1",
            "`--engine-opt host=tcp://0.0.0.0:1` is not to be wished",
        ),
        (
            "--engine-install-url ftp://x",
            "`ftp://x` is not the URL of a script",
        ),
        (
            "--engine-install-url none --engine-packages a",
            "an engine comes from packages or from a script, and both are wished",
        ),
        (
            "--engine-packages a;b",
            "`a;b` is not the name of a package",
        ),
        (
            "--tls-san a..b",
            "`--tls-san a..b` is neither a name nor an address",
        ),
    ] {
        let ended = lab.forge(&format!("create n1 {words}")).run().code(2);
        assert!(
            ended.stderr.starts_with(&format!("error: {said}\n")),
            "{words}: {}",
            ended.stderr
        );
        assert!(!lab.home.join("machines/n1").exists(), "{words}");
    }
    lab.provider_is_empty("after refusals");
    lab.forge("create n1 --engine-label a=b").ok();
    let before = lab.files();
    lab.forge("provision n1 --engine-opt label=a=c")
        .run()
        .code(2);
    let now = lab.files();
    let record = lab.home.join("machines/n1/machine.json");
    assert_eq!(before[&record], now[&record]);
}

#[test]
fn a_contradiction_with_what_is_found_names_both() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    std::fs::create_dir_all(root(&lab).join("etc/default")).expect("a folder");
    std::fs::write(
        root(&lab).join("etc/default/docker"),
        "DOCKER_OPTS=\"--log-level=info\"\n",
    )
    .expect("written");
    let ended = lab
        .forge("provision n1 --engine-opt log-level=debug")
        .run()
        .code(1);
    assert!(
        ended.stderr.contains("`--engine-opt log-level=debug` contradicts the flag `--log-level=info` that the engine is started with"),
        "{}", ended.stderr
    );
    assert_eq!(starts(&lab), 1);
    std::fs::write(root(&lab).join("etc/docker/storage"), "overlay2\n").expect("written");
    lab.forge("provision n1 --engine-reset").ok();
    let ended = lab
        .forge("provision n1 --engine-storage-driver btrfs")
        .run()
        .code(1);
    assert!(
        ended
            .stderr
            .contains("the storage driver `overlay2` that is in use"),
        "{}",
        ended.stderr
    );
}

#[test]
fn variables_say_what_options_do_not_and_only_of_new_machines() {
    let lab = Lab::new();
    lab.forge("create n1")
        .env(
            "ENGINE_REGISTRY_MIRROR",
            "https://a.example,https://b.example",
        )
        .env("FORGE_ENGINE_STORAGE_DRIVER", "overlay2")
        .ok();
    assert_eq!(
        daemon(&lab)["registry-mirrors"],
        json!(["https://a.example", "https://b.example"])
    );
    assert_eq!(daemon(&lab)["storage-driver"], "overlay2");
    let again = lab
        .forge("provision n1 --json")
        .env("FORGE_ENGINE_REGISTRY_MIRROR", "https://c.example")
        .env("ENGINE_REGISTRY_MIRROR", "https://c.example")
        .ok();
    assert_eq!(again.summary()["changed"], 0);
    lab.forge("rm -y n1").ok();
    lab.forge("create n1 --engine-registry-mirror https://d.example")
        .env("ENGINE_REGISTRY_MIRROR", "https://a.example")
        .ok();
    assert_eq!(
        daemon(&lab)["registry-mirrors"],
        json!(["https://d.example"])
    );
}

/// A server that has one script, or has not.
struct Server {
    url: String,
    there: Arc<AtomicBool>,
    _end: mpsc::Sender<()>,
}

impl Server {
    fn start(script: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!(
            "http://{}/engine.sh",
            listener.local_addr().expect("an address")
        );
        let there = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel::<()>();
        let serves = there.clone();
        listener.set_nonblocking(true).expect("set");
        std::thread::spawn(move || {
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.read(&mut [0; 1024]);
                let answer = if serves.load(Ordering::SeqCst) {
                    format!(
                        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{script}",
                        script.len()
                    )
                } else {
                    // What a pipe into a shell would have run.
                    "HTTP/1.0 404 Not Found\r\nContent-Length: 9\r\n\r\nexit 0; #".to_owned()
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            url,
            there,
            _end: end,
        }
    }
}

#[test]
fn a_script_that_is_not_there_is_a_failure_and_the_same_command_goes_on() {
    let lab = Lab::new();
    let server = Server::start("echo by-script >\"$FORGE_FAKE_ROOT/etc/docker/installed\"\n");
    std::fs::write(lab.provider.root().join("no-engine"), "").expect("written");
    let words = format!("create n1 --engine-install-url {}", server.url);
    let ended = lab.forge(&words).run().code(1);
    assert!(ended.stderr.contains("404"), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(&format!(
            "the script of --engine-install-url cannot be had: {}",
            server.url
        )),
        "{}",
        ended.stderr
    );
    assert_eq!(read(&lab, "etc/docker/installed"), "");
    server.there.store(true, Ordering::SeqCst);
    lab.forge("create n1").ok();
    assert_eq!(read(&lab, "etc/docker/installed"), "by-script\n");
    // By docker-machine's variable and name.
    lab.forge("rm -y n1").ok();
    lab.forge("create -d fake n1")
        .called("docker-machine")
        .env("MACHINE_DOCKER_INSTALL_URL", &server.url)
        .ok();
    assert_eq!(read(&lab, "etc/docker/installed"), "by-script\n");
}

#[test]
fn an_engine_comes_from_named_packages_from_the_distribution_or_from_nowhere() {
    let lab = Lab::new();
    std::fs::write(lab.provider.root().join("no-engine"), "").expect("written");
    for (words, packages) in [
        (
            "--engine-packages docker-ce,docker-ce-cli",
            "docker-ce docker-ce-cli\n",
        ),
        ("", "docker.io\n"),
    ] {
        lab.forge(&format!("create n1 {words}")).ok();
        assert_eq!(read(&lab, "etc/docker/installed"), packages);
        lab.forge("rm -y n1").ok();
    }
    let ended = lab
        .forge("create n1 --engine-install-url none")
        .run()
        .code(1);
    assert!(
        ended
            .stderr
            .contains("there is no container engine on this machine, which is `a folder`"),
        "{}",
        ended.stderr
    );
    let begun = lab.forge("create n1 --engine-label a=b").run().code(1);
    assert!(
        begun.stderr.contains(
            "was begun with other options than these (`--engine-label` is one that was given)"
        ),
        "{}",
        begun.stderr
    );
}

#[test]
fn a_slow_engine_succeeds() {
    let lab = Lab::new();
    lab.turn(Knob::SilentEngine, true);
    let running = lab.forge("create n1 --json").start();
    until("the engine is waited for", || {
        lab.logged().contains("an engine that answers over TLS")
    });
    std::thread::sleep(Duration::from_millis(700));
    lab.turn(Knob::SilentEngine, false);
    running.wait(&lab).code(0);
    // docker-machine gave up after 30 s. How long an engine has here is said when the wait begins.
    lab.turn(Knob::SilentEngine, true);
    let waits = |lab: &Lab| {
        lab.logged()
            .matches("an engine that answers over TLS")
            .count()
    };
    let before = waits(&lab);
    let running = lab
        .forge("provision n1 --json")
        .env("FORGE_TIMEOUT", "600")
        .start();
    until("the engine is waited for", || waits(&lab) > before);
    std::thread::sleep(Duration::from_millis(700));
    lab.turn(Knob::SilentEngine, false);
    let ended = running.wait(&lab).code(0);
    let left: Vec<f64> = ended
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["awaits"] == "an engine that answers over TLS")
        .filter_map(|event| event["seconds_left"].as_f64())
        .collect();
    assert_eq!(left.len(), 1, "{}", ended.stdout);
    assert!((170.0..=180.0).contains(&left[0]), "{left:?}");
}

#[test]
fn a_dead_engine_is_shown_with_the_end_of_its_journal() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    std::fs::create_dir_all(root(&lab).join("var/log")).expect("a folder");
    std::fs::write(
        root(&lab).join("var/log/docker.log"),
        "failed to start daemon: no such graph driver\n",
    )
    .expect("written");
    lab.turn(Knob::SilentEngine, true);
    let ended = lab.forge("provision n1 --timeout 2").run().code(1);
    assert!(
        ended
            .stderr
            .contains("the end of its journal:\nfailed to start daemon: no such graph driver\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn an_engine_is_upgraded_and_restarted_where_there_is_a_newer_one() {
    let lab = Lab::new();
    lab.forge("create n1 n2 --engine-install-url none").ok();
    lab.forge("upgrade n1").says(
        0,
        "",
        "n1: connecting\nn1: upgrading\nn1: has the newest engine (nothing to change)\n",
    );
    let summary = lab.forge("upgrade n1 n2 --json").ok().summary();
    assert_eq!(summary["changed"], 0);
    std::fs::write(lab.provider.root().join("newest"), "1.2.3\n").expect("written");
    let summary = lab.forge("upgrade n1 n2 --json").ok().summary();
    assert_eq!(summary["changed"], 2);
    for vm in lab.provider.vms().expect("the provider") {
        let own = lab.provider.folder(vm.claim).join("root/etc/docker");
        let lines = |name: &str| {
            let text = std::fs::read_to_string(own.join(name)).expect("readable");
            text.lines().count()
        };
        assert_eq!(lines("restarts"), 2, "{}", vm.name);
        assert!(lines("upgrades") >= 2, "{}", vm.name);
    }
    lab.forge("upgrade n1").called("docker-machine").says(
        0,
        "Upgrading docker...\nRestarting docker...\n",
        "",
    );
    lab.forge("stop n1").ok();
    lab.forge("upgrade n1").called("docker-machine").says(
        1,
        "",
        "Error: machine must be running to upgrade.\n",
    );
    let ended = lab.forge("upgrade n1 n2").run().code(1);
    assert!(
        ended.stderr.contains("error: failed to upgrade machine `n1`\ncaused by: machine `n1` is not running: it is Stopped\n"),
        "{}", ended.stderr
    );
}

#[test]
fn what_one_machine_refuses_is_wished_of_none() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab.forge("create n2 --engine-label a=b").ok();
    let before = (lab.record("n1"), lab.record("n2"));
    let ended = lab
        .forge("provision n1 n2 --engine-opt label=a=c")
        .run()
        .code(2);
    assert!(ended.stderr.contains("contradict"), "{}", ended.stderr);
    assert_eq!((lab.record("n1"), lab.record("n2")), before);
}

/// What the engine of one machine was told by its file.
fn told(lab: &Lab, name: &str) -> Value {
    let claim = lab.record(name)["claim"].as_str().expect("a claim").parse();
    let folder = lab.provider.folder(claim.expect("a claim"));
    let text = std::fs::read(folder.join("root/etc/docker/daemon.json")).expect("a file");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn all_engines_of_a_cluster_are_told_the_same() {
    let lab = Lab::new();
    let options = "--engine-label rack=a --engine-opt log-level=debug --engine-registry-mirror https://m.example \
                   --engine-insecure-registry r.example:5000 --engine-env A=1 --engine-storage-driver overlay2 \
                   --tls-san swarm.example --engine-packages docker.io";
    lab.forge(&format!("cluster up --managers 1 --workers 1 {options}"))
        .ok();
    let is_told = |name: &str, rack: &str| {
        let told = told(&lab, name);
        for (key, value) in [
            ("labels", json!([format!("rack={rack}")])),
            ("log-level", json!("debug")),
            ("registry-mirrors", json!(["https://m.example"])),
            ("insecure-registries", json!(["r.example:5000"])),
            ("storage-driver", json!("overlay2")),
        ] {
            assert_eq!(told[key], value, "{name}: {told}");
        }
        let record = lab.record(name);
        assert_eq!(record["engine"]["env"], json!(["A=1"]), "{name}");
        let install = json!({"packages": ["docker.io"]});
        assert_eq!(record["engine"]["install"], install, "{name}");
        let names = record["tls"]["names"].to_string();
        assert!(names.contains("swarm.example"), "{name}: {names}");
    };
    is_told("default-m1", "a");
    is_told("default-w1", "a");
    // The same once more, or nothing of it: nothing is changed. Machines that come later are told it, too.
    for words in [
        format!("cluster up {options} --json"),
        "cluster up --json".to_owned(),
    ] {
        let again = lab
            .forge(&words)
            .env("FORGE_ENGINE_REGISTRY_MIRROR", "https://other.example");
        assert_eq!(again.ok().summary()["changed"], 0, "{words}");
    }
    lab.forge("cluster up --workers 2").ok();
    is_told("default-w2", "a");
    // Something else is not told behind the back of those that are there.
    let before = files(&lab.home.join("clusters"));
    for words in [
        "cluster up --engine-label rack=b",
        "cluster up --engine-label rack=b --dry-run",
    ] {
        let refused = lab.forge(words).run().code(1);
        for said in [
            "made with: default-m1, default-w1, default-w2\n",
            "hint: `forge provision default-m1 default-w1 default-w2` with these options",
        ] {
            assert!(refused.stderr.contains(said), "{words}: {}", refused.stderr);
        }
    }
    let san = lab.forge("cluster up --tls-san other.example").run();
    assert_eq!(san.code, 1, "{}", san.stderr);
    assert_eq!(files(&lab.home.join("clusters")), before);
    lab.forge("provision default-m1 default-w1 default-w2 --engine-label rack=b")
        .ok();
    let more = lab
        .forge("cluster up --workers 3 --engine-label rack=b")
        .ok();
    assert!(!more.stderr.contains("warning"), "{}", more.stderr);
    for name in ["default-m1", "default-w1", "default-w3"] {
        is_told(name, "b");
    }
    // Where an engine comes from counts for machines that have none yet.
    let source = lab
        .forge("cluster up --workers 4 --engine-packages docker-ce")
        .ok();
    assert!(
        source
            .stderr
            .contains("warning: only machines that are made from now on"),
        "{}",
        source.stderr
    );
    let install = |name: &str| lab.record(name)["engine"]["install"].clone();
    assert_eq!(install("default-w4"), json!({"packages": ["docker-ce"]}));
    assert_eq!(install("default-w3"), json!({"packages": ["docker.io"]}));
}

#[test]
fn engines_of_a_swarm_do_not_keep_their_containers() {
    let lab = Lab::new();
    for opt in ["live-restore", "--live-restore=true", "live-restore=1"] {
        let words = format!("cluster up --dry-run --engine-opt={opt}");
        let refused = lab.forge(&words).run().code(2);
        assert!(
            refused.stderr.contains(&format!(
                "`--engine-opt {opt}` is wished of the engines of a swarm\ncaused by: an engine in a swarm does not start with it\n"
            )),
            "{}",
            refused.stderr
        );
        assert_eq!(refused.stdout, "", "there is no plan");
    }
    lab.forge("cluster up --managers 1 --engine-opt live-restore=false")
        .ok();
    assert_eq!(told(&lab, "default-m1")["live-restore"], false);
}

#[test]
fn what_a_machine_said_is_printed_by_its_sources() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let log = root(&lab).join("var/log");
    std::fs::create_dir_all(&log).expect("a folder");
    let long = "x".repeat(1000);
    std::fs::write(log.join("docker.log"), format!("one\ntwo\n{long}\n")).expect("written");
    lab.forge("logs n1 --source engine -n 2")
        .says(0, &format!("== engine ==\ntwo\n{long}\n"), "");
    let all = lab.forge("logs n1 --json").ok();
    let sources: Vec<Value> = all
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|part| part["source"].clone())
        .collect();
    assert!(
        sources.ends_with(&[json!("first boot"), json!("engine")]),
        "{sources:?}"
    );
    // A host of others was there before.
    let mut record = lab.record("n1");
    record["adopted"] = json!({"host": "h"});
    put(&lab, "n1", &record);
    let ended = lab.forge("logs n1 --source first-boot").run().code(1);
    assert!(
        ended
            .stderr
            .starts_with("error: machine `n1` was there before forge: "),
        "{}",
        ended.stderr
    );
}
