//! A store of a test's own, which leaves nothing behind, also when the test fails.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cache;
use crate::processes::{Found, machines_of, processes_of};
use crate::run::{Ran, run};
use crate::text;
use crate::user::User;

/// No command takes longer than this on two busy cores.
const DEADLINE: Duration = Duration::from_secs(600);

/// A store, and the program that works on it.
pub struct Store {
    program: PathBuf,
    home: PathBuf,
    user: Option<User>,
    accelerator: Option<&'static str>,
    _folder: Option<tempfile::TempDir>,
}

impl Store {
    /// A fresh store without an image.
    pub fn empty(program: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            program: program.into(),
            home: folder.path().join("home"),
            user: None,
            accelerator: Some("tcg"),
            _folder: Some(folder),
        }
    }

    /// A fresh store that holds nothing but the image.
    pub fn new(program: &str) -> Self {
        let store = Self::empty(program);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&store.home)
            .expect("mkdir");
        cache::stock(&store.program, &store.home);
        store
    }

    /// A fresh store whose only image is an empty disk: machines of it are made and started, and never answer.
    pub fn blank(program: &str) -> Self {
        let store = Self::empty(program);
        cache::blank(&store.home);
        store
    }

    /// A fresh store of a plain user, without an image.
    pub fn of(user: User, program: &str) -> Self {
        let Some(home) = user.home() else {
            return Self::empty(program);
        };
        Self {
            program: user.own(Path::new(program)),
            home: home.join("home"),
            user: Some(user),
            accelerator: Some("tcg"),
            _folder: None,
        }
    }

    /// The same store, whose machines' accelerator is tried.
    #[must_use]
    pub fn trying(mut self) -> Self {
        self.accelerator = None;
        self
    }

    /// The folder of the store.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A command of forge's on this store.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.user {
            Some(user) => user.command(&self.program),
            None => Command::new(&self.program),
        };
        command.args(words).env("FORGE_HOME", &self.home);
        // Contexts are none of the user's.
        command.env("DOCKER_CONFIG", self.home.join("docker"));
        // The disks of tests may be lost, and emulation is all that is sure to be there.
        command.env("FORGE_QEMU_DISK_CACHE", "unsafe");
        if let Some(accelerator) = self.accelerator {
            command.env("FORGE_QEMU_ACCEL", accelerator);
        }
        for name in [
            "DOCKER_HOST",
            "DOCKER_CERT_PATH",
            "DOCKER_TLS_VERIFY",
            "FORGE_DRIVER",
            "FORGE_IMAGE",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Ran {
        run(&mut self.command(words), b"", DEADLINE)
    }

    /// Runs a command that succeeds; its standard output.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        self.run(words).ok().text()
    }

    /// Runs a command that succeeds with `--json`; the last line of its output.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let mut all = words.to_vec();
        all.push("--json");
        self.run(&all).ok().json()
    }

    /// Runs a line of shell on a machine, successfully; its standard output.
    #[track_caller]
    pub fn ssh(&self, machine: &str, line: &str) -> String {
        self.ssh_with(machine, line, b"").ok().text()
    }

    /// Runs a line of shell on a machine with this on its standard input.
    #[track_caller]
    pub fn ssh_with(&self, machine: &str, line: &str, input: &[u8]) -> Ran {
        run(
            &mut self.command(&["ssh", machine, line]),
            input,
            Duration::from_secs(240),
        )
    }

    /// The record of a machine.
    #[track_caller]
    pub fn machine(&self, name: &str) -> Value {
        self.json(&["inspect", name])
    }

    /// The claim of a machine.
    #[track_caller]
    pub fn claim(&self, name: &str) -> String {
        text(&self.machine(name)["claim"])
    }

    /// The address of a machine on the host.
    #[track_caller]
    pub fn ip(&self, name: &str) -> String {
        self.ok(&["ip", name])
    }

    /// The address of a machine on the network between machines.
    #[track_caller]
    pub fn inner_ip(&self, name: &str) -> String {
        text(&self.machine(name)["placement"]["nic"]["address"])
    }

    /// Where the sockets of this store's machines lie.
    pub fn runtime(&self) -> Option<PathBuf> {
        let identity = fs::read(self.home.join("store.json")).ok()?;
        let identity: Value = serde_json::from_slice(&identity).ok()?;
        let id = identity["id"].as_str()?.replace('-', "");
        let user = self
            .user
            .as_ref()
            .map_or(rustix::process::geteuid().as_raw(), User::id);
        Some(PathBuf::from(format!("/tmp/forge-{user}/{}", id.get(..8)?)))
    }

    /// Living processes that belong to this store.
    pub fn processes(&self) -> Vec<Found> {
        let runtime = self.runtime().unwrap_or_else(|| self.home.clone());
        processes_of(&[&self.home, &runtime])
    }

    /// The one process of a machine: none and two are failures.
    #[track_caller]
    pub fn process(&self, machine: &str) -> Found {
        let mut found = machines_of(&self.claim(machine));
        assert_eq!(found.len(), 1, "one process of `{machine}`: {found:?}");
        found.remove(0)
    }

    /// Removes everything and returns what was left behind then.
    pub fn clear(&self) -> Vec<String> {
        if !self.home.join("store.json").exists() {
            return self.left();
        }
        let mut troubles = Vec::new();
        let mut try_it = |words: &[&str]| {
            let done = run(&mut self.command(words), b"", Duration::from_secs(180));
            if done.code != 0 {
                troubles.push(done.to_string());
            }
            done.text()
        };
        for cluster in try_it(&["cluster", "ls", "-q"]).lines() {
            try_it(&["cluster", "down", "-y", cluster]);
        }
        let machines = try_it(&["ls", "-q"]);
        for machine in machines.lines() {
            try_it(&["rm", "-f", machine]);
        }
        troubles.extend(self.left());
        troubles
    }

    /// What is there though nothing should be.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let until = Instant::now() + Duration::from_secs(10);
        let mut processes = self.processes();
        while !processes.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(100));
            processes = self.processes();
        }
        for process in processes {
            left.push(format!("a process: {process}"));
            process.kill();
        }
        let mut folders = vec![
            self.home.join("machines"),
            self.home.join("clusters"),
            self.home.join("drivers/qemu/networks"),
        ];
        folders.extend(self.runtime());
        for folder in folders {
            left.extend(entries(&folder));
        }
        // The driver's folder keeps the accelerator that was tried, and folders of machines.
        left.extend(
            entries(&self.home.join("drivers/qemu"))
                .into_iter()
                .filter(|path| Path::new(path).is_dir() && !path.ends_with("/networks")),
        );
        left.extend(
            entries(&self.home.join("images"))
                .into_iter()
                .filter(|path| path.contains("/images/.")),
        );
        left
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.run_quietly(&["ls"]));
            if let Some(log) = newest(&self.home.join("logs")) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!(
                    "--- {}\n{}",
                    log.display(),
                    lines[lines.len().saturating_sub(25)..].join("\n")
                );
            }
        }
        let left = if thread::panicking() {
            // A second panic would end the program before the other stores are cleared.
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clear()))
                .unwrap_or_default()
        } else {
            self.clear()
        };
        if let Some(runtime) = self.runtime() {
            // It holds sockets only, and nobody is bound to them any more.
            let _ = fs::remove_dir_all(runtime);
        }
        if !left.is_empty() {
            let text = left.join("\n");
            assert!(thread::panicking(), "left behind:\n{text}");
            eprintln!("left behind:\n{text}");
        }
    }
}

impl Store {
    fn run_quietly(&self, words: &[&str]) -> String {
        let output = self.command(words).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }
}

fn entries(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .map(|all| {
            all.flatten()
                .map(|entry| entry.path().display().to_string())
                .collect()
        })
        .unwrap_or_default()
}

fn newest(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())
        .map(|entry| entry.path())
}
