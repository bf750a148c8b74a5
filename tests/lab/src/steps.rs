//! The steps of a scenario, named in its output.

use std::thread;
use std::time::{Duration, Instant};

/// Prints each step when it begins, and at the end the minutes of the whole.
pub struct Steps {
    scenario: String,
    began: Instant,
    step: Option<(String, Instant)>,
}

impl Steps {
    /// Begins a scenario.
    pub fn new(scenario: &str) -> Self {
        eprintln!("\n== {scenario}");
        Self {
            scenario: scenario.to_owned(),
            began: Instant::now(),
            step: None,
        }
    }

    /// Begins the next step.
    pub fn step(&mut self, what: &str) {
        self.close("");
        self.step = Some((what.to_owned(), Instant::now()));
    }

    /// Says something about the step.
    pub fn note(&self, what: &str) {
        for line in what.lines() {
            eprintln!("      {line}");
        }
    }

    fn close(&mut self, how: &str) {
        if let Some((what, began)) = self.step.take() {
            eprintln!("{:6.1} s  {what}{how}", began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        let how = if thread::panicking() { ": FAILED" } else { "" };
        self.close(how);
        eprintln!(
            "== {}{how}: {:.1} min",
            self.scenario,
            self.began.elapsed().as_secs_f64() / 60.0
        );
    }
}

/// Asks until `what` is so; fails at the deadline with the last answer.
#[track_caller]
pub fn wait<T>(what: &str, deadline: Duration, ask: impl Fn() -> Result<T, String>) -> T {
    let until = Instant::now() + deadline;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) if Instant::now() > until => {
                panic!("{what}: not within {} s: {why}", deadline.as_secs())
            }
            Err(_) => thread::sleep(Duration::from_millis(300)),
        }
    }
}
