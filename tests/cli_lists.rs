//! What `ls` and `inspect` show of machines: filters, templates, and the time that silent ones take.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{FORGE, Lab, Run};
use forge_driver::fake::Knob;
use serde_json::{Value, json};

/// The machines n1, n2 and n10, of which n2 is off.
fn three() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1 n2 n10").ok();
    lab.forge("stop n2").ok();
    lab
}

fn url(lab: &Lab, name: &str) -> String {
    format!("tcp://{}:2376", lab.address(name))
}

/// The same binary by the name of the program that it replaces.
fn docker_machine<'a>(lab: &'a Lab, words: &[&str]) -> Run<'a> {
    let link: PathBuf = lab.folder().join("docker-machine");
    if !link.exists() {
        std::os::unix::fs::symlink(FORGE, &link).expect("a link");
    }
    lab.forge("").under(&link.display().to_string(), words, &[])
}

#[test]
fn filters_choose_by_name_state_driver_and_cluster() {
    let lab = three();
    for (words, names) in [
        ("--filter name=^n1", "n1\nn10\n"),
        ("--filter name=1$ --filter name=2", "n1\nn2\n"),
        ("--filter state=running", "n1\nn10\n"),
        ("--filter STATE=Stopped --filter state=Saved", "n2\n"),
        ("--filter name=n1 --filter state=Stopped", ""),
        ("--filter driver=FAKE", "n1\nn2\nn10\n"),
        (
            "--filter driver=fake --filter driver=qemu --filter name=2",
            "n2\n",
        ),
        ("--filter driver=qemu", ""),
        ("--filter swarm=k1", ""),
        ("--filter label=zone=z1", ""),
    ] {
        lab.forge(&format!("ls -q {words}")).says(0, names, "");
        let listed = lab.forge(&format!("ls --json {words}")).ok().json();
        let listed: Vec<String> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|row| format!("{}\n", row["name"].as_str().expect("a name")))
            .collect();
        assert_eq!(listed.concat(), names, "{words}");
    }
    lab.alter("n10", |record| {
        record["member"] = json!({"cluster": "k1", "role": "manager", "zone": "z1"});
    });
    lab.forge("ls -q --filter swarm=K1").says(0, "n10\n", "");
}

#[test]
fn a_filter_that_makes_no_sense_is_an_error_before_anything_is_asked() {
    let hint = "hint: write `driver=`, `state=`, `name=REGEX`, `label=KEY=VALUE` or `swarm=`\n";
    for (filter, says) in [
        (
            "label=x",
            "error: unsupported filter syntax: `label=x`\ncaused by: a label has a value\n",
        ),
        ("running", "error: unsupported filter syntax: `running`\n"),
        ("color=red", "error: unsupported filter key `color`\n"),
        (
            "name=[",
            "error: `[` is not a regular expression\ncaused by: unclosed character class\n",
        ),
    ] {
        for lab in [Lab::bare(), Lab::new()] {
            let says = format!("{says}{hint}");
            lab.words(&["ls", "--filter", filter]).says(1, "", &says);
            lab.words(&["ls", "-q", "--filter", filter])
                .says(1, "", &says);
            assert_eq!(lab.provider.calls(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_list_follows_a_template() {
    let lab = three();
    let (n1, n10) = (url(&lab, "n1"), url(&lab, "n10"));
    lab.words(&["ls", "-f", "{{.Name}}: {{.DriverName}} - {{.State}}"])
        .says(
            0,
            "n1: fake - Running\nn2: fake - Stopped\nn10: fake - Running\n",
            "",
        );
    lab.words(&["ls", "--format", r"{{.Name}}\t{{.URL}}"]).says(
        0,
        &format!("n1\t{n1}\nn2\t\nn10\t{n10}\n"),
        "",
    );
    let width = n1.len().max(n10.len());
    let table = format!(
        "NAME   {:<width$}   DOCKER\nn1     {n1:<width$}   v0.0.0\nn2     {:<width$}   \nn10    {n10:<width$}   v0.0.0\n",
        "URL", ""
    );
    lab.words(&["ls", "-f", r"table {{.Name}}\t{{.URL}}\t{{.DockerVersion}}"])
        .says(0, &table, "");
    lab.words(&[
        "ls",
        "-f",
        "{{.Active}}{{.ActiveHost}}{{.ActiveSwarm}}",
        "--filter",
        "name=10",
    ])
    .env("DOCKER_HOST", &n10)
    .says(0, "*truefalse\n", "");
    lab.words(&[
        "ls",
        "-f",
        "{{if eq .State \"Stopped\"}}{{.Name}} is off{{end}}",
    ])
    .says(0, "\nn2 is off\n\n", "");
    let row = lab
        .words(&["ls", "-f", "{{json .}}", "--filter", "name=2"])
        .ok();
    let row = row.json();
    assert_eq!(
        (&row["State"], &row["Error"]),
        (&"Stopped".into(), &"".into())
    );
    assert_eq!(row["EngineOptions"]["Labels"], json!([]));
    assert!(
        row["ResponseTime"]
            .as_str()
            .is_some_and(|time| time.ends_with('s'))
    );
}

#[test]
fn names_by_a_template_need_no_provider() {
    let lab = three();
    let before = lab.provider.calls().len();
    lab.turn(Knob::Down, true);
    lab.words(&["ls", "-f", "{{.Name}} {{.DriverName}}"]).says(
        0,
        "n1 fake\nn2 fake\nn10 fake\n",
        "",
    );
    lab.words(&["ls", "-q", "--filter", "driver=fake"])
        .says(0, "n1\nn2\nn10\n", "");
    assert_eq!(lab.provider.calls().len(), before);
}

#[test]
fn a_template_that_is_not_understood_names_what_and_prints_nothing() {
    let lab = three();
    for (template, cause) in [
        ("{{frobnicate .}}", "function `frobnicate` is not defined"),
        ("{{.Name}}{{end}}", "`{{end}}` ends no block"),
        ("{{if .Name}}", "`{{if …}}` is not ended by `{{end}}`"),
    ] {
        for words in [
            ["ls", "-f", template, "--json"],
            ["inspect", "-f", template, "n1"],
        ] {
            let ended = lab.words(&words).run().code(1);
            assert_eq!(
                ended.stderr.lines().next(),
                Some("error: template parsing error")
            );
            assert!(ended.stderr.contains(cause), "{}", ended.stderr);
        }
        lab.words(&["ls", "-f", template]).run().code(1);
    }
    let ended = lab
        .words(&["ls", "-f", "{{.Name}} {{.Nope}}"])
        .run()
        .code(1);
    assert_eq!(ended.stdout, "");
    assert!(
        ended.stderr.starts_with(
            "error: the template does not fit\ncaused by: there is no field `Nope`\nhint: the fields are `Active`, "
        ),
        "{}",
        ended.stderr
    );
}

#[test]
fn the_table_of_docker_machine_is_the_one_that_scripts_know() {
    let lab = three();
    lab.alter("n10", |record| {
        record["member"] = json!({"cluster": "k1", "role": "manager", "zone": "z1"});
    });
    let (n1, n10) = (url(&lab, "n1"), url(&lab, "n10"));
    let width = n1.len().max(n10.len());
    let table = format!(
        "NAME   ACTIVE   DRIVER   STATE     {:<width$}   SWARM         DOCKER    ERRORS\n\
         n1     *        fake     Running   {n1:<width$}                 v0.0.0    \n\
         n2     -        fake     Stopped   {:<width$}                 Unknown   \n\
         n10    -        fake     Running   {n10:<width$}   k1 (master)   v0.0.0    \n",
        "URL", ""
    );
    docker_machine(&lab, &["ls"])
        .env("DOCKER_HOST", &n1)
        .says(0, &table, "");
    docker_machine(&lab, &["ls", "-q"]).says(0, "n1\nn2\nn10\n", "");
    fs::remove_dir_all(lab.home.join("machines")).expect("removed");
    docker_machine(&lab, &["ls"]).says(
        0,
        "NAME   ACTIVE   DRIVER   STATE   URL   SWARM   DOCKER   ERRORS\n",
        "",
    );
}

#[test]
fn a_silent_host_hides_nobody_and_takes_one_wait() {
    let lab = three();
    for (name, host) in [("n1", "a"), ("n2", "b"), ("n10", "b")] {
        lab.alter(name, |record| record["config"]["host"] = host.into());
    }
    let held = lab.record("n1")["claim"]
        .as_str()
        .expect("a claim")
        .to_owned();
    fs::write(lab.provider.root().join(Knob::HoldObserve.file()), &held).expect("held");
    let before = lab.provider.calls().len();
    let listed = lab.forge("ls --json -t 1").ok().json();
    let seen = |at: usize| {
        let row = &listed[at];
        ["name", "state", "engine", "error"].map(|field| row[field].as_str().map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(seen(0), [some("n1"), some("Timeout"), None, some("")]);
    assert_eq!(seen(1), [some("n2"), some("Stopped"), None, some("")]);
    assert_eq!(
        seen(2),
        [some("n10"), some("Running"), some("0.0.0"), some("")]
    );
    let mut calls = lab.provider.calls()[before..].to_vec();
    calls.sort();
    assert_eq!(calls, ["observe 1", "observe 2"]);
    // Two silent hosts are waited for at the same time.
    lab.turn(Knob::HoldObserve, true);
    lab.words(&["--timeout", "1", "ls", "-f", "{{.State}} {{.ResponseTime}}"])
        .says(0, "Timeout 1s\nTimeout 1s\nTimeout 1s\n", "");
    lab.forge("ls -q --filter state=timeout -t 1")
        .says(0, "n1\nn2\nn10\n", "");
    lab.turn(Knob::HoldObserve, false);
}

#[test]
fn an_engine_that_does_not_answer_is_told_and_its_machine_runs() {
    let lab = three();
    lab.turn(Knob::SilentEngine, true);
    let (n1, ip) = (url(&lab, "n1"), lab.address("n1"));
    let says = format!(
        "n1 Running {n1} Unknown the engine's port {ip}:2376 does not accept connections\n"
    );
    lab.words(&[
        "ls",
        "--filter",
        "name=n1$",
        "-f",
        "{{.Name}} {{.State}} {{.URL}} {{.DockerVersion}} {{.Error}}",
    ])
    .says(0, &says, "");
    lab.turn(Knob::SilentEngine, false);
    // Another certificate than this store's is none.
    let folder = lab.home.join("machines/n1");
    let other = Lab::new();
    other.forge("create n1").ok();
    fs::copy(other.home.join("machines/n1/ca.pem"), folder.join("ca.pem")).expect("copied");
    let listed = lab.forge("ls --json --filter name=n1$").ok().json();
    assert_eq!(listed[0]["engine"], Value::Null);
    let error = listed[0]["error"].as_str().expect("text");
    assert!(
        error.contains("the TLS handshake with the engine"),
        "{error}"
    );
}

#[test]
fn a_provider_that_cannot_be_asked_is_told() {
    let lab = three();
    lab.turn(Knob::Down, true);
    lab.words(&[
        "ls",
        "-f",
        "{{.Name}} {{.State}} {{.Error}}",
        "--filter",
        "name=n2",
    ])
    .says(0, "n2 Error the provider is down\n", "");
}

#[test]
fn a_thousand_names_are_listed_without_a_record_being_read() {
    let lab = Lab::new();
    lab.forge("ls").ok();
    lab.forge("create n1").ok();
    let machines = lab.home.join("machines");
    for number in 2..=1000 {
        let folder = machines.join(format!("n{number}"));
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("machine.json"), "no record").expect("a file");
    }
    fs::create_dir(machines.join("cut-off")).expect("a folder");
    // Whoever opens this one to read it waits for ever.
    let unread = machines.join("n500/machine.json");
    fs::remove_file(&unread).expect("removed");
    lab.forge("").under("mkfifo", &[], &[&unread]).ok();
    lab.turn(Knob::Down, true);
    let before = lab.provider.calls().len();
    let names = lab.forge("ls -q").ok().stdout;
    let expected: Vec<String> = (1..=1000).map(|number| format!("n{number}")).collect();
    assert_eq!(names.lines().collect::<Vec<_>>(), expected);
    let some = lab.forge("ls -q --filter name=^n99.$").ok().stdout;
    assert_eq!(some.lines().count(), 10);
    assert_eq!(lab.provider.calls().len(), before);
}

#[test]
fn a_filter_by_label_asks_what_the_engine_was_told() {
    let lab = three();
    lab.alter("n10", |record| {
        record["engine"]["labels"] = json!(["zone=z1", "disk=fast"]);
    });
    lab.forge("ls -q --filter label=zone=Z1")
        .says(0, "n10\n", "");
    lab.forge("ls -q --filter label=zone=z2 --filter label=disk=fast")
        .says(0, "n10\n", "");
    lab.forge("ls -q --filter label=zone=z2").says(0, "", "");
    lab.words(&[
        "ls",
        "-f",
        "{{.Name}}{{range .EngineOptions.Labels}} {{.}}{{end}}",
    ])
    .says(0, "n1\nn2\nn10 zone=z1 disk=fast\n", "");
}

#[test]
fn inspect_has_docker_machine_s_names_and_forge_s_record() {
    let lab = three();
    let ip = lab.address("n1");
    for (template, says) in [
        (
            "{{.Name}} {{.DriverName}} {{.ConfigVersion}}",
            "n1 fake 3".to_owned(),
        ),
        ("{{.Driver.IPAddress}}", ip.clone()),
        (
            "{{.Driver.SSHUser}}:{{.Driver.SSHPort}} {{.Driver.MachineName}}",
            "forge:22 n1".to_owned(),
        ),
        (
            "{{.Driver.SSHKeyPath}}",
            "HOME/machines/n1/id_rsa".to_owned(),
        ),
        (
            "{{.HostOptions.AuthOptions.StorePath}}",
            "HOME/machines/n1".to_owned(),
        ),
        (
            "{{.HostOptions.AuthOptions.ClientCertPath}}",
            "HOME/certs/cert.pem".to_owned(),
        ),
        (
            "{{json .HostOptions.EngineOptions.Labels}}",
            "[]".to_owned(),
        ),
        ("{{.Forge.stage}} {{.Nope}}", "ready <no value>".to_owned()),
    ] {
        lab.words(&["inspect", "-f", template, "n1"])
            .says(0, &format!("{says}\n"), "");
    }
    let driver = lab
        .words(&["inspect", "--format={{prettyjson .Driver}}", "n1"])
        .ok();
    assert!(driver.stdout.starts_with("{\n    \""), "{}", driver.stdout);
    assert_eq!(driver.json()["IPAddress"], ip);
    lab.words(&["inspect", "-f", "{{.Driver.MachineName}}", "n1", "n10"])
        .says(0, "n1\nn10\n", "");
    // The record is there whole, and first stands what scripts look for.
    let mut record = lab.record("n1");
    record.as_object_mut().expect("a record").remove("format");
    let shown = lab.forge("inspect n1").ok();
    assert!(
        shown.stdout.starts_with(
            "{\n    \"ConfigVersion\": 3,\n    \"Driver\": {\n        \"IPAddress\": "
        )
    );
    assert_eq!(shown.json()["Forge"], record);
    assert_eq!(lab.forge("inspect --json n1").ok().json(), record);
    assert!(!shown.stdout.contains("PRIVATE KEY"));
}

#[test]
fn names_alone_are_a_list_in_json() {
    let lab = Lab::new();
    assert_eq!(lab.forge("ls -q --json").ok().json(), json!([]));
    lab.forge("create n1 n2").ok();
    assert_eq!(lab.forge("ls -q --json").ok().json(), json!(["n1", "n2"]));
    let filtered = lab
        .forge("ls -q --json --filter state=Running --filter name=2")
        .ok();
    assert_eq!(filtered.json(), json!(["n2"]));
}
