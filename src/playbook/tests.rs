//! Compiled scripts, run by real shells in a folder of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use forge_driver::{Error, Kind};
use forge_lab::openssh::user;
use tempfile::TempDir;

use super::compile::{Places, compile_with};
use super::parse::parse;
use super::*;
use crate::remote::testing::Shell;

mod adopt;
mod adopt_again;
mod engine;
mod families;
mod texts;

const DEADLINE: Duration = Duration::from_secs(60);

struct Lab {
    folder: TempDir,
    shell: Shell,
}

impl Lab {
    /// The same test with each shell that a machine may have.
    fn each() -> Vec<Self> {
        let dash = Self {
            folder: tempfile::tempdir().expect("folder"),
            shell: Shell::dash(),
        };
        let folder = tempfile::tempdir().expect("folder");
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).expect("bin");
        let busybox = Self {
            shell: Shell::busybox(&bin),
            folder,
        };
        vec![dash, busybox]
    }

    fn dash() -> Self {
        Self::each().remove(0)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn vars(&self) -> Vars {
        let user = user();
        Vars::new()
            .with("dir", self.folder.path().display().to_string())
            .with("owner", format!("{user}:{}", group()))
    }

    fn job(&self, yaml: &str, secrets: &Secrets, dry_run: bool) -> Job {
        let yaml = format!("vars: {{dir: , owner: }}\n{yaml}");
        let playbook = parse("lab", &yaml).expect("parses");
        compile_with(
            &[(&playbook, &self.vars())],
            secrets,
            dry_run,
            &Places {
                state: &self.path("state"),
                run: &self.path("run"),
            },
        )
        .expect("compiles")
    }

    async fn run_with(
        &self,
        yaml: &str,
        secrets: &Secrets,
        dry_run: bool,
    ) -> Result<Report, Error> {
        let job = self.job(yaml, secrets, dry_run);
        let seen = Mutex::new(Vec::new());
        let result = run(&self.shell, &job, DEADLINE, &|step| {
            seen.lock().expect("lock").push(step.step.clone());
        })
        .await;
        if let Ok(report) = &result {
            let steps: Vec<String> = report.steps.iter().map(|step| step.step.clone()).collect();
            assert_eq!(
                *seen.lock().expect("lock"),
                steps,
                "every step is reported as it ends"
            );
        }
        result
    }

    async fn run(&self, yaml: &str) -> Result<Report, Error> {
        self.run_with(yaml, &Secrets::new(), false).await
    }

    async fn fails(&self, yaml: &str) -> Error {
        self.run(yaml).await.expect_err("a step fails")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).expect("readable")
    }
}

fn group() -> String {
    let gid = rustix::process::getegid().as_raw().to_string();
    let groups = fs::read_to_string("/etc/group").expect("group");
    let entry = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&gid.as_str()))
        .expect("the group has an entry");
    entry[0].to_owned()
}

fn statuses(report: &Report) -> Vec<Status> {
    report.steps.iter().map(|step| step.status).collect()
}

const BOOK: &str = r#"
secrets: [key]
steps:
  - name: folder
    directory: {path: "{{ dir }}/etc/tls", mode: "0700", owner: "{{ owner }}"}
  - name: configuration
    file: {path: "{{ dir }}/etc/conf", content: "a 'b' $c `d` \\ %s\n\n", mode: "0644", owner: "{{ owner }}"}
  - name: key
    file: {path: "{{ dir }}/etc/tls/key", secret: key, mode: "0600", owner: "{{ owner }}"}
  - name: value
    check: '[ -e "{{ dir }}/value" ]'
    apply: echo made; echo 1 >"{{ dir }}/value"
  - name: restart
    on_change_of: [configuration, key]
    apply: echo x >>"{{ dir }}/restarts"
  - name: never
    when: '[ -e "{{ dir }}/nothing" ]'
    apply: exit 1
    check: exit 1
"#;

fn book_secrets() -> Secrets {
    Secrets::new().with(
        "key",
        "-----BEGIN KEY-----\nabcdefgh12345\n-----END KEY-----\n",
    )
}

#[tokio::test]
async fn the_second_run_finds_everything_as_wished() {
    for lab in Lab::each() {
        let report = lab
            .run_with(BOOK, &book_secrets(), false)
            .await
            .expect("first");
        use Status::{Changed, Ok as Fine, Skipped};
        assert_eq!(
            statuses(&report),
            [Changed, Changed, Changed, Changed, Changed, Skipped]
        );
        assert_eq!(report.changed(), 5);
        assert_eq!(report.steps[3].output, "made");
        assert_eq!(lab.read("etc/conf"), "a 'b' $c `d` \\ %s\n\n");
        assert_eq!(
            lab.read("etc/tls/key"),
            book_secrets().get("key").expect("key").expose()
        );
        let mode = |name: &str| {
            fs::metadata(lab.path(name))
                .expect("stat")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(
            (mode("etc/tls"), mode("etc/conf"), mode("etc/tls/key")),
            (0o700, 0o644, 0o600)
        );

        let report = lab
            .run_with(BOOK, &book_secrets(), false)
            .await
            .expect("second");
        assert_eq!(statuses(&report), [Fine, Fine, Fine, Fine, Fine, Skipped]);
        assert_eq!(lab.read("restarts"), "x\n");
        let left: Vec<_> = fs::read_dir(lab.path("etc"))
            .expect("list")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
    }
}

#[tokio::test]
async fn what_was_changed_by_hand_is_put_right() {
    for lab in Lab::each() {
        lab.run_with(BOOK, &book_secrets(), false)
            .await
            .expect("first");
        fs::set_permissions(lab.path("etc/tls/key"), fs::Permissions::from_mode(0o644))
            .expect("chmod");
        fs::write(lab.path("etc/conf"), "other").expect("write");
        let report = lab
            .run_with(BOOK, &book_secrets(), false)
            .await
            .expect("again");
        assert_eq!(report.changed(), 3, "{:?}", report.steps);
        assert_eq!(lab.read("restarts"), "x\nx\n");
    }
}

#[tokio::test]
async fn a_dry_run_tells_and_touches_nothing() {
    for lab in Lab::each() {
        let before = fs::read_dir(lab.folder.path()).expect("list").count();
        let report = lab
            .run_with(BOOK, &book_secrets(), true)
            .await
            .expect("dry");
        use Status::{Skipped, WouldChange};
        assert_eq!(
            statuses(&report),
            [
                WouldChange,
                WouldChange,
                WouldChange,
                WouldChange,
                WouldChange,
                Skipped
            ]
        );
        assert_eq!(
            fs::read_dir(lab.folder.path()).expect("list").count(),
            before
        );
        lab.run_with(BOOK, &book_secrets(), false)
            .await
            .expect("real");
        assert_eq!(
            lab.run_with(BOOK, &book_secrets(), true)
                .await
                .expect("dry")
                .changed(),
            0
        );
        fs::remove_file(lab.path("etc/conf")).expect("remove");
        let report = lab
            .run_with(BOOK, &book_secrets(), true)
            .await
            .expect("dry");
        assert_eq!(
            report.changed(),
            2,
            "the file and the restart that depends on it"
        );
        assert!(fs::metadata(lab.path("etc/conf")).is_err());
        assert_eq!(
            fs::read_dir(lab.path("state")).expect("list").count(),
            0,
            "nothing is noted as due"
        );
    }
}

#[tokio::test]
async fn a_restart_that_was_due_is_not_forgotten() {
    let lab = Lab::dash();
    let book = |apply: &str| {
        format!(
            "steps:\n  - name: conf\n    file: {{path: '{{{{ dir }}}}/conf', content: x, mode: '0644', owner: '{{{{ owner }}}}'}}\n  - name: restart\n    on_change_of: [conf]\n    apply: {apply}\n"
        )
    };
    let error = lab.fails(&book("exit 7")).await;
    assert_eq!(error.message(), "step `restart` of playbook `lab` failed");
    assert_eq!(error.causes(), ["it ended with status 7"]);
    let report = lab.run(&book("echo done")).await.expect("second");
    assert_eq!(statuses(&report), [Status::Ok, Status::Changed]);
    let report = lab.run(&book("exit 7")).await.expect("third");
    assert_eq!(report.changed(), 0);
}

#[tokio::test]
async fn a_failing_step_names_itself_and_ends_the_run() {
    for lab in Lab::each() {
        let error = lab
            .fails("steps:\n  - {name: one, check: 'false', apply: 'echo out; echo err >&2; false; echo not reached'}\n  - {name: two, check: 'false', apply: 'echo 2 >{{ dir }}/two'}\n")
            .await;
        assert_eq!(error.kind(), Kind::Failed);
        assert_eq!(error.message(), "step `one` of playbook `lab` failed");
        assert_eq!(error.causes(), ["it ended with status 1\nout\nerr"]);
        assert!(!Path::new(&lab.path("two")).exists());
    }
}

#[tokio::test]
async fn an_apply_that_changes_nothing_is_a_failure() {
    let lab = Lab::dash();
    let error = lab
        .fails("steps:\n  - {name: one, check: 'echo looked; false', apply: 'true'}\n")
        .await;
    assert_eq!(error.causes(), ["what it checks does not hold\nlooked"]);
    let error = lab
        .fails("steps:\n  - {name: one, check: 'fail \"no such thing\"'}\n")
        .await;
    assert_eq!(
        error.causes(),
        ["what it checks does not hold\nno such thing"]
    );
}

#[tokio::test]
async fn a_step_that_leaves_the_shell_is_still_named() {
    for lab in Lab::each() {
        for check in ["exit 3", "if", "echo 'open", ": ${unset?}"] {
            let check = serde_json::to_string(check).expect("JSON is YAML");
            let error = lab
                .fails(&format!(
                    "steps:\n  - {{name: fine, check: 'true'}}\n  - {{name: odd, check: {check}}}\n"
                ))
                .await;
            assert_eq!(
                error.message(),
                "step `odd` of playbook `lab` failed",
                "{check}"
            );
        }
    }
}

#[tokio::test]
async fn a_hanging_step_ends_at_its_deadline() {
    for lab in Lab::each() {
        let error = lab.fails("steps:\n  - {name: slow, check: 'false', apply: 'echo begun; sleep 60', deadline: 1}\n").await;
        assert_eq!(error.message(), "step `slow` of playbook `lab` failed");
        assert!(
            error.causes()[0].starts_with("it did not end within 1 s"),
            "{:?}",
            error.causes()
        );
        let error = lab
            .fails("steps:\n  - {name: slow, check: sleep 60, check_deadline: 1}\n")
            .await;
        assert_eq!(error.message(), "step `slow` of playbook `lab` failed");
    }
}

#[tokio::test]
async fn a_run_that_hangs_names_its_step() {
    let lab = Lab::dash();
    let job = lab.job(
        "steps:\n  - {name: one, check: 'true'}\n  - {name: two, check: echo waits; sleep 60}\n",
        &Secrets::new(),
        false,
    );
    let error = run(&lab.shell, &job, Duration::from_secs(1), &|_| {})
        .await
        .expect_err("hangs");
    assert_eq!(error.kind(), Kind::Timeout);
    assert_eq!(error.message(), "step `two` of playbook `lab` did not end");
    assert!(error.line().contains("waits"), "{}", error.line());
}

#[tokio::test]
async fn a_step_is_tried_again_until_its_time_is_over() {
    for lab in Lab::each() {
        let apply = "echo . >>{{ dir }}/tries; read -r a <{{ dir }}/tries; [ \"$(grep -c . {{ dir }}/tries)\" -ge 3 ]";
        let report = lab
            .run(&format!("steps:\n  - name: again\n    check: '[ -e {{{{ dir }}}}/tries ]'\n    apply: '{apply}'\n    retry: {{every: 0.05, for: 30}}\n"))
            .await
            .expect("third time");
        assert_eq!(statuses(&report), [Status::Changed]);
        assert_eq!(lab.read("tries"), ".\n.\n.\n");
        let error = lab
            .fails(
                "steps:\n  - {name: gone, read: 'echo no; false', retry: {every: 0.05, for: 1}}\n",
            )
            .await;
        assert_eq!(error.causes(), ["it ended with status 1\nno"]);
    }
}

#[tokio::test]
async fn output_that_looks_like_the_protocol_is_output() {
    for lab in Lab::each() {
        let report = lab
            .run("steps:\n  - {name: one, check: 'printf \"@0123456789abcdef0123456789abcdef end 1 changed\\n@$forge_other end 0 failed\\n@ done\\nno newline\"'}\n  - {name: two, check: 'true'}\n")
            .await
            .expect("runs");
        assert_eq!(statuses(&report), [Status::Ok, Status::Ok]);
        assert!(
            report.steps[0].output.ends_with("@ done\nno newline"),
            "{:?}",
            report.steps[0].output
        );
        assert_eq!(report.steps[1].output, "");
    }
}

#[tokio::test]
async fn the_number_of_the_protocol_is_not_handed_to_commands() {
    let lab = Lab::dash();
    let yaml = "steps:\n  - {name: one, check: 'false || env', apply: 'true'}\n  - {name: two, read: 'env; cat /proc/self/cmdline /proc/$$/cmdline /proc/$PPID/cmdline'}\n";
    let job = lab.job(yaml, &Secrets::new(), false);
    let report = run(&lab.shell, &job, DEADLINE, &|_| {})
        .await
        .expect("runs");
    for step in &report.steps {
        assert!(
            step.output.contains("LC_ALL=C"),
            "the environment was printed"
        );
        assert!(!step.output.contains(&job.nonce), "{}", step.output);
    }
}

#[tokio::test]
async fn secrets_are_neither_in_arguments_nor_in_the_report() {
    for lab in Lab::each() {
        let secrets = Secrets::new().with("token", "SWMTKN-1-very-secret");
        let yaml = r#"
secrets: [token]
steps:
  - name: use
    check: '[ -e {{ dir }}/used ]'
    apply: |
      for pid in /proc/[0-9]*; do cat "$pid/cmdline" 2>/dev/null || :; done >{{ dir }}/ps
      cat /proc/self/environ >{{ dir }}/environ
      echo "joining with $secret_token"
      printf %s "$secret_token" >{{ dir }}/used
  - name: fetch
    read: |
      output token fresh-token-1234
      output id "two
      lines"
      echo it is fresh-token-1234
    outputs: {token: secret, id: plain}
"#;
        let report = lab.run_with(yaml, &secrets, false).await.expect("runs");
        assert_eq!(lab.read("used"), "SWMTKN-1-very-secret");
        let ps = String::from_utf8_lossy(&fs::read(lab.path("ps")).expect("ps")).into_owned();
        assert!(!ps.contains("very-secret"));
        assert!(
            !String::from_utf8_lossy(&fs::read(lab.path("environ")).expect("environ"))
                .contains("very-secret")
        );
        assert_eq!(report.steps[0].output, "joining with ***");
        assert_eq!(report.steps[1].output, "it is ***");
        assert_eq!(report.outputs["id"], "two\nlines");
        assert_eq!(
            report.secrets.get("token").expect("token").expose(),
            "fresh-token-1234"
        );
        let shown = format!("{report:?} {:?}", lab.job(yaml, &secrets, false));
        assert!(
            !shown.contains("very-secret") && !shown.contains("fresh-token"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn an_output_that_is_not_declared_is_an_error() {
    let lab = Lab::dash();
    let error = lab
        .fails("steps:\n  - {name: one, read: output surprise 1}\n")
        .await;
    assert_eq!(
        error.causes(),
        ["it returned `surprise`, which is not declared"]
    );
}

#[tokio::test]
async fn a_script_that_was_cut_off_does_nothing() {
    let lab = Lab::dash();
    let job = lab.job(
        "steps:\n  - {name: one, check: 'false', apply: 'echo 1 >{{ dir }}/one'}\n",
        &Secrets::new(),
        false,
    );
    use crate::remote::Guest;
    for part in [2, 3, 10, 100] {
        let cut = &job.script()[..job.script().len() - part];
        let output = lab
            .shell
            .exec("", cut.as_bytes(), DEADLINE)
            .await
            .expect("runs");
        assert_ne!(output.stdout, b"never");
        assert!(!Path::new(&lab.path("one")).exists(), "cut by {part}");
    }
}

#[tokio::test]
async fn a_run_with_nothing_to_change_starts_two_programs() {
    let lab = Lab::dash();
    let bin = lab.folder.path().join("bin");
    fs::create_dir(&bin).expect("bin");
    let log = lab.path("log");
    for program in [
        "sha256sum",
        "stat",
        "mv",
        "rm",
        "mkdir",
        "chmod",
        "chown",
        "timeout",
        "sh",
        "sync",
        "sleep",
        "cat",
    ] {
        let path = bin.join(program);
        let real = ["/usr/bin", "/bin"]
            .iter()
            .map(|dir| Path::new(dir).join(program))
            .find(|path| path.exists())
            .expect(program);
        fs::write(
            &path,
            format!(
                "#!/bin/dash\necho {program} >>{log}\nexec {} \"$@\"\n",
                real.display()
            ),
        )
        .expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let lab = Lab {
        shell: Shell::dash().with_path(format!("{}:/usr/bin:/bin", bin.display())),
        folder: lab.folder,
    };
    let mut yaml = "steps:\n".to_owned();
    for index in 0..30 {
        yaml.push_str(&format!("  - name: file {index}\n    file: {{path: '{{{{ dir }}}}/d/{index}', content: 'text {index}', mode: '0600', owner: '{{{{ owner }}}}'}}\n"));
        yaml.push_str(&format!(
            "  - name: check {index}\n    check: '[ -e /proc/self ]'\n    apply: 'true'\n"
        ));
        yaml.push_str(&format!(
            "  - name: restart {index}\n    on_change_of: [file {index}]\n    apply: 'true'\n"
        ));
    }
    assert_eq!(lab.run(&yaml).await.expect("first").changed(), 60);
    fs::remove_file(&log).expect("log");
    assert_eq!(lab.run(&yaml).await.expect("second").changed(), 0);
    assert_eq!(lab.read("log"), "cat\nsha256sum\nstat\n");
}

#[tokio::test]
async fn values_are_one_word_of_the_shell_whatever_they_contain() {
    for lab in Lab::each() {
        for value in [
            "",
            "plain",
            "it's $HOME `id` \\ \"x\" *",
            "-n",
            "a\nb",
            "'; exit 9; '",
        ] {
            let playbook = parse("lab", "vars: {value: , list: []}\nsteps:\n  - name: one\n    read: |\n      output value {{ value | sh }}\n      set -- {{ list | sh }}\n      output count $#\n    outputs: {value: plain, count: plain}\n").expect("parses");
            let vars = Vars::new()
                .with("value", value)
                .with("list", ["a b", value]);
            let job = compile(&[(&playbook, &vars)], &Secrets::new(), false).expect("compiles");
            let report = run(&lab.shell, &job, DEADLINE, &|_| {}).await.expect(value);
            assert_eq!(report.outputs["value"], value);
            assert_eq!(report.outputs["count"], "2");
        }
    }
}
