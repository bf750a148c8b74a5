//! A compiled script on a machine, its frames read as they arrive.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use forge_driver::{Error, Kind, Result, process};

use super::compile::Job;
use super::parse::OutputKind;
use super::{Report, Secrets, Status, StepResult};
use crate::remote::{Guest, as_root};
use crate::secret::Secret;

/// At most this much of a step's output is kept: its end.
const STEP_OUTPUT: usize = 64 << 10;
/// Lines of output that a failure shows.
const SHOWN: usize = 15;

/// Runs `job`, reporting each step to `on_step` as it ends, and whenever it says what it waits for.
///
/// # Errors
/// [`Kind::Failed`] when a step failed, naming it and showing the end of what it printed; the steps
/// after it did not run. [`Kind::Timeout`] at the deadline, naming the step that was running.
pub async fn run(
    guest: &dyn Guest,
    job: &Job,
    deadline: Duration,
    on_step: &(dyn Fn(&StepResult) + Send + Sync),
) -> Result<Report> {
    let mut reader = Reader::new(job, on_step);
    let mut sink = |bytes: &[u8]| reader.take(bytes);
    // When this side is gone, the next frame meets a closed pipe and ends the script.
    let (command, input) = as_root(guest, &job.script);
    let outcome = guest.stream(command, &input, deadline, &mut sink).await;
    reader.finish(outcome)
}

struct Reader<'a> {
    job: &'a Job,
    on_step: &'a (dyn Fn(&StepResult) + Send + Sync),
    mark: Vec<u8>,
    line: Vec<u8>,
    output: Vec<u8>,
    values: BTreeMap<String, String>,
    report: Report,
    known: Vec<String>,
    failure: Option<Error>,
    greeted: bool,
    done: bool,
}

impl<'a> Reader<'a> {
    fn new(job: &'a Job, on_step: &'a (dyn Fn(&StepResult) + Send + Sync)) -> Self {
        let mut reader = Self {
            job,
            on_step,
            mark: format!("@{} ", job.nonce).into_bytes(),
            line: Vec::new(),
            output: Vec::new(),
            values: BTreeMap::new(),
            report: Report::default(),
            known: Vec::new(),
            failure: None,
            greeted: false,
            done: false,
        };
        for secret in job.secrets.0.values() {
            reader.learn(secret.expose());
        }
        reader
    }

    /// Notes a text that must not be shown, and its lines: commands may print it indented or in part.
    fn learn(&mut self, secret: &str) {
        let parts = secret
            .lines()
            .map(str::trim)
            .filter(|line| line.len() >= 6 && !line.starts_with("-----"));
        for part in std::iter::once(secret.trim()).chain(parts) {
            if !part.is_empty() {
                self.known.push(part.to_owned());
            }
        }
        self.known.sort_by_key(|part| std::cmp::Reverse(part.len()));
        self.known.dedup();
    }

    fn masked(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let mut text = text.trim_matches('\n').to_owned();
        for part in &self.known {
            if text.contains(part.as_str()) {
                text = text.replace(part.as_str(), "***");
            }
        }
        text
    }

    fn take(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.whole_line(&line);
                if self.done {
                    return ControlFlow::Break(());
                }
            } else if self.line.len() > STEP_OUTPUT {
                let line = std::mem::take(&mut self.line);
                self.keep(&line);
            }
        }
        ControlFlow::Continue(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        if self.output.len() > 2 * STEP_OUTPUT {
            self.output.drain(..self.output.len() - STEP_OUTPUT);
        }
    }

    fn whole_line(&mut self, line: &[u8]) {
        let Some(frame) = line.strip_prefix(self.mark.as_slice()) else {
            self.keep(line);
            return;
        };
        let frame =
            String::from_utf8_lossy(frame.strip_suffix(b"\n").unwrap_or(frame)).into_owned();
        // A frame is preceded by a line feed of its own.
        if self.output.last() == Some(&b'\n') {
            self.output.pop();
        }
        let (verb, rest) = frame.split_once(' ').unwrap_or((&frame, ""));
        match verb {
            "hello" => {
                self.greeted = true;
                self.output.clear();
            }
            "try" => {
                self.output.clear();
                self.values.clear();
            }
            "out" => self.value(rest),
            "wait" => self.waits(rest),
            "end" => self.end(rest),
            "done" => self.done = true,
            _ => {}
        }
    }

    fn value(&mut self, rest: &str) {
        let (name, line) = rest.split_once(' ').unwrap_or((rest, ""));
        match self.values.get_mut(name) {
            Some(value) => {
                value.push('\n');
                value.push_str(line);
            }
            None => {
                self.values.insert(name.to_owned(), line.to_owned());
            }
        }
    }

    fn waits(&self, what: &str) {
        if let Some(step) = self.job.steps.get(self.report.steps.len()) {
            (self.on_step)(&StepResult {
                playbook: step.playbook.clone(),
                step: step.name.clone(),
                status: Status::Waits,
                output: self.masked(what.as_bytes()),
            });
        }
    }

    fn end(&mut self, rest: &str) {
        let mut words = rest.splitn(3, ' ');
        let index = words.next().and_then(|word| word.parse::<usize>().ok());
        let status = match words.next() {
            Some("ok") => Status::Ok,
            Some("changed") => Status::Changed,
            Some("skipped") => Status::Skipped,
            Some("would-change") => Status::WouldChange,
            _ => Status::Failed,
        };
        let reason = words.next().unwrap_or_default();
        let Some(step) = index.and_then(|index| self.job.steps.get(index)) else {
            return;
        };
        let mut undeclared = None;
        for (name, value) in std::mem::take(&mut self.values) {
            match step.outputs.get(&name) {
                Some(OutputKind::Plain) => {
                    self.report.outputs.insert(name, value);
                }
                Some(OutputKind::Secret) => {
                    self.learn(&value);
                    self.report.secrets.0.insert(name, Secret::new(value));
                }
                None => undeclared = Some(name),
            }
        }
        let output = std::mem::take(&mut self.output);
        let result = StepResult {
            playbook: step.playbook.clone(),
            step: step.name.clone(),
            status,
            output: self.masked(&output),
        };
        if status == Status::Failed {
            self.failure = Some(failure(&result, &why(reason, step.deadline)));
        } else if let Some(name) = undeclared {
            self.failure = Some(failure(
                &result,
                &format!("it returned `{name}`, which is not declared"),
            ));
        }
        (self.on_step)(&result);
        self.report.steps.push(result);
    }

    /// The step that was running when nothing more came.
    fn running(&self) -> String {
        match self.job.steps.get(self.report.steps.len()) {
            Some(step) => format!("step `{}` of playbook `{}`", step.name, step.playbook),
            None => "the end of the playbooks".to_owned(),
        }
    }

    fn finish(mut self, outcome: Result<crate::remote::ExecOutput>) -> Result<Report> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let line = std::mem::take(&mut self.line);
        self.keep(&line);
        let printed = process::tail(&self.masked(&self.output), SHOWN);
        match outcome {
            Ok(_) if self.done && self.report.steps.len() == self.job.steps.len() => {
                Ok(self.report)
            }
            Ok(output) if !self.greeted => {
                let stderr = process::tail(&self.masked(&output.stderr), SHOWN);
                let said = [printed, stderr]
                    .into_iter()
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n");
                let said = if said.is_empty() {
                    format!("the shell ended with status {}", output.status)
                } else {
                    said
                };
                Err(Error::new(Kind::Failed, "failed to start the playbooks").because(said).hint(
                    "the user needs a POSIX shell, and root rights or `sudo` without a password",
                ))
            }
            Ok(output) => {
                let kind = if matches!(output.status, 124 | 137 | 143) {
                    Kind::Timeout
                } else {
                    Kind::Failed
                };
                let why = format!("the shell ended with status {}", output.status);
                Err(Error::new(kind, format!("{} did not end", self.running()))
                    .because(join(&why, &printed)))
            }
            Err(error) => {
                let message = format!("{} did not end", self.running());
                let error = if printed.is_empty() {
                    error
                } else {
                    Error::new(error.kind(), error.line()).because(printed)
                };
                Err(error.context(message))
            }
        }
    }
}

fn failure(result: &StepResult, why: &str) -> Error {
    let shown = process::tail(&result.output, SHOWN);
    Error::new(
        Kind::Failed,
        format!(
            "step `{}` of playbook `{}` failed",
            result.step, result.playbook
        ),
    )
    .because(join(why, &shown))
}

fn join(why: &str, shown: &str) -> String {
    if shown.is_empty() {
        why.to_owned()
    } else {
        format!("{why}\n{shown}")
    }
}

fn why(reason: &str, deadline: u32) -> String {
    match reason.split_once(' ') {
        Some(("exit", "124" | "143" | "137")) => format!("it did not end within {deadline} s"),
        Some(("exit", "99")) => "it gave up".to_owned(),
        Some(("exit", code)) => format!("it ended with status {code}"),
        _ if reason == "check" => "what it checks does not hold".to_owned(),
        _ => "it failed".to_owned(),
    }
}

impl Secrets {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
