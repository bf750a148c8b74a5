//! Settings: what counts before what, where each value came from, and what cannot be one.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Lab, Run};
use forge_driver::fake::Knob;
use serde_json::{Value, json};

/// The user's file.
fn users(lab: &Lab, text: &str) -> PathBuf {
    let path = lab.folder().join(".config/forge/forge.toml");
    fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
    fs::write(&path, text).expect("written");
    path
}

/// The store's file.
fn stores(lab: &Lab, text: &str) -> PathBuf {
    let path = lab.home.join("forge.toml");
    fs::create_dir_all(&lab.home).expect("mkdir");
    fs::set_permissions(&lab.home, fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::write(&path, text).expect("written");
    path
}

/// A setting, as `config show` has it.
fn setting(run: Run, name: &str) -> Value {
    let all = run.ok().json();
    let found = all.as_array().expect("a list").iter();
    let mut found = found.filter(|setting| setting["setting"] == name);
    let one = found.next().unwrap_or_else(|| panic!("{name}: {all}"));
    assert!(found.next().is_none(), "{name} is there twice");
    one.clone()
}

#[test]
fn each_way_counts_before_the_next_and_says_so() {
    let lab = Lab::bare();
    let show = || {
        lab.forge("config show --json")
            .without("FORGE_TIMEOUT")
            .without("FORGE_DRIVER")
    };
    let seen = |run: Run, name: &str| {
        let setting = setting(run, name);
        (setting["value"].clone(), setting["origin"].clone())
    };
    assert_eq!(
        seen(show(), "timeout"),
        (Value::Null, json!({"from": "default"}))
    );
    assert_eq!(setting(show(), "timeout")["default"], "600");
    let path = users(&lab, "# mine\ntimeout = 700\ndriver = \"qemu\"\n");
    let file = |path: &Path, line: u32| {
        let path = path.display().to_string();
        let path = path.replace(&lab.home.display().to_string(), "HOME");
        json!({"from": "file", "file": path, "line": line})
    };
    assert_eq!(seen(show(), "timeout"), (json!("700"), file(&path, 2)));
    assert_eq!(seen(show(), "driver"), (json!("qemu"), file(&path, 3)));
    let store = stores(&lab, "driver = \"libvirt\"\n\ntimeout = 800\n");
    assert_eq!(seen(show(), "timeout"), (json!("800"), file(&store, 3)));
    let old = || show().env("MACHINE_DRIVER", "virtualbox");
    let variable = |name: &str| json!({"from": "variable", "variable": name});
    assert_eq!(
        seen(old(), "driver"),
        (json!("virtualbox"), variable("MACHINE_DRIVER"))
    );
    let own = || old().env("FORGE_DRIVER", "fake").env("FORGE_TIMEOUT", "30");
    assert_eq!(
        seen(own(), "driver"),
        (json!("fake"), variable("FORGE_DRIVER"))
    );
    assert_eq!(
        seen(own(), "timeout"),
        (json!("30"), variable("FORGE_TIMEOUT"))
    );
    let flag = lab.forge("--timeout 5 config show --json");
    assert_eq!(seen(flag, "timeout"), (json!("5"), json!({"from": "flag"})));
    // An empty variable says nothing.
    let empty = old().env("FORGE_DRIVER", "").env("MACHINE_DRIVER", "");
    assert_eq!(seen(empty, "driver"), (json!("libvirt"), file(&store, 1)));
    // As people read it.
    let text = lab.forge("config show").ok().stdout;
    let line = text.lines().find(|line| line.starts_with("driver "));
    let words: Vec<&str> = line.expect("a line").split_whitespace().collect();
    assert_eq!(
        words,
        [
            "driver",
            "fake",
            "variable",
            "FORGE_DRIVER",
            "FORGE_DRIVER,",
            "MACHINE_DRIVER"
        ]
    );
    assert!(text.starts_with("SETTING"), "{text}");
    let origin = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("timeout "));
        let words = line.expect("a line").split_whitespace().take(4);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(origin(&text)[..3], ["timeout", "30", "variable"]);
    let text = lab
        .forge("config show")
        .without("FORGE_TIMEOUT")
        .ok()
        .stdout;
    assert_eq!(origin(&text)[..3], ["timeout", "800", "HOME/forge.toml:3"]);
}

#[test]
fn machines_are_made_as_settings_say() {
    let lab = Lab::new();
    let create = |name: &str| {
        let run = lab.forge(&format!("create {name}"));
        run.without("FORGE_DRIVER")
    };
    create("n1").env("MACHINE_DRIVER", "fake").ok();
    assert_eq!(lab.record("n1")["driver"], "fake");
    let path = stores(&lab, "[create]\ndriver = \"fake\"\npublish = [18080]\n");
    let made = create("n2").ok();
    assert!(
        !made.stderr.contains("driver: "),
        "it was named: {}",
        made.stderr
    );
    assert_eq!(lab.record("n2")["driver"], "fake");
    let port = &lab.record("n2")["published"][0]["guest"];
    assert_eq!(port.to_string(), "18080");
    // A driver that is none is the file's fault, and machines stay what they are.
    fs::write(&path, "driver = \"nope\"\n").expect("written");
    let ended = create("n3").run().code(2);
    assert!(
        ended
            .stderr
            .starts_with("error: there is no driver `nope`\n"),
        "{}",
        ended.stderr
    );
    lab.forge("ls -q").says(0, "n1\nn2\n", "");
}

#[test]
fn the_users_file_says_where_the_store_is_and_variables_count_before_it() {
    let lab = Lab::bare();
    let there = lab.folder().join("there");
    users(
        &lab,
        &format!("storage-path = {:?}\n", there.display().to_string()),
    );
    let show = || lab.forge("config show --json").without("FORGE_HOME");
    assert_eq!(setting(show(), "storage-path")["value"], json!(there));
    let other = lab.folder().join("other");
    let old = setting(show().env("MACHINE_STORAGE_PATH", &other), "storage-path");
    assert_eq!(old["value"], json!(other));
    assert_eq!(
        old["variables"],
        json!(["FORGE_HOME", "MACHINE_STORAGE_PATH"])
    );
    // It is gone by.
    lab.forge("create --driver none --url tcp://127.0.0.1:2376 n1")
        .without("FORGE_HOME")
        .ok();
    assert!(there.join("machines/n1/machine.json").exists());
    let listed = lab.forge("ls -q").without("FORGE_HOME").ok();
    assert_eq!(listed.stdout, "n1\n");
    lab.forge("ls -q").says(0, "", "");
    let path = stores(&lab, "\nstorage-path = \"/elsewhere\"\n");
    lab.forge("ls").says(
        2,
        "",
        "error: HOME/forge.toml:2: `storage-path`: the file of a store cannot say where the store is\n",
    );
    fs::remove_file(path).expect("removed");
    users(&lab, "storage-path = \"here/there\"\n");
    let ended = lab.forge("ls").run().code(2);
    assert!(
        ended
            .stderr
            .contains("caused by: `here/there` begins nowhere: in a file, paths are absolute\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_key_that_is_none_ends_every_command_with_file_and_line() {
    let lab = Lab::bare();
    stores(&lab, "timeout = 5\n[create]\nengin-label = [\"a=b\"]\n");
    for command in ["ls", "create n1", "config show", "env -u"] {
        lab.forge(command).says(
            2,
            "",
            "error: HOME/forge.toml:3: `forge create` has no flag `--engin-label`\nhint: `forge create --help` shows the flags\n",
        );
    }
    // Help is had all the same.
    lab.forge("create --help").ok();
    stores(&lab, "timeout = \"soon\"\n");
    lab.forge("ls").says(
        2,
        "",
        "error: HOME/forge.toml:1: `timeout` makes no sense\ncaused by: invalid value 'soon' for '--timeout <SECONDS>': invalid digit found in string\n",
    );
    let ended = lab.forge("ls --json").run().code(2);
    assert_eq!(ended.summary()["kind"], "usage");
}

#[test]
fn a_file_that_others_may_write_into_is_refused() {
    let lab = Lab::bare();
    let path = stores(&lab, "timeout = 5\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).expect("chmod");
    lab.forge("ls").says(
        1,
        "",
        "error: others may write into `HOME/forge.toml`\ncaused by: what it says decides which programs are run\nhint: `chmod go-w HOME/forge.toml`, if it is yours\n",
    );
}

#[test]
fn docker_machines_variables_of_switches_are_read_as_it_read_them() {
    let lab = Lab::bare();
    let show = |value: &str| {
        let run = lab.forge("config show --json");
        setting(
            run.env("VIRTUALBOX_NO_DNS_PROXY", value),
            "virtualbox.no-dns-proxy",
        )
    };
    assert_eq!(show("1")["value"], "true");
    assert_eq!(show("F")["value"], "false");
    assert_eq!(show("")["value"], Value::Null);
    let ended = lab
        .forge("config show")
        .env("VIRTUALBOX_NO_DNS_PROXY", "perhaps")
        .run()
        .code(2);
    assert_eq!(
        ended.stderr,
        "error: VIRTUALBOX_NO_DNS_PROXY is neither true nor false: `perhaps`\n"
    );
    let memory = lab
        .forge("config show --json")
        .env("VIRTUALBOX_MEMORY_SIZE", "2048");
    assert_eq!(setting(memory, "virtualbox.memory")["value"], "2048");
}

#[test]
fn a_machine_called_show_is_a_machine() {
    let lab = Lab::new();
    lab.forge("create show").ok();
    let config = lab.forge("config -- show").ok().stdout;
    assert!(config.starts_with("--tlsverify\n"), "{config}");
    // docker-machine had no settings to show.
    let there = lab
        .forge("config show")
        .called("docker-machine")
        .ok()
        .stdout;
    assert_eq!(there, config);
    assert!(lab.forge("config show").ok().stdout.starts_with("SETTING"));
}

#[test]
fn the_settings_that_the_readme_shows_are_some() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("the README");
    for block in readme.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        let lab = Lab::bare();
        users(&lab, text);
        lab.forge("config show").ok();
    }
}

#[test]
fn the_driver_kvm_is_libvirts_with_the_options_that_it_had_there() {
    let lab = Lab::bare();
    let create = |words: &str| {
        let run = lab.forge(&format!("create {words} --libvirt-virsh /nowhere/virsh n1"));
        run.without("FORGE_DRIVER").run().code(3).stderr
    };
    let said = create(
        "-d kvm --kvm-memory 2048 --kvm-disk-size 20000 --kvm-cpu-count 2 --kvm-network default --kvm-cache-mode none",
    );
    assert!(
        said.starts_with("warning: `--kvm-cache-mode` has no effect: "),
        "{said}"
    );
    assert!(said.contains("virsh"), "{said}");
    // An option of its own tells which driver is meant.
    let said = create("--kvm-memory 2048");
    assert!(
        said.starts_with("driver: libvirt (`--kvm-memory` is its option"),
        "{said}"
    );
    let ended = lab
        .forge("create -d kvm --kvm-boot2docker-url x n1")
        .run()
        .code(2);
    assert!(
        ended
            .stderr
            .starts_with("error: `--kvm-boot2docker-url` cannot be followed"),
        "{}",
        ended.stderr
    );
    let help = lab.forge("create -d kvm --help").ok().stdout;
    assert!(
        help.contains("--libvirt-memory") && !help.contains("kvm-io-mode"),
        "{help}"
    );
}

#[test]
fn settings_of_engines_are_for_machines_that_are_to_be_made() {
    let lab = Lab::new();
    stores(
        &lab,
        "engine-label = [\"a=b\"]\nengine-registry-mirror = \"https://a.example\"\n",
    );
    lab.forge("create n1")
        .env("ENGINE_REGISTRY_MIRROR", "https://b.example")
        .ok();
    let engine = lab.record("n1")["engine"].clone();
    assert_eq!(engine["labels"], json!(["a=b"]));
    assert_eq!(engine["mirrors"], json!(["https://b.example"]));
    stores(&lab, "engine-label = [\"c=d\"]\n");
    let again = lab.forge("provision n1 --json").ok();
    assert_eq!(again.summary()["changed"], 0);
    assert_eq!(lab.record("n1")["engine"], engine);
}

#[test]
fn an_empty_variable_says_nothing() {
    let lab = Lab::new();
    lab.forge("ls -q")
        .env("FORGE_TIMEOUT", "")
        .env("FORGE_DEBUG", "")
        .env("FORGE_TEMPLATES_DIR", "")
        .env("FORGE_PASSPHRASE_FILE", "")
        .env("FORGE_QEMU_MEMORY", "")
        .says(0, "", "");
    // The store is the next one that is named.
    let show = lab.forge("config show --json").env("FORGE_HOME", "");
    let found = setting(show, "storage-path");
    assert_eq!(found["origin"], json!({"from": "default"}));
}

#[test]
fn a_line_of_a_file_answers_for_itself_alone() {
    let lab = Lab::new();
    let path = users(&lab, "[qemu]\nmemory = 2048\ncpus = 2\n");
    let create = |cpus: &str| {
        lab.forge("create -d qemu --dry-run n1")
            .env("FORGE_QEMU_CPUS", cpus)
            .run()
            .code(2)
            .stderr
    };
    let said = create("x");
    assert!(
        said.contains("'x' for '--qemu-cpus") && !said.contains("forge.toml"),
        "{said}"
    );
    assert!(create("1").starts_with("error: `--dry-run` is for hosts"));
    fs::write(&path, "[qemu]\nmemory = \"x\"\n").expect("written");
    let said = create("1");
    assert!(
        said.contains("forge.toml:2: `qemu-memory` makes no sense"),
        "{said}"
    );
}

#[test]
fn a_flag_counts_before_a_setting_of_the_same_thing() {
    let lab = Lab::new();
    stores(&lab, "[create]\nengine-packages = [\"docker-ce\"]\n");
    lab.forge("create n1").ok();
    let install = |name: &str| lab.record(name)["engine"]["install"].clone();
    let packages = install("n1");
    assert!(packages.to_string().contains("docker-ce"), "{packages}");
    lab.forge("create n2 --engine-install-url https://a.example/get")
        .ok();
    let url = install("n2").to_string();
    assert!(
        url.contains("https://a.example/get") && !url.contains("docker-ce"),
        "{url}"
    );
    lab.forge("create n3 --engine-packages podman-docker")
        .env("FORGE_ENGINE_INSTALL_URL", "https://b.example/get")
        .ok();
    let packages = install("n3").to_string();
    assert!(
        packages.contains("podman-docker") && !packages.contains("b.example"),
        "{packages}"
    );
}

#[test]
fn what_asks_many_machines_has_a_wait_of_its_own() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let path = stores(
        &lab,
        "timeout = 900\n[ls]\ntimeout = 2\n[status]\ntimeout = 1\n",
    );
    lab.turn(Knob::HoldObserve, true);
    // The variable of all waits, which these tests set, is not about it.
    let list = |more: &[&str]| lab.words(&[&["ls", "-f", "{{.ResponseTime}}"], more].concat());
    list(&[]).says(0, "2s\n", "");
    list(&[]).env("FORGE_WAIT", "1").says(0, "1s\n", "");
    list(&["-t", "1"])
        .env("FORGE_WAIT", "20")
        .says(0, "1s\n", "");
    let start = Instant::now();
    let status = lab.forge("status n1").run();
    assert_eq!(status.stdout, "Timeout\n", "{}", status.stderr);
    assert!(start.elapsed() < Duration::from_secs(8));
    lab.turn(Knob::HoldObserve, false);
    let show = || lab.forge("config show --json");
    let found = setting(show(), "ls.timeout");
    assert_eq!(
        (&found["value"], &found["default"], &found["origin"]["line"]),
        (&json!("2"), &json!("10"), &json!(3))
    );
    let found = setting(show().env("FORGE_WAIT", "7"), "ls.timeout");
    assert_eq!(
        (&found["value"], &found["origin"]["variable"]),
        (&json!("7"), &json!("FORGE_WAIT"))
    );
    fs::write(&path, "[ls]\ntimeout = 0\n").expect("written");
    let wrong = lab.forge("ls").run().code(2);
    assert!(
        wrong
            .stderr
            .contains("forge.toml:2: `timeout` makes no sense"),
        "{}",
        wrong.stderr
    );
}
