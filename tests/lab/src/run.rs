//! Commands that end: run to their end or to their deadline.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs the test `name` of this program once more, inside name spaces that `wrapper` makes, and shows what it prints.
#[track_caller]
pub fn run_inside(program: &str, wrapper: &[&str], name: &str, deadline: Duration) {
    // Outside, where the packages of an image can be reached.
    drop(crate::Store::new(program));
    let here = std::env::current_exe().expect("this program");
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(here)
        .args(["--exact", name, "--nocapture"]);
    let ran = run(&mut command, b"", deadline);
    // Set in, so that nobody takes its result for one more.
    for line in ran.text().lines().chain(ran.err.lines()) {
        println!("  {line}");
    }
    assert_eq!(ran.code, 0, "{ran}");
    assert!(ran.text().contains("1 passed"), "{ran}");
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its words, for messages.
    pub line: String,
    /// Its exit code; 128 and the number of the signal that ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub out: Vec<u8>,
    /// What it wrote to standard error.
    pub err: String,
}

impl Ran {
    /// The same, which ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// The same, which ended with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Standard output as text, its ends trimmed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).trim().to_owned()
    }

    /// The last line of standard output, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.text();
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(30)..].join("\n");
        write!(
            f,
            "`{}` ended with {}\n--- stdout (its end)\n{shown}\n--- stderr\n{}",
            self.line, self.code, self.err
        )
    }
}

/// Runs `command` with `input` on its standard input. At the deadline it is killed and the test fails.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8], deadline: Duration) -> Ran {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = words.join(" ");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{line}` cannot be started: {error}"));
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // A command that does not read to the end is free not to.
        thread::spawn(move || stdin.write_all(&input));
    }
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let until = Instant::now() + deadline;
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if Instant::now() > until {
            late = true;
            end(&mut child);
        }
        thread::sleep(Duration::from_millis(20));
    };
    let held = "nobody holds the output of a command that has ended";
    let ran = Ran {
        line,
        code: status.code().unwrap_or(128 + status.signal().unwrap_or(0)),
        out: out.recv_timeout(Duration::from_secs(20)).expect(held),
        err: String::from_utf8_lossy(&err.recv_timeout(Duration::from_secs(20)).expect(held))
            .into_owned(),
    };
    assert!(!late, "not done within {} s: {ran}", deadline.as_secs());
    ran
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
}

fn collect(source: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // What came before an error is what there is.
            let _ = source.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}
