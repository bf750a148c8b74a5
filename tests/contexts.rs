//! Contexts of docker's that lead to machines, as the real client sees them.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::sshd::put;
use common::{Lab, Run};
use serde_json::{Value, json};

/// The folder that docker keeps the context `n1` in: its SHA-256.
const N1: &str = "676b8bb84ce7267dd520deca4811c8f10a53e636352f06987f42fe425acedd80";

fn made(names: &str) -> Lab {
    let lab = Lab::new();
    lab.forge(&format!("create {names}")).ok();
    lab
}

/// docker's own folder, of the test's user.
fn docker_folder(lab: &Lab) -> PathBuf {
    lab.folder().join(".docker")
}

fn docker<'a>(lab: &'a Lab, words: &[&str]) -> Run<'a> {
    // Where the setup of the tests keeps the client that it fetched.
    let cache = std::env::var_os("FORGE_LAB_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/forge-lab"),
        PathBuf::from,
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::env::split_paths(&path).chain(std::iter::once(cache.join("bin"))),
    );
    let path = path.expect("a path");
    lab.forge("").env("PATH", path).under("docker", words, &[])
}

/// What docker knows of a context.
fn inspected(lab: &Lab, context: &str) -> Value {
    docker(lab, &["context", "inspect", context]).ok().json()[0].clone()
}

fn chosen(lab: &Lab) -> String {
    docker(lab, &["context", "show"]).ok().stdout
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn use_makes_a_context_and_chooses_it_and_the_machine_takes_it_along() {
    let lab = made("n1");
    lab.forge("use n1")
        .says(0, "", "docker's context is `n1` now\n");
    let folder = docker_folder(&lab);
    // To the byte what docker writes.
    let id = json_of(&lab.home.join("store.json"))["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let meta = folder.join("contexts/meta").join(N1).join("meta.json");
    let address = lab.address("n1");
    assert_eq!(
        fs::read_to_string(&meta).expect("a file"),
        format!(
            r#"{{"Endpoints":{{"docker":{{"Host":"tcp://{address}:2376","SkipTLSVerify":false}}}},"Metadata":{{"Description":"machine n1 of forge, store {id}"}},"Name":"n1"}}"#
        )
    );
    let tls = folder.join("contexts/tls").join(N1).join("docker");
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let machine = fs::read(lab.home.join("machines/n1").join(name)).expect("a file");
        assert_eq!(fs::read(tls.join(name)).expect("a file"), machine, "{name}");
        assert_eq!(mode(&tls.join(name)), 0o600, "{name}");
    }
    for folder in [&folder, &tls] {
        assert_eq!(mode(folder), 0o700);
    }
    assert_eq!(
        fs::read_to_string(folder.join("config.json")).expect("a file"),
        "{\n\t\"currentContext\": \"n1\"\n}"
    );
    // As docker reads it.
    assert_eq!(chosen(&lab), "n1\n");
    let seen = inspected(&lab, "n1");
    assert_eq!(
        seen["Endpoints"]["docker"]["Host"],
        format!("tcp://{address}:2376")
    );
    assert_eq!(
        seen["TLSMaterial"]["docker"],
        json!(["ca.pem", "cert.pem", "key.pem"])
    );
    let listed = docker(
        &lab,
        &[
            "context",
            "ls",
            "--format",
            "{{.Name}} {{.Current}} {{.Description}}",
        ],
    );
    let listed = listed.ok().stdout;
    assert!(
        listed.contains(&format!("n1 true machine n1 of forge, store {id}\n")),
        "{listed}"
    );
    // Once more changes nothing.
    lab.forge("use n1").ok();
    // Back to this host, and the context stays.
    lab.forge("use --none")
        .says(0, "", "docker has no context now: it talks to this host\n");
    assert_eq!(chosen(&lab), "default\n");
    assert_eq!(
        fs::read_to_string(folder.join("config.json")).expect("a file"),
        "{}"
    );
    inspected(&lab, "n1");
    let chosen_again = lab.forge("use n1 --json").ok();
    assert_eq!(
        chosen_again.json(),
        json!({"context": "n1", "overridden_by": null})
    );
    lab.forge("rm -y n1").ok();
    assert_eq!(chosen(&lab), "default\n");
    assert!(!meta.exists() && !folder.join("contexts/tls").join(N1).exists());
}

#[test]
fn a_context_follows_its_machine() {
    let lab = made("n1 n2");
    lab.forge("use n1").ok();
    let folder = docker_folder(&lab);
    let meta = folder.join("contexts/meta").join(N1).join("meta.json");
    let key = folder.join("contexts/tls").join(N1).join("docker/key.pem");
    let (was, address) = (fs::read(&key).expect("a key"), lab.address("n1"));
    // As they would lie there after the certificates were renewed, and the machine had another address.
    let stale = |text: String| text.replace(&address, "192.0.2.7");
    for command in ["provision", "restart"] {
        fs::write(&key, "of old").expect("written");
        let text = fs::read_to_string(&meta).expect("text");
        fs::write(&meta, stale(text)).expect("written");
        assert!(inspected(&lab, "n1").to_string().contains("192.0.2.7"));
        lab.forge(&format!("{command} n1 n2")).ok();
        let host = inspected(&lab, "n1")["Endpoints"]["docker"]["Host"].clone();
        assert_eq!(host, format!("tcp://{address}:2376"), "{command}");
        assert_eq!(fs::read(&key).expect("a key"), was, "{command}");
    }
    // What nobody asked for is not made.
    let list = docker(&lab, &["context", "ls", "-q"]).ok().stdout;
    assert_eq!(list, "default\nn1\n");
}

#[test]
fn somebody_elses_context_is_left_alone() {
    let lab = made("n1");
    docker(
        &lab,
        &[
            "context",
            "create",
            "n1",
            "--docker",
            "host=tcp://192.0.2.1:2375",
        ],
    )
    .ok();
    docker(&lab, &["context", "use", "n1"]).ok();
    let before = common::files(&docker_folder(&lab));
    let refused = lab.forge("use n1").run().code(1);
    assert_eq!(
        refused.stderr.lines().take(2).collect::<Vec<_>>(),
        [
            "error: docker has a context `n1` that is not this machine's",
            "hint: `docker context inspect n1` shows it, `docker context rm n1` makes room; `eval $(forge env n1)` needs none",
        ]
    );
    let env = lab.forge("env --context n1").run().code(1);
    assert_eq!(env.stdout, "");
    lab.forge("provision n1").ok();
    lab.forge("rm -y n1").ok();
    assert_eq!(common::files(&docker_folder(&lab)), before);
    assert_eq!(chosen(&lab), "n1\n");
}

#[test]
fn a_context_that_a_store_of_the_same_machine_name_made_is_not_this_ones() {
    let (lab, other) = (made("n1"), made("n1"));
    let folder = docker_folder(&lab);
    lab.forge("use n1").ok();
    let ended = other
        .forge("use n1")
        .env("DOCKER_CONFIG", &folder)
        .run()
        .code(1);
    assert!(
        ended.stderr.contains("not this machine's"),
        "{}",
        ended.stderr
    );
    other.forge("rm -y n1").env("DOCKER_CONFIG", &folder).ok();
    assert_eq!(chosen(&lab), "n1\n");
}

#[test]
fn other_keys_of_the_configuration_are_kept_and_a_broken_one_is_left() {
    let lab = made("default");
    let folder = lab.folder().join("elsewhere");
    fs::create_dir(&folder).expect("mkdir");
    let config = folder.join("config.json");
    let kept = json!({"auths": {"registry.example": {"auth": "eDp5"}}, "credsStore": "pass", "proxies": {"default": {"noProxy": "*.example"}}});
    fs::write(&config, kept.to_string()).expect("written");
    // `default` is docker's own word.
    let ended = lab.forge("use").env("DOCKER_CONFIG", &folder).ok();
    assert_eq!(ended.stderr, "docker's context is `forge-default` now\n");
    let mut expected = kept.clone();
    expected["currentContext"] = json!("forge-default");
    assert_eq!(json_of(&config), expected);
    assert!(!docker_folder(&lab).exists());
    fs::write(&config, "{\"auths\":").expect("written");
    let ended = lab
        .forge("use default")
        .env("DOCKER_CONFIG", &folder)
        .run()
        .code(1);
    assert!(
        ended
            .stderr
            .starts_with("error: failed to read docker's configuration `"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read_to_string(&config).expect("text"), "{\"auths\":");
    // A machine goes also where docker's folder is out of order: it says what stays.
    let ended = lab
        .forge("rm -y default")
        .env("DOCKER_CONFIG", &folder)
        .ok();
    assert!(
        ended
            .stderr
            .contains("docker's context of machine `default` stays: "),
        "{}",
        ended.stderr
    );
    lab.provider_is_empty("after rm");
}

#[test]
fn what_counts_before_a_chosen_context_is_named() {
    let lab = made("n1");
    let said = |name: &str| lab.forge("use n1").env(name, "x").ok().stderr;
    assert_eq!(
        said("DOCKER_HOST"),
        "docker's context is `n1` now\nwarning: DOCKER_HOST is set and counts before any chosen context: `eval $(forge env -u)` takes it away\n"
    );
    assert!(said("DOCKER_CONTEXT").ends_with("`unset DOCKER_CONTEXT` takes it away\n"));
    let json = lab.forge("use n1 --json").env("DOCKER_HOST", "x").ok();
    assert_eq!(json.json()["overridden_by"], "DOCKER_HOST");
    lab.forge("use nope").says(
        1,
        "",
        "error: machine `nope` does not exist\nhint: `forge ls` shows the machines; `forge create` makes one\n",
    );
    let ended = lab.forge("use n1 --none").run().code(2);
    assert!(
        ended.stderr.contains("cannot be used with"),
        "{}",
        ended.stderr
    );
    let ended = lab.forge("use n1").without("HOME").run().code(2);
    assert!(
        ended.stderr.contains("set DOCKER_CONFIG"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_shell_alone_is_led_by_a_context() {
    let lab = made("n1");
    lab.forge("env --context n1 --shell bash").called("forge").says(
        0,
        "unset DOCKER_TLS_VERIFY;\nunset DOCKER_HOST;\nunset DOCKER_CERT_PATH;\nunset DOCKER_MACHINE_NAME;\nexport DOCKER_CONTEXT=\"n1\"\n\
         # Run this command to configure your shell: \n# eval $(forge env --context n1 --shell bash)\n",
        "",
    );
    // With quotes around it and without, as everybody has it in a profile.
    for eval in [
        "eval $(forge env --context n1)",
        "eval \"$(forge env --context n1)\"",
    ] {
        let script = format!(
            "export DOCKER_HOST=x DOCKER_TLS_VERIFY=1\n{eval}\necho \"${{DOCKER_HOST-none}} ${{DOCKER_TLS_VERIFY-none}} $DOCKER_CONTEXT\"\n\
             eval $(forge env -u --context)\necho \"${{DOCKER_CONTEXT-none}}\""
        );
        lab.bash(&script).says(0, "none none n1\nnone\n", "");
    }
    // Nothing is chosen for other shells.
    assert_eq!(chosen(&lab), "default\n");
    assert_eq!(
        docker(&lab, &["context", "show"])
            .env("DOCKER_CONTEXT", "n1")
            .ok()
            .stdout,
        "n1\n"
    );
    let json = lab.forge("env --context n1 --json").ok().json();
    assert_eq!(json, json!({"DOCKER_CONTEXT": "n1"}));
    assert_eq!(
        lab.forge("env -u --context --json").ok().json(),
        json!({"DOCKER_TLS_VERIFY": null, "DOCKER_HOST": null, "DOCKER_CERT_PATH": null, "DOCKER_MACHINE_NAME": null,
            "DOCKER_CONTEXT": null})
    );
    lab.forge("env --context --no-proxy n1").run().code(2);
    let unset = lab.forge("env -u --context --shell fish").ok().stdout;
    assert!(
        unset.contains("set -e DOCKER_HOST;\n") && unset.contains("set -e DOCKER_CONTEXT;\n"),
        "{unset}"
    );
    lab.forge("stop n1").ok();
    let off = lab.forge("env --context n1").run().code(1);
    assert_eq!(off.stdout, "");
}

#[test]
fn a_host_that_docker_cannot_reach_gets_no_context() {
    let lab = made("n1");
    let mut record = lab.record("n1");
    record["adopted"] =
        json!({"host": "inner", "jump": {"host": "gate", "port": 22, "user": "me", "accept": []}});
    put(&lab, "n1", &record);
    for words in ["use n1", "env --context n1"] {
        let ended = lab.forge(words).run().code(1);
        assert!(
            ended.stderr.starts_with(
                "error: machine `n1` is behind `gate`, and `docker` does not go through there\nhint: `forge ssh n1 -N -L "
            ),
            "{words}: {}",
            ended.stderr
        );
        assert_eq!(ended.stdout, "", "{words}");
        assert!(!docker_folder(&lab).exists(), "{words}");
    }
}
