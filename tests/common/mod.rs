//! A store and a provider of a test's own, and the binary run on them.

#![expect(dead_code, reason = "each test program uses a part of it")]

pub mod certificates;
pub mod host;
pub mod points;
pub mod sshd;
pub mod stores;
pub mod terminal;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use forge_driver::fake::{Knob, Provider, VARIABLE};
use serde_json::Value;

/// The binary under test, built with the points of the crash tests.
pub const FORGE: &str = env!("CARGO_BIN_EXE_forge");

/// A store with a base image, and a provider that outlives each command. Both go with it.
pub struct Lab {
    folder: tempfile::TempDir,
    /// FORGE_HOME
    pub home: PathBuf,
    /// The provider.
    pub provider: Provider,
}

impl Lab {
    /// A store in which nothing was ever done, but with a base image.
    pub fn new() -> Self {
        let lab = Self::bare();
        let image = lab.home.join("images/test");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&image)
            .expect("a folder for the image");
        let record = serde_json::json!({
            "format": 1, "id": "test", "name": "forge-debian-12", "kind": "built", "first_boot": "forge-seed",
            "size": 1 << 20, "cmdline": null, "created": "2026-01-01T00:00:00Z", "provenance": [], "files": [],
        });
        fs::write(image.join("image.json"), record.to_string()).expect("an image");
        lab
    }

    /// A folder in which there is no store yet.
    pub fn bare() -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("forge-lab-");
        // In memory where there is room: every save is synced, and hundreds of stores are made.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            builder.tempdir_in(memory)
        } else {
            builder.tempdir()
        }
        .expect("a folder");
        let provider = folder.path().join("provider");
        fs::create_dir(&provider).expect("a folder for the provider");
        Self {
            home: folder.path().join("home"),
            provider: Provider::at(&provider),
            folder,
        }
    }

    /// The folder that holds store and provider.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command `forge` with these words, on this store.
    pub fn forge(&self, words: &str) -> Run<'_> {
        self.words(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// The same, with words that hold blanks.
    pub fn words(&self, words: &[&str]) -> Run<'_> {
        let mut command = Command::new(FORGE);
        command
            .arg0("forge")
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder())
            .env("FORGE_HOME", &self.home)
            .env("FORGE_DRIVER", "fake")
            .env("FORGE_TIMEOUT", "30")
            // The keyring of whoever runs the tests is theirs.
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")
            .env(VARIABLE, self.provider.root())
            .env(
                "FORGE_TEMPLATES_DIR",
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake"),
            )
            .current_dir(self.folder())
            .stdin(Stdio::null());
        // By these the sweep after a run of all tests finds what a test left.
        for name in ["FORGE_TEST_RUN", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Run {
            lab: self,
            words: words.join(" "),
            command,
        }
    }

    /// A line of bash in the same surroundings, for which links to the binary, named `forge` and `docker-machine`, stand
    /// first in the path.
    pub fn bash(&self, script: &str) -> Run<'_> {
        let bin = self.folder().join("bin");
        fs::create_dir_all(&bin).expect("a folder");
        for name in ["forge", "docker-machine"] {
            // It is there from the second call on.
            let _ = std::os::unix::fs::symlink(FORGE, bin.join(name));
        }
        let path = std::env::var("PATH").unwrap_or_default();
        self.forge("")
            .env("PATH", format!("{}:{path}", bin.display()))
            .under("bash", &["-c", script], &[])
    }

    /// Turns a knob of the provider.
    pub fn turn(&self, knob: Knob, on: bool) {
        let path = self.provider.root().join(knob.file());
        if on {
            fs::write(path, "").expect("turned on");
        } else {
            fs::remove_file(path).expect("turned off");
        }
    }

    /// The record of one machine.
    pub fn record(&self, name: &str) -> Value {
        let path = self.home.join("machines").join(name).join("machine.json");
        serde_json::from_slice(&fs::read(&path).expect("a record")).expect("JSON")
    }

    /// Changes something in the record of one machine.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut record = self.record(name);
        change(&mut record);
        let path = self.home.join("machines").join(name).join("machine.json");
        fs::write(path, record.to_string()).expect("a record");
    }

    /// The address of one machine.
    pub fn address(&self, name: &str) -> String {
        self.record(name)["placement"]["loopback"]
            .as_str()
            .expect("an address")
            .to_owned()
    }

    /// Asserts that the provider has no machine and no network.
    #[track_caller]
    pub fn provider_is_empty(&self, at: &str) {
        let (vms, networks) = (self.provider.vms(), self.provider.networks());
        assert!(
            vms.expect("the provider").is_empty(),
            "{at}: a machine is left"
        );
        assert!(
            networks.expect("the provider").is_empty(),
            "{at}: a network is left"
        );
    }

    /// What all commands have logged so far.
    pub fn logged(&self) -> String {
        files(&self.home.join("logs"))
            .values()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }

    /// Every file below the store, with its contents.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.home)
    }
}

/// The commands that a help text lists.
pub fn subcommands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A long description goes on in the column of the descriptions.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// No command of these tests takes longer.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// What runs so long waits for what never comes: the longest commands are those on hundreds of machines.
const ENDLESS: Duration = Duration::from_secs(120);

/// Waits for something that a command does.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every file below `folder`, with its contents.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                found.insert(path, bytes);
            }
        }
    }
    found
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The folder for sockets lies outside the store, under the beginning of its id.
        let identity = fs::read(self.home.join("store.json")).unwrap_or_default();
        let id = serde_json::from_slice::<Value>(&identity)
            .ok()
            .and_then(|identity| Some(identity["id"].as_str()?.get(..8)?.to_owned()));
        if let Some(id) = id {
            let user = rustix::process::geteuid().as_raw();
            // It is there only when a driver was opened.
            let _ = fs::remove_dir_all(format!("/tmp/forge-{user}/{id}"));
        }
    }
}

/// A command to be run.
pub struct Run<'a> {
    lab: &'a Lab,
    words: String,
    command: Command,
}

impl Run<'_> {
    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Started by this name, as by a link.
    pub fn called(mut self, name: &str) -> Self {
        self.command.arg0(name);
        self
    }

    /// With this on standard input.
    pub fn given(mut self, text: impl AsRef<[u8]>) -> Self {
        let path = self.lab.folder().join("input");
        fs::write(&path, text).expect("written");
        let input = fs::File::open(path).expect("opened");
        self.command.stdin(input);
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Another program instead, in the same surroundings.
    pub fn under(mut self, program: &str, words: &[&str], paths: &[&Path]) -> Self {
        let mut command = Command::new(program);
        command.args(words).args(paths).env_clear();
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.current_dir(self.lab.folder()).stdin(Stdio::null());
        self.words = program.to_owned();
        self.command = command;
        self
    }

    /// Runs it to its end. One that never comes to it is ended, and fails the test.
    #[track_caller]
    pub fn run(mut self) -> Ended {
        let child = self
            .command
            // What it starts is ended with it.
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("forge starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let (done, waited) = std::sync::mpsc::channel::<()>();
        let guard = std::thread::spawn(move || {
            let late = waited.recv_timeout(ENDLESS) == Err(RecvTimeoutError::Timeout);
            if late && let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may end at this very moment.
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            late
        });
        let output = child.wait_with_output().expect("it ends");
        // The guard has gone where it had to act.
        let _ = done.send(());
        let ended = Ended::new(self.lab, self.words, &output);
        assert!(
            !guard.join().expect("a guard"),
            "forge {} does not end\n{}",
            ended.words,
            ended.stderr
        );
        ended
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let child = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("forge starts");
        Running {
            words: self.words,
            child,
        }
    }

    /// Runs it to its end, and keeps every byte of its output.
    pub fn raw(mut self) -> Output {
        self.command.output().expect("forge starts")
    }

    /// The line for a shell that starts it, with its variables.
    pub fn line(&self) -> String {
        let quoted = |text: &std::ffi::OsStr| {
            let text = text.to_str().expect("text").replace('\'', r"'\''");
            format!("'{text}'")
        };
        let mut words = vec!["env".to_owned(), "-i".to_owned()];
        for (name, value) in self.command.get_envs() {
            let pair = format!(
                "{}={}",
                name.to_str().expect("text"),
                value.unwrap_or_default().to_str().expect("text")
            );
            words.push(quoted(pair.as_ref()));
        }
        words.push(quoted(self.command.get_program()));
        words.extend(self.command.get_args().map(quoted));
        words.join(" ")
    }

    /// Runs it, and asserts exit code 0.
    pub fn ok(self) -> Ended {
        self.run().code(0)
    }

    /// Runs it, and asserts that it says exactly this and ends so.
    #[track_caller]
    pub fn says(self, code: i32, stdout: &str, stderr: &str) {
        let ended = self.run();
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (code, stdout, stderr),
            "forge {}",
            ended.words
        );
    }
}

/// A command that runs.
pub struct Running {
    words: String,
    /// The process.
    pub child: Child,
}

impl Running {
    /// Waits for its end.
    pub fn wait(self, lab: &Lab) -> Ended {
        let output = self.child.wait_with_output().expect("it ends");
        Ended::new(lab, self.words, &output)
    }

    /// Sends the signal of Ctrl-C.
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), signal)
            .expect("it runs");
    }
}

/// How a command ended. The store's path reads `HOME` in its texts, and the name of its log `LOG`.
#[derive(Debug)]
pub struct Ended {
    /// The words after `forge`.
    pub words: String,
    /// The exit code, 128 + n after signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    fn new(lab: &Lab, words: String, output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes: &[u8]| {
            let text =
                String::from_utf8_lossy(bytes).replace(&lab.home.display().to_string(), "HOME");
            let mut lines = String::new();
            for line in text.split_inclusive('\n') {
                if line.starts_with("log: ") {
                    lines.push_str("log: LOG\n");
                } else {
                    lines.push_str(line);
                }
            }
            lines
        };
        Self {
            words,
            code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "forge {}\n{}", self.words, self.stderr);
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("forge {}: {error}\n{}", self.words, self.stdout))
    }

    /// Standard output as JSON lines, the last one.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("forge {}: {error}\n{}", self.words, self.stdout))
    }
}
