//! forge's own playbooks about the engine, on machines that are folders, with stand-ins for what they call: an engine
//! that keeps containers exactly when the real one does.

use std::sync::Mutex;

use regex::Regex;

use super::super::compile::{Places, compile_with};
use super::super::parse::parse;
use super::*;
use crate::engine::found::Found;
use crate::engine::settings::{self, Settings, Started, Terms};
use crate::engine_options::EngineOptions;
use crate::machine::engine;

/// `docker info`, as the playbooks ask for it.
pub(super) const DOCKER: &str = r#"
s=DIR/state
[ -e $s/process ] || exit 1
case "$*" in
  *LiveRestoreEnabled*)
    echo "$(cat $s/process) $(cat $s/swarm) $(cat $s/containers)0"
    case "$*" in *ServerVersion*) echo "version 20.10"; echo "storage overlay2"; echo "swarm $(cat $s/swarm)" ;; esac
    ;;
  *Driver*) echo "storage overlay2"; echo "swarm $(cat $s/swarm)" ;;
esac
"#;
/// A service manager and the engine behind it. A stop ends containers unless the engine has `live-restore`, and so does
/// a start; in a swarm it does not start with it. The file `kill` ends the script at the call of that number.
const SYSTEMCTL: &str = r#"
s=DIR/state
echo "$*" >>$s/calls
count=$(cat $s/count)
count=$((count + 1))
echo $count >$s/count
# The shell that called, also where it did so through timeout(1).
caller() {
  [ "$(cat /proc/$PPID/comm)" != timeout ] || sed 's/.*) . \([0-9]*\) .*/\1/' /proc/$PPID/stat
  echo $PPID
}
die() { [ "$count" != "$(cat $s/kill 2>/dev/null)" ] || { echo 0 >$s/kill; kill -9 $(caller); exit 9; }; }
said() { grep -q "\"live-restore\": $1" DIR/etc/docker/daemon.json 2>/dev/null; }
wanted() { if said true; then echo true; else echo false; fi; }
[ -e $s/early ] || die
case $1 in
  enable)
    mkdir -p DIR/etc/systemd/system/multi-user.target.wants
    ln -sf /x DIR/etc/systemd/system/multi-user.target.wants/docker.service
    ;;
  reload)
    [ ! -e $s/deaf ] || exit 0
    # What the file does not say is left as it is (moby, daemon/reload.go).
    if said true || said false; then wanted >$s/process; fi
    ;;
  restart)
    [ ! -e $s/process ] || [ "$(cat $s/process)" = true ] || echo 0 >$s/containers
    rm -f $s/process DIR/run/systemd/units/invocation:docker.service
    : >$s/failed
    [ ! -e $s/broken ] && [ ! -e $s/limited ] || exit 1
    [ ! -e $s/broken-by ] || ! grep -qsf $s/broken-by DIR/etc/docker/daemon.json || exit 1
    case "$(wanted) $(cat $s/swarm)" in
      "true active") exit 1 ;;
      "false "*) echo 0 >$s/containers ;;
    esac
    wanted >$s/process
    rm -f $s/failed
    ln -sf x DIR/run/systemd/units/invocation:docker.service
    ;;
  is-failed) [ -e $s/failed ] || exit 1 ;;
  reset-failed)
    rm -f $s/limited
    echo "Unit docker.socket not loaded." >&2
    exit 1
    ;;
esac
[ ! -e $s/early ] || die
"#;

pub(super) struct Machine {
    pub(super) lab: Lab,
    /// No program of this host's is found there.
    alone: bool,
    /// Steps are tried again for as long as on a real one.
    pub(super) patient: bool,
    /// What steps said that they wait for.
    pub(super) waits: Mutex<Vec<String>>,
}

impl Machine {
    /// A machine with Debian's unit, an engine that runs, and two containers in it.
    pub(super) fn each() -> Vec<Self> {
        Lab::each().into_iter().map(Self::new).collect()
    }

    pub(super) fn new(lab: Lab) -> Self {
        let dir = lab.folder.path().display().to_string();
        let lab = Lab {
            shell: lab.shell.with_first(&format!("{dir}/stand-ins")),
            folder: lab.folder,
        };
        let machine = Self {
            lab,
            alone: false,
            patient: false,
            waits: Mutex::default(),
        };
        for folder in [
            "stand-ins",
            "state",
            "etc/docker",
            "run/systemd/system",
            "run/systemd/units",
            "lib/systemd/system",
        ] {
            fs::create_dir_all(machine.lab.path(folder)).expect("a folder");
        }
        machine.write("lib/systemd/system/docker.service", "[Service]\nEnvironmentFile=-/etc/default/docker\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\nKillMode=process\n");
        machine.write("etc/os-release", "ID=debian\n");
        for (name, text) in [
            ("docker", DOCKER),
            ("systemctl", SYSTEMCTL),
            ("dockerd", ""),
            ("journalctl", "echo 'level=fatal msg=\"no such key\"'"),
        ] {
            machine.stand_in(name, text);
        }
        for (name, text) in [
            ("count", "0"),
            ("swarm", "inactive"),
            ("containers", "2"),
            ("process", "false"),
        ] {
            machine.write(&format!("state/{name}"), text);
        }
        std::os::unix::fs::symlink(
            "x",
            machine
                .lab
                .path("run/systemd/units/invocation:docker.service"),
        )
        .expect("a link");
        machine
    }

    /// A machine of this distribution without an engine; its tool for packages logs what it is told, installs whatever it
    /// is asked for, and says that everything that is asked about is there.
    pub(super) fn bare(os: &str, tools: &[&str]) -> Self {
        let mut machine = Self::new(Lab::each().remove(1));
        machine.alone = true;
        machine.write("etc/os-release", os);
        for name in ["docker", "dockerd"] {
            fs::remove_file(machine.lab.path(&format!("stand-ins/{name}"))).expect("removed");
        }
        machine.stand_in(
            "engine",
            "for name in docker dockerd; do\n  printf '#!/bin/dash\\necho Docker version 2.0, build x\\n' >DIR/stand-ins/$name.new\n  chmod 755 DIR/stand-ins/$name.new\n  mv DIR/stand-ins/$name.new DIR/stand-ins/$name\ndone",
        );
        for tool in tools {
            machine.stand_in(
                tool,
                &format!("echo {tool} \"$@\" >>DIR/state/calls\ncase \" $* \" in *' install '* | *' add '* | *' -S '* ) DIR/stand-ins/engine ;; esac\n[ ! -e DIR/state/{tool} ] || . DIR/state/{tool}\n"),
            );
        }
        machine
    }

    pub(super) async fn install(
        &self,
        family: &str,
        packages: &[&str],
        asked: &str,
    ) -> Result<Report, Error> {
        let vars = Vars::new().with("packages", packages).with("asked", asked);
        self.play(&format!("engine/{family}"), &vars, &Secrets::new())
            .await
    }

    /// A program of the machine's; written by another process, so that none has it open when it is run.
    pub(super) fn stand_in(&self, name: &str, text: &str) {
        let text = text.replace("DIR", &self.lab.folder.path().display().to_string());
        let path = self.lab.path(&format!("stand-ins/{name}"));
        let status = std::process::Command::new("dash")
            .args([
                "-c",
                "printf '%s\\n' '#!/bin/dash' \"$2\" >\"$1\" && chmod 755 \"$1\"",
                "sh",
                &path,
                &text,
            ])
            .status()
            .expect("dash");
        assert!(status.success(), "{name}");
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.lab.path(name), text).expect("written");
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.lab.path(name)).unwrap_or_default()
    }

    pub(super) fn there(&self, name: &str) -> bool {
        Path::new(&self.lab.path(name)).exists()
    }

    /// A playbook of forge's, on this machine instead of a real one.
    pub(super) async fn play(
        &self,
        name: &str,
        vars: &Vars,
        secrets: &Secrets,
    ) -> Result<Report, Error> {
        let assets = forge_driver::assets::Assets::default();
        let dir = self.lab.folder.path().display().to_string();
        let paths = Regex::new(r#"([\s"'])/(etc|run|usr|lib|var)/"#).expect("a pattern");
        let text = assets
            .read(&format!("playbooks/{name}.yaml"))
            .expect("a playbook");
        let owner = format!("owner: '{}:{}', mode:", user(), group());
        let text = paths
            .replace_all(&text, format!("${{1}}{dir}/${{2}}/"))
            .replace("mode:", &owner)
            .replace(" /proc/[0-9]", &format!(" {dir}/proc/[0-9]"));
        // What fails here, fails again.
        let tried = if self.patient { "for: 300}" } else { "for: 1}" };
        let text = text.replace("for: 300}", tried);
        let mut playbook = parse(name, &text).expect("parses");
        playbook.templates = load(&assets, name).expect("loads").templates;
        let (state, run_dir) = (self.lab.path("state/due"), self.lab.path("run"));
        let places = Places {
            state: &state,
            run: &run_dir,
        };
        let mut job = compile_with(&[(&playbook, vars)], secrets, false, &places)?;
        for path in ["/etc/systemd/system/multi-user", "/etc/runlevels"] {
            job.script = job.script.replace(path, &format!("{dir}{path}"));
        }
        // The note of whose a host is: the library reads it.
        let note = "/var/lib/forge/before/done";
        let from = |dir: &str| format!(" <{dir}{note}");
        job.script = job.script.replace(&from(""), &from(&dir));
        if self.alone {
            job.script = job.script.replace(":/usr/sbin:/sbin:/usr/bin:/bin\n", "\n");
        }
        run(&self.lab.shell, &job, DEADLINE, &|step| {
            if step.status == Status::Waits {
                let said = format!("{}: {}", step.step, step.output);
                self.waits.lock().expect("the list").push(said);
            }
        })
        .await
    }

    pub(super) async fn look(&self, deep: bool) -> Found {
        let vars = Vars::new().with("deep", deep);
        let report = self
            .play("engine/found", &vars, &Secrets::new())
            .await
            .expect("found");
        let dir = self.lab.folder.path().display().to_string();
        let text = report.steps[0].output.replace(&dir, "");
        Found::read(&text).expect("read")
    }

    async fn provision(&self, options: &EngineOptions) -> Result<Report, Error> {
        let settings = self.settings(options).await?;
        self.told(&settings, "").await
    }

    /// What is found and what is wished, as one.
    pub(super) async fn settings(&self, options: &EngineOptions) -> Result<Settings, Error> {
        let deep = !options.opts.is_empty();
        let terms = Terms {
            listen: ([192, 0, 2, 7], 2376).into(),
            defaults: Map::new(),
            past: Vec::new(),
        };
        settings::merge(&self.look(deep).await, options, &terms)
    }

    /// Tells the engine; what changes is put aside in `former`.
    pub(super) async fn told(&self, settings: &Settings, former: &str) -> Result<Report, Error> {
        self.told_when(settings, former, false).await
    }

    /// The same, where nothing may have run in it a moment ago.
    async fn told_when(
        &self,
        settings: &Settings,
        former: &str,
        idle: bool,
    ) -> Result<Report, Error> {
        let mut settings = settings.clone();
        if let Started::OpenRc { path, .. } = &mut settings.start {
            *path = self.lab.path(path.trim_start_matches('/'));
        }
        let vars = engine::vars(&settings, "CA", "CERTIFICATE", None)
            .with("former", former)
            .with("idle", idle);
        let secrets = Secrets::new().with("server_key", "the key of the server");
        self.play("docker", &vars, &secrets).await
    }

    pub(super) fn containers(&self) -> String {
        self.read("state/containers").trim().to_owned()
    }

    /// The calls of the service manager since the last look at them.
    pub(super) fn calls(&self) -> String {
        let calls = self
            .read("state/calls")
            .lines()
            .collect::<Vec<_>>()
            .join(", ");
        self.write("state/calls", "");
        calls
    }
}

pub(super) fn labels(labels: &[&str]) -> EngineOptions {
    EngineOptions {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..EngineOptions::default()
    }
}

const RESTART: &str = "restart docker.service";
const RELOAD: &str = "reload docker.service";

#[tokio::test]
async fn containers_outlive_a_restart_and_a_second_run_changes_nothing() {
    for machine in Machine::each() {
        machine.provision(&labels(&["a=b"])).await.expect("first");
        assert_eq!(machine.containers(), "2");
        assert_eq!(
            machine.calls(),
            format!(
                "daemon-reload, enable -q docker.service, enable -q docker.socket, {RELOAD}, {RESTART}, {RELOAD}"
            )
        );
        let json = machine.read("etc/docker/daemon.json");
        assert_eq!(json, "{\n  \"labels\": [\n    \"a=b\"\n  ]\n}\n");
        assert_eq!(machine.read("state/process"), "false\n");
        assert!(!machine.there("var/lib/forge/daemon.json"));
        let before = files_of(&machine);
        let report = machine.provision(&labels(&["a=b"])).await.expect("second");
        assert_eq!(report.changed(), 0, "{:?}", report.steps);
        assert_eq!(files_of(&machine), before);
        assert_eq!(machine.calls(), "");
    }
}

/// Every file of the machine's, but for what the stand-ins remember.
fn files_of(machine: &Machine) -> Vec<(String, Vec<u8>)> {
    files_in(machine, &["etc", "var"])
}

impl Machine {
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        files_of(self)
    }

    pub(super) fn etc(&self) -> Vec<(String, Vec<u8>)> {
        files_in(self, &["etc"])
    }
}

fn files_in(machine: &Machine, names: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = names
        .iter()
        .map(|name| machine.lab.folder.path().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.display().to_string();
                found.push((name, fs::read(path).unwrap_or_default()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_others_wrote_comes_back_byte_by_byte() {
    for text in [
        "{ \"mtu\":  1400 }",
        "{\"mtu\": 1400, \"live-restore\": false}\n",
    ] {
        let machine = Machine::new(Lab::dash());
        machine.write("etc/docker/daemon.json", text);
        machine
            .provision(&EngineOptions::default())
            .await
            .expect("restarted");
        assert_eq!(machine.read("etc/docker/daemon.json"), text);
        assert_eq!(
            (
                machine.containers().as_str(),
                machine.read("state/process").as_str()
            ),
            ("2", "false\n")
        );
    }
    // Where there was none, none is left.
    let machine = Machine::new(Lab::dash());
    machine
        .provision(&EngineOptions::default())
        .await
        .expect("restarted");
    assert!(!machine.there("etc/docker/daemon.json"));
    assert_eq!(machine.containers(), "2");
}

#[tokio::test]
async fn an_engine_in_a_swarm_never_has_the_setting() {
    let machine = Machine::new(Lab::dash());
    machine.write("state/swarm", "active");
    machine
        .provision(&labels(&["a=b"]))
        .await
        .expect("restarted");
    let calls = machine.calls();
    assert!(
        calls.ends_with(RESTART) && !calls.contains(RELOAD),
        "{calls}"
    );
    let options = EngineOptions {
        opts: vec!["live-restore".to_owned()],
        ..EngineOptions::default()
    };
    let error = machine.provision(&options).await.expect_err("in a swarm");
    assert!(error.line().contains("in a swarm"), "{}", error.line());
    assert_eq!(machine.calls(), "");
}

#[tokio::test]
async fn a_start_that_systemd_refuses_after_many_is_asked_for_again() {
    for machine in Machine::each() {
        machine.write("state/limited", "");
        machine.provision(&labels(&["a=b"])).await.expect("started");
        let calls = machine.calls();
        assert!(
            calls.contains(&format!(
                "{RESTART}, reset-failed docker.service docker.socket, {RESTART}"
            )),
            "{calls}"
        );
        assert_eq!(machine.containers(), "2");
    }
}

#[tokio::test]
async fn an_idle_engine_is_asked_again_only_where_a_container_has_started_since() {
    for shim in ["containerd-shim", "docker-containe"] {
        let machine = Machine::new(Lab::dash());
        let settings = machine.settings(&labels(&["a=b"])).await.expect("settings");
        fs::create_dir_all(machine.lab.path("proc/7")).expect("a folder");
        machine.write("proc/7/comm", "containerd\n");
        machine.write("state/containers", "0");
        let former = machine.lab.path("var/lib/forge/former");
        machine.stand_in("docker", &format!("echo asked >>DIR/state/asked\n{DOCKER}"));
        machine
            .told_when(&settings, &former, true)
            .await
            .expect("restarted");
        assert!(machine.calls().ends_with(RESTART));
        assert!(!machine.there("state/asked"));
        machine.write("proc/7/comm", &format!("{shim}\n"));
        machine.write("state/containers", "1");
        let settings = machine.settings(&labels(&["a=c"])).await.expect("settings");
        machine
            .told_when(&settings, &former, true)
            .await
            .expect("restarted");
        assert!(machine.there("state/asked"));
        assert_eq!(machine.containers(), "1");
    }
}

#[tokio::test]
async fn an_engine_that_has_the_setting_keeps_it() {
    let machine = Machine::new(Lab::dash());
    machine.write("etc/docker/daemon.json", "{\"live-restore\": true}\n");
    machine.write("state/process", "true\n");
    machine
        .provision(&labels(&["a=b"]))
        .await
        .expect("restarted");
    assert_eq!(machine.containers(), "2");
    assert!(machine.calls().ends_with(RESTART));
    assert!(
        machine
            .read("etc/docker/daemon.json")
            .contains("\"live-restore\": true")
    );
    // Taken away by a wish: the containers of the moment are kept all the same.
    let options = EngineOptions {
        opts: vec!["live-restore=false".to_owned()],
        ..EngineOptions::default()
    };
    machine.provision(&options).await.expect("restarted");
    assert_eq!(
        (
            machine.containers().as_str(),
            machine.read("state/process").as_str()
        ),
        ("2", "false\n")
    );
}

#[tokio::test]
async fn with_no_container_there_is_nothing_to_keep() {
    let machine = Machine::new(Lab::dash());
    machine.write("state/containers", "0");
    machine
        .provision(&labels(&["a=b"]))
        .await
        .expect("restarted");
    assert!(!machine.calls().contains(RELOAD));
    // An engine that does not run is started.
    let machine = Machine::new(Lab::dash());
    fs::remove_file(
        machine
            .lab
            .path("run/systemd/units/invocation:docker.service"),
    )
    .expect("removed");
    fs::remove_file(machine.lab.path("state/process")).expect("removed");
    machine.provision(&labels(&["a=b"])).await.expect("started");
    assert!(!machine.calls().contains(RELOAD));
}

#[tokio::test]
async fn an_engine_that_does_not_take_the_setting_over_is_not_restarted() {
    let machine = Machine::new(Lab::dash());
    machine.stand_in("sleep", "");
    machine.write("state/deaf", "");
    let error = machine
        .provision(&labels(&["a=b"]))
        .await
        .expect_err("deaf");
    assert!(
        error.line().contains("it was not restarted"),
        "{}",
        error.line()
    );
    assert_eq!(machine.containers(), "2");
    assert!(!machine.calls().contains("restart"));
    assert!(
        !machine
            .read("etc/docker/daemon.json")
            .contains("live-restore")
    );
    assert!(!machine.there("var/lib/forge/daemon.json"));
    fs::remove_file(machine.lab.path("state/deaf")).expect("removed");
    machine
        .provision(&labels(&["a=b"]))
        .await
        .expect("restarted");
    assert_eq!(machine.containers(), "2");
}

#[tokio::test]
async fn an_engine_that_does_not_start_is_shown_with_the_end_of_its_journal() {
    let machine = Machine::new(Lab::dash());
    machine.write("state/broken", "");
    let error = machine
        .provision(&labels(&["a=b"]))
        .await
        .expect_err("broken");
    assert!(
        error.line().contains("no such key") && error.line().contains("the engine does not start"),
        "{}",
        error.line()
    );
    assert_eq!(machine.containers(), "2");
    fs::remove_file(machine.lab.path("state/broken")).expect("removed");
    machine
        .provision(&labels(&["a=b"]))
        .await
        .expect("restarted");
    assert_eq!(
        machine.containers(),
        "2",
        "what outlived the engine is taken up again"
    );
    assert!(
        !machine
            .read("etc/docker/daemon.json")
            .contains("live-restore")
    );
}

/// Before and after each call of the service manager, which is where things change.
#[tokio::test]
async fn a_restart_that_was_cut_off_anywhere_goes_on_and_containers_run_on() {
    for early in [true, false] {
        for call in 1.. {
            let machine = Machine::new(Lab::dash());
            machine.write("etc/docker/daemon.json", "{\"mtu\": 1400}\n");
            machine.write("state/kill", &call.to_string());
            if !early {
                machine.write("state/early", "");
            }
            let done = machine.provision(&labels(&["a=b"])).await;
            if done.is_ok() {
                assert!(call > 5, "there were only {call} calls");
                break;
            }
            let at = format!("cut off at call {call}: {}", machine.calls());
            assert_eq!(machine.containers(), "2", "{at}");
            machine.provision(&labels(&["a=b"])).await.expect(&at);
            assert_eq!(machine.containers(), "2", "{at}");
            assert_eq!(
                machine.read("etc/docker/daemon.json"),
                "{\n  \"labels\": [\n    \"a=b\"\n  ],\n  \"mtu\": 1400\n}\n",
                "{at}"
            );
            assert_eq!(machine.read("state/process"), "false\n", "{at}");
            assert!(!machine.there("var/lib/forge/daemon.json"), "{at}");
            let report = machine.provision(&labels(&["a=b"])).await.expect(&at);
            assert_eq!(report.changed(), 0, "{at}: {:?}", report.steps);
        }
    }
}

#[tokio::test]
async fn containers_outlive_a_restart_by_openrc() {
    let machine = Machine::new(Lab::dash());
    fs::remove_dir_all(machine.lab.path("run/systemd")).expect("removed");
    fs::create_dir_all(machine.lab.path("etc/conf.d")).expect("a folder");
    machine.write("etc/conf.d/docker", "DOCKER_OPTS=\"\"\n");
    let dir = machine.lab.folder.path().display().to_string();
    // The engine of the stand-in for systemctl, under other words; reloads reach it as a signal.
    machine.stand_in(
        "rc-service",
        "case $* in\n  '-q docker status') [ -e DIR/state/process ] ;;\n  'docker restart')\n    mkdir -p DIR/run/systemd/units\n    exec DIR/stand-ins/systemctl restart docker.service ;;\n  *) exit 9 ;;\nesac",
    );
    machine.stand_in(
        "rc-update",
        "mkdir -p DIR/etc/runlevels/default\nln -sf /x DIR/etc/runlevels/default/docker",
    );
    let script = format!(
        "trap '{dir}/stand-ins/systemctl reload docker.service' HUP\nwhile [ -e {dir}/run ]; do sleep 0.05; done"
    );
    let mut engine = std::process::Command::new("dash")
        .args(["-c", &script])
        .spawn()
        .expect("dash");
    machine.write("run/docker.pid", &engine.id().to_string());
    machine.provision(&labels(&["a=b"])).await.expect("first");
    assert_eq!(
        (
            machine.containers().as_str(),
            machine.read("state/process").as_str()
        ),
        ("2", "false\n")
    );
    assert_eq!(
        machine.calls(),
        format!("{RELOAD}, restart docker.service, {RELOAD}")
    );
    let conf = machine.read("etc/conf.d/docker");
    assert!(
        conf.starts_with("DOCKER_OPTS=\"\"\n# forge: begin")
            && conf.contains("-H tcp://0.0.0.0:2376 --tlsverify"),
        "{conf}"
    );
    let again = machine.provision(&labels(&["a=b"])).await.expect("second");
    assert_eq!(again.changed(), 0, "{:?}", again.steps);
    engine.kill().expect("ended");
    engine.wait().expect("ended");
}
