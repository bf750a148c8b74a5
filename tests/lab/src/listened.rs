//! A forge that is listened to while it works, and killed at a word.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running `forge … --json`. It is killed when it is dropped.
pub struct Listened {
    child: Child,
    lines: Receiver<String>,
    until: Instant,
}

impl Listened {
    /// Starts the command, which has to end within `deadline`.
    pub fn start(command: &mut Command, deadline: Duration) -> Self {
        let mut child = command
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("forge starts");
        let out = child.stdout.take();
        let (sender, lines) = channel();
        let listened = Self {
            child,
            lines,
            until: Instant::now() + deadline,
        };
        // What forge started may hold the pipe for a moment longer than forge: nobody waits for its end.
        thread::spawn(move || {
            let Some(out) = out else { return };
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        listened
    }

    /// The next event; `None` when it has ended by itself, with success.
    #[track_caller]
    pub fn event(&mut self) -> Option<Value> {
        let left = self.until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
            }
            Err(RecvTimeoutError::Timeout) => panic!("the command does not end"),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().expect("it ends");
                assert!(
                    status.success(),
                    "the same command again ended with {status}"
                );
                None
            }
        }
    }

    /// Sends SIGKILL to forge alone, after so long: what it started is left as it is. Whether it still ran.
    pub fn kill_after(&mut self, delay: Duration) -> bool {
        thread::sleep(delay);
        if self.child.try_wait().expect("a child of ours").is_some() {
            return false;
        }
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        true
    }
}

impl Listened {
    /// Sends SIGINT, as Ctrl-C does, after so long, and waits for the end. The exit code.
    #[track_caller]
    pub fn interrupt_after(&mut self, delay: Duration) -> Option<i32> {
        thread::sleep(delay);
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        while Instant::now() < self.until {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.code();
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the command does not end after Ctrl-C")
    }
}

impl Drop for Listened {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
