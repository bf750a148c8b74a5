//! A throw-away user without any right, for what has to work without root.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::run;

/// A plain user: a new one when the tests run as root, else whoever runs them.
pub struct User {
    made: Option<(String, u32)>,
    folder: Option<tempfile::TempDir>,
}

impl User {
    /// Makes the user, with subordinate ids and a home of its own.
    pub fn plain() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self {
                made: None,
                folder: None,
            };
        }
        // Not below TMPDIR, which may be closed to others.
        let folder = tempfile::Builder::new()
            .prefix("forge-lab-")
            .tempdir_in("/tmp")
            .expect("a folder");
        let name = format!("forge-lab-{}", std::process::id());
        tool(
            "useradd",
            &[
                "--no-create-home",
                "--home-dir",
                &folder.path().to_string_lossy(),
                "--shell",
                "/bin/sh",
                &name,
            ],
        );
        let mut user = Self {
            made: Some((name.clone(), 0)),
            folder: Some(folder),
        };
        let listed = |file: &str| {
            fs::read_to_string(file).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.starts_with(&format!("{name}:")))
            })
        };
        if !listed("/etc/subuid") || !listed("/etc/subgid") {
            tool(
                "usermod",
                &[
                    "--add-subuids",
                    "3000000-3065535",
                    "--add-subgids",
                    "3000000-3065535",
                    &name,
                ],
            );
        }
        let id = run(
            Command::new("id").args(["-u", &name]),
            b"",
            Duration::from_secs(20),
        )
        .ok();
        let id: u32 = id.text().parse().expect("a number");
        user.made = Some((name, id));
        if let Some(folder) = &user.folder {
            chown(folder.path(), Some(id), Some(id)).expect("a home");
        }
        user
    }

    /// A folder that is the user's.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.folder.as_ref().map(tempfile::TempDir::path)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.made
            .as_ref()
            .map_or(rustix::process::geteuid().as_raw(), |(_, id)| *id)
    }

    /// A command that `program` runs as this user.
    pub fn command(&self, program: &Path) -> Command {
        let Some((name, id)) = &self.made else {
            return Command::new(program);
        };
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={id}"))
            .arg(format!("--regid={id}"))
            // Programs that are set-uid (newuidmap) have their rights, as for every user.
            .args(["--init-groups", "--inh-caps=-all", "--"])
            .arg(program)
            .env("USER", name);
        if let Some(home) = self.home() {
            command
                .env("HOME", home)
                .env("TMPDIR", home)
                .current_dir(home);
        }
        command
    }

    /// A copy of `program` that the user may run.
    pub(crate) fn own(&self, program: &Path) -> PathBuf {
        let Some(home) = self.home() else {
            return program.to_owned();
        };
        let copy = home.join("forge");
        if !copy.exists() {
            fs::copy(program, &copy).expect("a copy of the program");
            chown(&copy, Some(self.id()), Some(self.id())).expect("chown");
        }
        copy
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some((name, _)) = &self.made {
            let removed = Command::new("userdel").arg(name).output();
            if !removed.is_ok_and(|removed| removed.status.success()) {
                eprintln!("the user {name} could not be removed");
            }
        }
    }
}

#[track_caller]
fn tool(program: &str, words: &[&str]) {
    let done = Command::new(program).args(words).output();
    match done {
        Ok(done) if done.status.success() => {}
        Ok(done) => panic!(
            "a plain user with subordinate ids cannot be made here: `{program}`: {}",
            String::from_utf8_lossy(&done.stderr)
        ),
        Err(error) => {
            panic!("a plain user with subordinate ids cannot be made here: `{program}`: {error}")
        }
    }
}
