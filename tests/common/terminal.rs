//! Somebody at a terminal: what a command shows there while answers are typed.

use std::fs;
use std::io::{Read, Write};

use super::{Lab, Run, until};

/// What a terminal has shown of a command, and the code that it ended with.
pub struct Shown {
    /// Everything on the screen.
    pub text: String,
    /// The exit code.
    pub code: i32,
}

impl Shown {
    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    /// Asserts that this is shown.
    #[track_caller]
    pub fn shows(self, text: &str) -> Self {
        assert!(self.text.contains(text), "{text}: {}", self.text);
        self
    }

    /// Asserts that this is not shown.
    #[track_caller]
    pub fn hides(self, text: &str) -> Self {
        assert!(!self.text.contains(text), "{text}: {}", self.text);
        self
    }
}

/// Runs a command at a terminal of its own while these lines are typed, each once the screen shows its question.
/// script(1) gives it the terminal, and timeout(1) ends what waits for more.
pub fn typed(lab: &Lab, run: &Run<'_>, dialogue: &[(&str, &str)]) -> Shown {
    let pipe = lab.folder().join("keys");
    let script = "mkfifo keys && exec timeout 60 script -qec \"$LINE\" /dev/null <keys";
    let mut running = lab
        .forge("")
        .env("LINE", run.line())
        .under("sh", &["-c", script], &[])
        .start();
    until("it can be typed", || pipe.exists());
    // Opened for both, a pipe waits for nobody at its other end (fifo(7)).
    let mut keys = fs::File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("opened");
    let mut screen = running.child.stdout.take().expect("a screen");
    let mut text = String::new();
    let mut seen = 0;
    for (question, line) in dialogue {
        loop {
            if let Some(at) = text[seen..].find(question) {
                seen += at + question.len();
                break;
            }
            let mut bytes = [0; 512];
            let count = screen.read(&mut bytes).expect("shown");
            assert_ne!(count, 0, "it asks `{question}`: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        keys.write_all(line.as_bytes()).expect("typed");
    }
    screen.read_to_string(&mut text).expect("shown");
    drop(keys);
    let code = running.wait(lab).code;
    // Whoever read it would wait for ever.
    fs::remove_file(pipe).expect("removed");
    Shown { text, code }
}
