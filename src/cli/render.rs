//! One task draws: bars on a terminal, plain lines otherwise, JSON lines with `--json`; and keeps the
//! command's log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use forge::event::Event;
use forge::machine::{Forge, adopt};
use forge::store::Store;
use forge_driver::{Result, atomic};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

use super::{persona, report};

/// A line is printed at least this often while something is awaited.
const SILENCE: Duration = Duration::from_secs(10);
/// So many logs are kept.
const LOGS: usize = 200;
/// The steps that a machine goes through, in order, for the length of its bar.
const STEPS: [&str; 4] = ["starting", "connecting", "first contact", "provisioning"];

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line with a bar for each machine, on a terminal.
    Bars,
    /// Lines.
    Plain {
        /// With everything that happens.
        debug: bool,
    },
    /// The lines that docker-machine had, on standard output.
    Words {
        /// With everything that happens, on standard error.
        debug: bool,
    },
    /// JSON, a line an event, on standard output.
    Json,
}

/// The drawing task of one command.
pub struct Drawing {
    task: JoinHandle<()>,
}

impl Drawing {
    /// Starts the task, and the log of this command in the store.
    ///
    /// # Errors
    /// When the log cannot be made.
    pub fn start(
        style: Style,
        receiver: mpsc::Receiver<Event>,
        store: &Store,
        command: &str,
    ) -> Result<Self> {
        let folder = store.logs_dir();
        prune(&folder);
        let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let path = folder.join(format!("{stamp}-{}-{command}.log", std::process::id()));
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| {
                atomic::full(
                    error,
                    &format!("failed to begin the log `{}`", path.display()),
                )
            })?;
        report::logged_at(&path);
        let canvas = Canvas {
            style,
            command: command.to_owned(),
            log,
            lines: BTreeMap::new(),
            off: BTreeSet::new(),
            bars: (style == Style::Bars)
                .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5))),
        };
        Ok(Self {
            task: tokio::spawn(draw(canvas, receiver)),
        })
    }

    /// Lets the task draw what is left, once all work is over.
    pub async fn finish(self, forge: Forge) {
        drop(forge);
        // Tasks that were given up still hold a sender: what they say no longer matters.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.task).await;
    }
}

/// Keeps the newest logs.
fn prune(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let surplus = names.len().saturating_sub(LOGS);
    for name in &names[..surplus] {
        // Another command may prune too; a log that stays costs nothing.
        let _ = fs::remove_file(folder.join(name));
    }
}

struct Line {
    step: String,
    awaits: String,
    error: String,
    deadline: Option<Instant>,
    since: Instant,
    printed: Instant,
    bar: Option<ProgressBar>,
    over: bool,
}

struct Canvas {
    style: Style,
    command: String,
    log: File,
    lines: BTreeMap<String, Line>,
    bars: Option<MultiProgress>,
    /// The machines that a restart found off.
    off: BTreeSet<String>,
}

async fn draw(mut canvas: Canvas, mut receiver: mpsc::Receiver<Event>) {
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            event = receiver.recv() => match event {
                Some(event) => canvas.event(&event),
                None => break,
            },
            _ = tick.tick() => canvas.tick(),
        }
    }
    canvas.clear();
}

impl Canvas {
    fn event(&mut self, event: &Event) {
        let json = serde_json::to_string(event).unwrap_or_default();
        // A full disk must not end the command for the sake of its log.
        let _ = writeln!(self.log, "{} {json}", Timestamp::now());
        if self.style == Style::Json {
            println!("{json}");
        }
        if matches!(self.style, Style::Words { .. }) {
            self.words(event);
        }
        match event {
            Event::Step {
                machine,
                step,
                awaits,
                deadline,
            } => self.step(machine.as_deref(), step, awaits, *deadline),
            Event::Trouble { machine, error } => {
                let line = self.line(machine.as_deref());
                line.error.clone_from(error);
                self.redraw(machine.as_deref());
                if self.shows_all() {
                    self.print(machine.as_deref(), error);
                }
            }
            Event::Result {
                machine,
                step,
                status,
            } => {
                if self.shows_all() {
                    self.print(machine.as_deref(), &format!("{status}: {step}"));
                }
            }
            Event::Finished {
                machine,
                outcome,
                changed,
            } => {
                let line = self.line(Some(machine));
                line.over = true;
                if let Some(bar) = line.bar.take() {
                    bar.finish_and_clear();
                }
                let suffix = if *changed { "" } else { " (nothing to change)" };
                self.print(Some(machine), &format!("{outcome}{suffix}"));
            }
            Event::Warning { text } => self.print(None, &format!("warning: {text}")),
            Event::Span {
                machine,
                name,
                seconds,
            } => {
                if self.shows_all() {
                    self.print(machine.as_deref(), &format!("{name} took {seconds:.2} s"));
                }
            }
        }
    }

    fn shows_all(&self) -> bool {
        matches!(
            self.style,
            Style::Plain { debug: true } | Style::Words { debug: true }
        )
    }

    /// Says what docker-machine said when its work on a machine began and when it was done.
    fn words(&mut self, event: &Event) {
        let (machine, done) = match event {
            Event::Step {
                machine: Some(machine),
                ..
            } => (machine, false),
            // Nothing was set up.
            Event::Finished { outcome, .. } if outcome == adopt::NOTED => return,
            Event::Finished {
                machine, changed, ..
            } => (machine, *changed),
            _ => return,
        };
        let begins = !self.lines.contains_key(machine);
        let begun = persona::begun(&self.command, machine).filter(|_| begins);
        let mut started = None;
        if self.command == "restart" && matches!(event, Event::Finished { .. }) {
            // A machine that was off had nothing to be stopped, and is started.
            if !done && self.off.insert(machine.clone()) {
                started = persona::begun("start", machine);
            } else if done && self.off.contains(machine) {
                started = persona::done("start", machine);
            }
        }
        let done = persona::done(&self.command, machine).filter(|_| done);
        for line in [begun, started, done].into_iter().flatten() {
            println!("{line}");
        }
    }

    fn step(&mut self, machine: Option<&str>, step: &str, awaits: &str, deadline: Option<Instant>) {
        let line = self.line(machine);
        let new = line.step != step;
        line.step = step.to_owned();
        line.awaits = awaits.to_owned();
        line.deadline = deadline;
        line.over = false;
        if new {
            line.error.clear();
            line.since = Instant::now();
            line.printed = Instant::now();
            if matches!(self.style, Style::Plain { .. } | Style::Words { .. }) {
                self.print(machine, step);
            }
        }
        self.redraw(machine);
    }

    fn line(&mut self, machine: Option<&str>) -> &mut Line {
        let name = machine.unwrap_or_default();
        let bars = self.bars.as_ref();
        self.lines.entry(name.to_owned()).or_insert_with(|| {
            let bar = bars.map(|bars| {
                let template = if name.is_empty() {
                    "{spinner} {msg}"
                } else {
                    "{spinner} {prefix:16!} [{bar:16}] {wide_msg}"
                };
                // Our own template: malformed it would be our own bug.
                let style = ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> ");
                let bar = bars.add(ProgressBar::new(STEPS.len() as u64 + 1).with_style(style));
                bar.set_prefix(name.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
                bar
            });
            Line {
                step: String::new(),
                awaits: String::new(),
                error: String::new(),
                deadline: None,
                since: Instant::now(),
                printed: Instant::now(),
                bar,
                over: false,
            }
        })
    }

    fn redraw(&mut self, machine: Option<&str>) {
        let line = self.line(machine);
        let Some(bar) = line.bar.clone() else { return };
        let done = STEPS
            .iter()
            .position(|step| line.step.starts_with(step))
            .unwrap_or(0);
        bar.set_position(done as u64 + 1);
        bar.set_message(describe(line, Instant::now()));
    }

    /// Says what is awaited, for everything that has been silent for too long.
    fn tick(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for (name, line) in &mut self.lines {
            if line.over || line.step.is_empty() {
                continue;
            }
            if now.duration_since(line.printed) >= SILENCE {
                line.printed = now;
                late.push((name.clone(), describe(line, now)));
            }
        }
        for (name, text) in late {
            let machine = (!name.is_empty()).then_some(name.as_str());
            match self.style {
                Style::Bars => self.redraw(machine),
                Style::Plain { .. } | Style::Words { .. } => self.print(machine, &text),
                Style::Json => {
                    let line =
                        serde_json::json!({"event": "waiting", "machine": machine, "text": text});
                    println!("{line}");
                }
            }
        }
    }

    fn print(&mut self, machine: Option<&str>, text: &str) {
        // Of a machine, docker-machine's words are all.
        if self.style == Style::Json
            || (self.style == Style::Words { debug: false } && machine.is_some())
        {
            return;
        }
        let line = match machine {
            Some(machine) => format!("{machine}: {text}"),
            None => text.to_owned(),
        };
        match &self.bars {
            // That the terminal is gone shows nowhere else either.
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => report::note(&line),
        }
    }

    fn clear(&mut self) {
        for line in self.lines.values_mut() {
            if let Some(bar) = line.bar.take() {
                bar.finish_and_clear();
            }
        }
    }
}

/// The step, what is awaited, the last error, the time left.
fn describe(line: &Line, now: Instant) -> String {
    let mut text = line.step.clone();
    if !line.awaits.is_empty() {
        text.push_str(&format!(", waiting for {}", line.awaits));
    }
    text.push_str(&format!(
        ", {} s so far",
        now.duration_since(line.since).as_secs()
    ));
    if let Some(deadline) = line.deadline {
        let left = deadline.saturating_duration_since(now).as_secs();
        text.push_str(&format!(", {left} s left"));
    }
    if !line.error.is_empty() {
        text.push_str(&format!(", last error: {}", line.error));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_line_says_all_there_is_to_say() {
        let begin = Instant::now();
        let line = Line {
            step: "connecting".into(),
            awaits: "an SSH server".into(),
            error: "connection refused".into(),
            deadline: Some(begin + Duration::from_secs(90)),
            since: begin,
            printed: begin,
            bar: None,
            over: false,
        };
        assert_eq!(
            describe(&line, begin + Duration::from_secs(12)),
            "connecting, waiting for an SSH server, 12 s so far, 78 s left, last error: connection refused"
        );
    }
}
