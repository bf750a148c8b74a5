//! Hosts that were there before forge: what is kept of them, what is given back, and what an engine that makes trouble
//! costs them.

use super::engine::{DOCKER, Machine, labels};
use super::*;
use crate::engine::back::{self, End};
use crate::engine::found::Start;
use crate::engine::settings::Settings;
use crate::engine_options::EngineOptions;

pub(super) const OURS: &str = "8f9e4f0a-6a0e-4d4e-9d0a-000000000001";
pub(super) const OTHERS: &str = "8f9e4f0a-6a0e-4d4e-9d0a-000000000002";

impl Machine {
    pub(super) async fn keep(
        &self,
        claim: &str,
        take: bool,
        settings: &Settings,
    ) -> Result<Report, Error> {
        let vars = Vars::new()
            .with("claim", claim)
            .with("take", take)
            .with("others", settings.theirs.is_some())
            .with("theirs", settings.theirs.as_deref().unwrap_or_default())
            .with("daemon", &settings.daemon)
            .with("daemon_changes", settings.daemon_changes)
            .with("former", self.lab.path("var/lib/forge/former"));
        self.play("adopt/keep", &vars, &Secrets::new()).await
    }

    /// As the host is provisioned: what is there is kept, and the engine is told what is wished.
    pub(super) async fn adopt(
        &self,
        claim: &str,
        take: bool,
        options: &EngineOptions,
    ) -> Result<(), Error> {
        let settings = self.settings(options).await?;
        self.keep(claim, take, &settings).await?;
        let former = self.lab.path("var/lib/forge/former");
        self.told(&settings, &former).await.map(|_| ())
    }

    pub(super) async fn leave(&self, claim: &str) -> Result<Report, Error> {
        let found = self.look(true).await;
        let back = back::of(&found)?;
        let (end, text) = match &back.end {
            End::Stays => ("stays", ""),
            End::Copy => ("copy", ""),
            End::Text(text) => ("text", text.as_str()),
        };
        let mut vars = Vars::new()
            .with("claim", claim)
            .with("before", &back.before)
            .with("during", &back.during)
            .with("after", &back.after)
            .with("live_restore", back.live_restore)
            .with("end", end)
            .with("text", text);
        if let Some(Start::Service { path, text }) = &found.start {
            let path = self.lab.path(path.trim_start_matches('/'));
            vars = vars.with("conf", path).with("conf_text", text);
        }
        self.play("adopt/leave", &vars, &Secrets::new()).await
    }

    fn stopped(&self) {
        for name in [
            "run/systemd/units/invocation:docker.service",
            "state/process",
        ] {
            fs::remove_file(self.lab.path(name)).expect("removed");
        }
    }

    fn mode(&self, name: &str) -> u32 {
        let there = fs::metadata(self.lab.path(name)).expect("there");
        there.permissions().mode() & 0o7777
    }
}

#[tokio::test]
async fn what_was_there_comes_back_byte_by_byte_and_nothing_of_forges_is_left() {
    for machine in Machine::each() {
        let text = "{ \"mtu\":  1400 }";
        machine.write("etc/docker/daemon.json", text);
        let path = machine.lab.path("etc/docker/daemon.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        machine
            .adopt(OURS, true, &labels(&["a=b"]))
            .await
            .expect("adopted");
        assert!(machine.read("etc/docker/daemon.json").contains("a=b"));
        assert_eq!(machine.mode("etc/docker/daemon.json"), 0o600);
        // Who starts it with the host is not forge's to say.
        assert!(!machine.calls().contains("enable"));
        assert!(!machine.there("var/lib/forge/former"));
        machine
            .adopt(OURS, false, &labels(&["c=d"]))
            .await
            .expect("again");
        machine.write("var/lib/forge/newest", "");
        machine.leave(OURS).await.expect("left");
        assert_eq!(machine.read("etc/docker/daemon.json"), text);
        assert_eq!(machine.mode("etc/docker/daemon.json"), 0o600);
        assert_eq!(
            (machine.containers(), machine.read("state/process")),
            ("2".into(), "false\n".into())
        );
        assert!(!machine.there("var/lib/forge"));
        assert!(!machine.there("etc/docker/tls"));
        assert!(
            machine
                .read("etc/systemd/system/docker.service.d/10-forge.conf")
                .is_empty()
        );
        let again = machine.leave(OURS).await.expect("nothing to do");
        assert_eq!(again.changed(), 0);
    }
}

#[tokio::test]
async fn what_others_wrote_since_stays_when_forge_leaves() {
    let data = "{\"data-root\": \"/srv/docker\"}\n";
    // Written by forge never, at first alone, and in between.
    for (first, second) in [
        (None, None),
        (Some("a=b"), None),
        (Some("a=b"), Some("c=d")),
    ] {
        let machine = Machine::new(Lab::dash());
        fs::create_dir_all(machine.lab.path("etc/default")).expect("a folder");
        let first = labels(&first.into_iter().collect::<Vec<_>>());
        machine.adopt(OURS, true, &first).await.expect("adopted");
        // Of the other init's files none is touched.
        machine.write("etc/default/docker", "DOCKER_OPTS=--debug\n");
        let is = machine.read("etc/docker/daemon.json");
        let theirs = if is.is_empty() {
            data.to_owned()
        } else {
            is.replacen('{', "{\"data-root\": \"/srv/docker\",", 1)
        };
        machine.write("etc/docker/daemon.json", &theirs);
        if let Some(label) = second {
            machine
                .adopt(OURS, false, &labels(&[label]))
                .await
                .expect("told again");
        }
        machine.leave(OURS).await.expect("left");
        let left: Value =
            serde_json::from_str(&machine.read("etc/docker/daemon.json")).expect("JSON");
        assert_eq!(
            left,
            serde_json::json!({"data-root": "/srv/docker"}),
            "{second:?}"
        );
        assert_eq!(machine.mode("etc/docker/daemon.json"), 0o644);
        assert_eq!(machine.read("etc/default/docker"), "DOCKER_OPTS=--debug\n");
        assert_eq!(machine.containers(), "2");
        // What others took away does not come back.
        let machine = Machine::new(Lab::dash());
        machine.write("etc/docker/daemon.json", "{\"mtu\": 1400}");
        machine.adopt(OURS, true, &first).await.expect("adopted");
        fs::remove_file(machine.lab.path("etc/docker/daemon.json")).expect("removed");
        machine.leave(OURS).await.expect("left");
        assert!(!machine.there("etc/docker/daemon.json"));
    }
}

#[tokio::test]
async fn an_engine_that_runs_and_is_silent_is_neither_told_nor_left() {
    // Clients of both kinds: some fail where nobody answers.
    for (machine, said) in Machine::each()
        .into_iter()
        .zip(["exit 1", "{ echo 'false  00'; exit 0; }"])
    {
        machine.stand_in("sleep", "");
        machine.stand_in(
            "docker",
            &format!("[ -e DIR/state/answers ] || {said}\n. DIR/stand-ins/docker.answers"),
        );
        let dir = machine.lab.folder.path().display().to_string();
        machine.write("stand-ins/docker.answers", &DOCKER.replace("DIR", &dir));
        let before = machine.files();
        let error = machine
            .adopt(OURS, true, &labels(&["a=b"]))
            .await
            .expect_err("silent");
        assert!(
            error.line().contains("nothing was changed"),
            "{}",
            error.line()
        );
        assert_eq!(machine.files(), before);
        assert_eq!(machine.calls(), "");
        machine.write("state/answers", "");
        machine
            .adopt(OURS, true, &labels(&["a=b"]))
            .await
            .expect("adopted");
        machine.calls();
        fs::remove_file(machine.lab.path("state/answers")).expect("removed");
        let there = machine.files();
        let error = machine.leave(OURS).await.expect_err("silent");
        assert!(
            error.line().contains("nothing was given back"),
            "{}",
            error.line()
        );
        assert_eq!(machine.files(), there);
        assert_eq!(
            (machine.calls().as_str(), machine.containers().as_str()),
            ("", "2")
        );
    }
}

#[tokio::test]
async fn an_engine_that_went_down_with_forges_settings_is_started_when_forge_leaves() {
    let machine = Machine::new(Lab::dash());
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect("adopted");
    machine.stopped();
    machine.write("state/failed", "");
    machine.calls();
    machine.leave(OURS).await.expect("left");
    assert!(machine.calls().contains("restart docker.service"));
    // One that its owner stopped stays so.
    let machine = Machine::new(Lab::dash());
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect("adopted");
    machine.stopped();
    machine.calls();
    machine.leave(OURS).await.expect("left");
    assert!(!machine.calls().contains("restart"));
    // One that did not run when forge came is left alone.
    let machine = Machine::new(Lab::dash());
    machine.stopped();
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect("adopted");
    machine.stopped();
    machine.calls();
    machine.leave(OURS).await.expect("left");
    assert!(!machine.calls().contains("restart"));
}

#[tokio::test]
async fn an_engine_that_does_not_start_as_wished_runs_on_as_before() {
    for machine in Machine::each() {
        machine.write("etc/docker/daemon.json", "{ \"mtu\":  1400 }");
        // It is the label that it does not start with.
        machine.write("state/broken-by", "bad=label");
        let before = machine.etc();
        let error = machine
            .adopt(OURS, true, &labels(&["bad=label"]))
            .await
            .expect_err("broken");
        assert!(
            error
                .line()
                .contains("that was taken back, and the engine runs as before"),
            "{}",
            error.line()
        );
        assert_eq!(machine.etc(), before);
        assert_eq!(
            (machine.containers(), machine.read("state/process")),
            ("2".into(), "false\n".into())
        );
        assert!(
            !machine.there("var/lib/forge/former") && !machine.there("var/lib/forge/daemon.json")
        );
        machine
            .adopt(OURS, true, &labels(&["good=label"]))
            .await
            .expect("adopted");
        let error = machine
            .adopt(OURS, false, &labels(&["bad=label"]))
            .await
            .expect_err("broken");
        assert!(error.line().contains("runs as before"), "{}", error.line());
        machine.leave(OURS).await.expect("left");
        assert_eq!(machine.etc(), before);
        assert_eq!(machine.containers(), "2");
    }
}

#[tokio::test]
async fn a_host_of_another_store_is_taken_only_when_that_is_meant_and_then_left_to_it() {
    let machine = Machine::new(Lab::dash());
    machine.write("etc/docker/daemon.json", "{\"mtu\": 1400}");
    machine
        .adopt(OTHERS, true, &labels(&["a=b"]))
        .await
        .expect("adopted");
    let there = machine.files();
    let error = machine
        .adopt(OURS, false, &labels(&["c=d"]))
        .await
        .expect_err("another's");
    assert!(error.line().contains("another store"), "{}", error.line());
    machine.leave(OURS).await.expect("nothing to do");
    assert_eq!(machine.files(), there);
    machine
        .adopt(OURS, true, &labels(&["c=d"]))
        .await
        .expect("taken");
    machine.leave(OTHERS).await.expect("nothing to do");
    machine.leave(OURS).await.expect("left");
    assert_eq!(machine.read("etc/docker/daemon.json"), "{\"mtu\": 1400}");
}

#[tokio::test]
async fn leaving_that_was_cut_off_goes_on_and_containers_run_on() {
    for early in [true, false] {
        for call in 1.. {
            let machine = Machine::new(Lab::dash());
            machine.write("etc/docker/daemon.json", "{\"mtu\": 1400}");
            machine
                .adopt(OURS, true, &labels(&["a=b"]))
                .await
                .expect("adopted");
            machine.calls();
            machine.write("state/count", "0");
            machine.write("state/kill", &call.to_string());
            if !early {
                machine.write("state/early", "");
            }
            let done = machine.leave(OURS).await;
            if done.is_ok() {
                assert!(call > 4, "there were only {call} calls");
                break;
            }
            let at = format!("cut off at call {call}: {}", machine.calls());
            assert_eq!(machine.containers(), "2", "{at}");
            machine.leave(OURS).await.expect(&at);
            assert_eq!(machine.containers(), "2", "{at}");
            assert_eq!(
                machine.read("etc/docker/daemon.json"),
                "{\"mtu\": 1400}",
                "{at}"
            );
            assert_eq!(machine.read("state/process"), "false\n", "{at}");
            assert!(!machine.there("var/lib/forge"), "{at}");
        }
    }
}

#[tokio::test]
async fn copies_without_their_note_are_nobodys() {
    let machine = Machine::new(Lab::dash());
    fs::create_dir_all(machine.lab.path("var/lib/forge/before")).expect("a folder");
    machine.write(
        "var/lib/forge/before/etc_docker_daemon.json",
        "{\"mtu\": 1}",
    );
    machine
        .adopt(OURS, true, &labels(&["a=b"]))
        .await
        .expect("adopted");
    machine.leave(OURS).await.expect("left");
    assert!(!machine.there("etc/docker/daemon.json"));
    // And go with the rest, where a run was cut off behind the note.
    fs::create_dir_all(machine.lab.path("var/lib/forge/before")).expect("a folder");
    machine.write("etc/docker/daemon.json", "{\"mtu\": 2}");
    machine.leave(OURS).await.expect("left");
    assert!(!machine.there("var/lib/forge"));
    assert_eq!(machine.read("etc/docker/daemon.json"), "{\"mtu\": 2}");
}

#[tokio::test]
async fn what_is_looked_at_is_not_started_and_files_that_a_unit_names_are_read() {
    for machine in Machine::each() {
        machine.write(
            "lib/systemd/system/docker.service",
            "[Service]\nEnvironmentFile=-/etc/my.env\nExecStart=/usr/sbin/dockerd $OPTS\n",
        );
        let unit = machine.read("lib/systemd/system/docker.service");
        let dir = machine.lab.folder.path().display().to_string();
        machine.write(
            "lib/systemd/system/docker.service",
            &unit.replace("-/etc", &format!("-{dir}/etc")),
        );
        machine.write("etc/my.env", "OPTS=--debug\n");
        let found = machine.look(true).await;
        assert_eq!(
            (found.storage.as_deref(), found.flags.len()),
            (Some("overlay2"), 1)
        );
        machine.stopped();
        // Its socket would start it.
        machine.stand_in("docker", ": >DIR/state/started");
        assert_eq!(machine.look(true).await.storage, None);
        assert!(!machine.there("state/started"));
    }
}

#[tokio::test]
async fn a_service_of_openrc_gets_its_settings_back() {
    let machine = Machine::new(Lab::dash());
    fs::remove_dir_all(machine.lab.path("run/systemd")).expect("removed");
    fs::create_dir_all(machine.lab.path("etc/conf.d")).expect("a folder");
    machine.write("etc/conf.d/docker", "DOCKER_OPTS=\"\"");
    machine.write("state/containers", "0");
    machine.stand_in(
        "rc-service",
        "case $* in\n  '-q docker status') [ -e DIR/state/process ] ;;\n  'docker restart')\n    mkdir -p DIR/run/systemd/units\n    exec DIR/stand-ins/systemctl restart docker.service ;;\n  *) exit 9 ;;\nesac",
    );
    machine.stand_in("rc-update", "exit 9");
    let options = EngineOptions {
        env: vec!["HTTPS_PROXY=http://user:word@proxy.example".to_owned()],
        ..EngineOptions::default()
    };
    machine.adopt(OURS, true, &options).await.expect("adopted");
    assert!(machine.read("etc/conf.d/docker").contains("user:word"));
    assert_eq!(machine.mode("etc/conf.d/docker"), 0o600);
    machine.leave(OURS).await.expect("left");
    assert_eq!(machine.read("etc/conf.d/docker"), "DOCKER_OPTS=\"\"");
    assert_eq!(machine.mode("etc/conf.d/docker"), 0o644);
    // What its owner wrote since stays.
    machine.adopt(OURS, true, &options).await.expect("adopted");
    let told = machine.read("etc/conf.d/docker");
    machine.write("etc/conf.d/docker", &format!("rc_need=net\n{told}"));
    machine.leave(OURS).await.expect("left");
    assert_eq!(
        machine.read("etc/conf.d/docker"),
        "rc_need=net\nDOCKER_OPTS=\"\"\n"
    );
}

#[tokio::test]
async fn an_engine_that_is_there_by_forge_starts_with_the_host() {
    let machine = Machine::new(Lab::dash());
    machine
        .play("engine/ours", &Vars::new(), &Secrets::new())
        .await
        .expect("noted");
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect("adopted");
    assert!(machine.calls().contains("enable -q docker.service"));
    machine.leave(OURS).await.expect("left");
    assert!(!machine.there("var/lib/forge"));
}

#[tokio::test]
async fn a_restart_that_is_due_is_done_once() {
    let machine = Machine::new(Lab::dash());
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect("adopted");
    machine.calls();
    machine
        .play("engine/restart", &Vars::new(), &Secrets::new())
        .await
        .expect("noted");
    machine
        .adopt(OURS, false, &EngineOptions::default())
        .await
        .expect("restarted");
    assert!(machine.calls().contains("restart docker.service"));
    machine
        .adopt(OURS, false, &EngineOptions::default())
        .await
        .expect("nothing to do");
    assert_eq!(machine.calls(), "");
}
