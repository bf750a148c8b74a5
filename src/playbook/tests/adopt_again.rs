//! Hosts that were there before forge: runs that were cut off, and what cannot be done on the way back.

use super::adopt::{OTHERS, OURS};
use super::engine::{DOCKER, Machine, labels};
use super::*;
use crate::engine_options::EngineOptions;

const BAD: &str = "bad=label";

impl Machine {
    /// The engine does not start with the label [`BAD`].
    fn picky() -> Self {
        let machine = Self::new(Lab::dash());
        machine.write("etc/docker/daemon.json", "{ \"mtu\":  1400 }");
        machine.write("state/broken-by", BAD);
        machine
    }

    /// Copies of what was put aside fail from now on, as on a full disk.
    fn full(&self) {
        self.write("state/full", "");
        self.stand_in(
            "cp",
            "case $2 in */former/*) [ ! -e DIR/state/full ] || exit 1 ;; esac\nexec /bin/cp \"$@\"",
        );
    }
}

#[tokio::test]
async fn a_host_whose_note_is_empty_is_given_back_by_whoever_asks() {
    for machine in Machine::each() {
        machine.write("etc/docker/daemon.json", "{\"mtu\": 1400}");
        machine
            .adopt(OURS, true, &labels(&["a=b"]))
            .await
            .expect("adopted");
        machine.write("var/lib/forge/before/done", "");
        let report = machine
            .play("adopt/facts", &Vars::new(), &Secrets::new())
            .await
            .expect("facts");
        assert!(
            report.steps[0]
                .output
                .lines()
                .any(|line| line.trim() == "claim"),
            "{:?}",
            report.steps[0].output
        );
        // Whoever comes has it, and it is theirs from then on.
        machine
            .adopt(OTHERS, false, &labels(&["a=b"]))
            .await
            .expect("nobody's");
        assert_eq!(
            machine.read("var/lib/forge/before/done"),
            format!("{OTHERS}\n")
        );
        machine.write("var/lib/forge/before/done", "");
        let left = machine.leave(OURS).await.expect("left");
        assert!(left.changed() > 0);
        assert_eq!(machine.read("etc/docker/daemon.json"), "{\"mtu\": 1400}");
        assert!(!machine.there("var/lib/forge"));
    }
}

#[tokio::test]
async fn the_way_back_leads_behind_a_run_that_was_cut_off() {
    // Before each call of the service manager up to the restart.
    for (call, text) in (1..=4).flat_map(|call| {
        [
            "{ \"mtu\":  1400 }",
            "{\"live-restore\":false, \"mtu\": 1400}",
            "{}",
        ]
        .map(|text| (call, text))
    }) {
        let at = format!("cut off at call {call}: {text}");
        let machine = Machine::picky();
        machine.write("etc/docker/daemon.json", text);
        let before = machine.etc();
        machine.write("state/kill", &call.to_string());
        machine
            .adopt(OURS, true, &labels(&[BAD]))
            .await
            .expect_err(&at);
        let error = machine
            .adopt(OURS, false, &labels(&[BAD]))
            .await
            .expect_err(&at);
        assert!(
            error.line().contains("the engine runs as before"),
            "{at}: {}",
            error.line()
        );
        assert_eq!(machine.etc(), before, "{at}");
        assert_eq!(
            (machine.containers(), machine.read("state/process")),
            ("2".into(), "false\n".into()),
            "{at}"
        );
        assert!(
            !machine.there("var/lib/forge/former") && !machine.there("var/lib/forge/daemon.json"),
            "{at}"
        );
    }
}

#[tokio::test]
async fn what_was_put_aside_stays_until_all_of_it_is_back() {
    let machine = Machine::picky();
    let before = machine.etc();
    machine.full();
    let error = machine
        .adopt(OURS, true, &labels(&[BAD]))
        .await
        .expect_err("broken");
    assert!(
        error.line().contains("could not all be taken back"),
        "{}",
        error.line()
    );
    assert_eq!(
        machine.read("var/lib/forge/former/daemon.json"),
        "{ \"mtu\":  1400 }"
    );
    fs::remove_file(machine.lab.path("state/full")).expect("removed");
    let error = machine
        .adopt(OURS, false, &labels(&[BAD]))
        .await
        .expect_err("broken");
    assert!(error.line().contains("runs as before"), "{}", error.line());
    assert_eq!(machine.etc(), before);
    assert_eq!(machine.containers(), "2");
    assert!(!machine.there("var/lib/forge/former"));
}

#[tokio::test]
async fn what_was_not_told_is_taken_back_and_a_later_way_back_undoes_nothing_of_others() {
    let machine = Machine::picky();
    machine.stand_in("sleep", "");
    let before = machine.etc();
    machine.write("state/deaf", "");
    let error = machine
        .adopt(OURS, true, &labels(&["a=b"]))
        .await
        .expect_err("deaf");
    assert!(
        error.line().contains("it was not restarted"),
        "{}",
        error.line()
    );
    assert_eq!(machine.etc(), before);
    assert!(!machine.there("var/lib/forge/former"));
    fs::remove_file(machine.lab.path("state/deaf")).expect("removed");
    // Silent since the first look at it.
    let dir = machine.lab.folder.path().display().to_string();
    machine.write("stand-ins/docker.answers", &DOCKER.replace("DIR", &dir));
    machine.stand_in(
        "docker",
        "[ -e DIR/etc/docker/forge.env ] && exit 1\n. DIR/stand-ins/docker.answers",
    );
    let error = machine
        .adopt(OURS, true, &labels(&["a=b"]))
        .await
        .expect_err("silent");
    assert!(
        error.line().contains("it was not restarted"),
        "{}",
        error.line()
    );
    assert_eq!(machine.etc(), before);
    assert!(!machine.there("var/lib/forge/former"));
    machine.stand_in("docker", DOCKER);
    machine.write("etc/docker/daemon.json", "{\"mtu\": 1500}");
    machine
        .adopt(OURS, false, &labels(&[BAD]))
        .await
        .expect_err("broken");
    assert_eq!(machine.read("etc/docker/daemon.json"), "{\"mtu\": 1500}");
    assert_eq!(machine.containers(), "2");
}

#[tokio::test]
async fn what_forge_wrote_before_a_run_that_was_cut_off_does_not_stay() {
    let machine = Machine::new(Lab::dash());
    let text = "{ \"debug\":  true }";
    machine.write("etc/docker/daemon.json", text);
    let options = EngineOptions {
        opts: vec!["mtu=1400".to_owned()],
        ..EngineOptions::default()
    };
    machine.adopt(OURS, true, &options).await.expect("adopted");
    assert!(machine.read("etc/docker/daemon.json").contains("1400"));
    // What is to be written is noted; the configuration is still what was written before.
    let mut settings = machine.settings(&options).await.expect("settings");
    settings.daemon = "{\"debug\": true, \"mtu\": 1500}".to_owned();
    settings.daemon_changes = true;
    machine.keep(OURS, false, &settings).await.expect("kept");
    let found = machine.look(false).await;
    assert!(found.formerly.is_some_and(|text| text.contains("1400")));
    machine.leave(OURS).await.expect("left");
    assert_eq!(machine.read("etc/docker/daemon.json"), text);
}

#[tokio::test]
async fn an_engine_that_has_just_started_is_waited_for() {
    for machine in Machine::each() {
        machine.stand_in("sleep", ": >DIR/state/answers");
        let dir = machine.lab.folder.path().display().to_string();
        machine.write("stand-ins/docker.answers", &DOCKER.replace("DIR", &dir));
        machine.stand_in(
            "docker",
            "[ -e DIR/state/answers ] || exit 1\n. DIR/stand-ins/docker.answers",
        );
        for answers in [true, false] {
            if !answers {
                machine.stand_in("docker", "exit 1");
            }
            let report = machine
                .play("adopt/facts", &Vars::new(), &Secrets::new())
                .await
                .expect("facts");
            let said = &report.steps[0].output;
            assert_eq!(said.contains("silent yes"), !answers, "{said}");
            assert_eq!(said.contains("storage overlay2"), answers, "{said}");
        }
    }
}

#[tokio::test]
async fn a_configuration_that_was_never_there_does_not_come_with_leaving() {
    let machine = Machine::new(Lab::dash());
    // Cut off where the engine has the setting for the restart alone.
    machine.write("state/kill", "2");
    machine.write("state/early", "");
    machine
        .adopt(OURS, true, &EngineOptions::default())
        .await
        .expect_err("cut off");
    assert_eq!(machine.read("var/lib/forge/daemon.json"), "{}\n");
    machine.leave(OURS).await.expect("left");
    assert!(!machine.there("etc/docker/daemon.json"));
    assert!(!machine.there("var/lib/forge"));
    assert_eq!(machine.containers(), "2");
}
