//! Processes, told by what they name and where they work.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A living process.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number.
    pub pid: i32,
    /// Its command line, words apart.
    pub words: Vec<String>,
}

impl Found {
    /// Ends it at once.
    pub fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line: String = self.words.join(" ").chars().take(160).collect();
        write!(f, "{} {line}", self.pid)
    }
}

/// The processes that name something below one of `folders`, or work there; this one is none of them.
pub fn processes_of(folders: &[&Path]) -> Vec<Found> {
    living()
        .filter(|found| found.pid != rustix::process::getpid().as_raw_nonzero().get())
        .filter(|found| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", found.pid)).unwrap_or_default();
            folders.iter().any(|folder| {
                let text = folder.to_string_lossy();
                cwd.starts_with(folder) || found.words.iter().any(|word| word.contains(&*text))
            })
        })
        .collect()
}

/// The machines' processes that carry `claim` as their UUID.
pub fn machines_of(claim: &str) -> Vec<Found> {
    living()
        .filter(|found| {
            found
                .words
                .windows(2)
                .any(|pair| pair[0] == "-uuid" && pair[1] == claim)
        })
        .collect()
}

fn living() -> impl Iterator<Item = Found> {
    fs::read_dir("/proc")
        .expect("Linux has /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .filter(|word| !word.is_empty())
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            (!words.is_empty()).then_some(Found { pid, words })
        })
}
