//! What happens while a command works: values, drawn by the command line and by nobody else.

use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Something that happened, to one machine or to the whole.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// Work on a step began; the one before it is over.
    Step {
        /// The machine; `None` for the command as a whole.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// What is being done.
        step: String,
        /// What is awaited, when this step waits.
        #[serde(skip_serializing_if = "String::is_empty")]
        awaits: String,
        /// When the wait ends; in JSON, in how many seconds.
        #[serde(
            rename = "seconds_left",
            serialize_with = "left",
            skip_serializing_if = "Option::is_none"
        )]
        deadline: Option<Instant>,
    },
    /// A wait goes on: the last thing that went wrong.
    Trouble {
        /// The machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// The error, on one line.
        error: String,
    },
    /// A step of a playbook ended.
    Result {
        /// The machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// Which step.
        step: String,
        /// `ok`, `changed`, `failed`, `skipped`, `would-change`
        status: String,
    },
    /// All work on a machine is over.
    Finished {
        /// The machine.
        machine: String,
        /// What it is now.
        outcome: String,
        /// Whether anything was changed.
        changed: bool,
    },
    /// Something the user should know.
    Warning {
        /// In plain words.
        text: String,
    },
    /// How long something took.
    Span {
        /// The machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// What: `driver.create`, `wait.ssh` …
        name: String,
        /// Seconds.
        seconds: f64,
    },
}

fn left<S: Serializer>(deadline: &Option<Instant>, to: S) -> Result<S::Ok, S::Error> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    left.map(|left| left.as_secs_f64().round()).serialize(to)
}

/// The sending end: cheap to clone, one for each machine by [`Events::of`].
#[derive(Clone, Debug)]
pub struct Events {
    machine: Option<String>,
    sender: Option<mpsc::Sender<Event>>,
}

/// So many events may be under way; a sender then waits for the drawing task.
const QUEUE: usize = 256;

impl Events {
    /// A sender and the receiver that draws.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (
            Self {
                machine: None,
                sender: Some(sender),
            },
            receiver,
        )
    }

    /// Events that nobody hears.
    pub fn silent() -> Self {
        Self {
            machine: None,
            sender: None,
        }
    }

    /// The same events, said of one machine.
    #[must_use]
    pub fn of(&self, machine: &str) -> Self {
        Self {
            machine: Some(machine.to_owned()),
            sender: self.sender.clone(),
        }
    }

    /// A step began; `awaits` is empty when nothing is awaited.
    pub async fn step(&self, step: &str, awaits: &str, deadline: Option<Instant>) {
        self.send(Event::Step {
            machine: self.machine.clone(),
            step: step.to_owned(),
            awaits: awaits.to_owned(),
            deadline,
        })
        .await;
    }

    /// A wait goes on after this error.
    pub async fn trouble(&self, error: &forge_driver::Error) {
        self.send(Event::Trouble {
            machine: self.machine.clone(),
            error: error.line(),
        })
        .await;
    }

    /// A step of a playbook ended. Dropped when the queue is full: called from plain code.
    pub fn result(&self, step: &str, status: &str) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Event::Result {
                machine: self.machine.clone(),
                step: step.to_owned(),
                status: status.to_owned(),
            });
        }
    }

    /// A wait goes on, for this reason. Dropped when the queue is full: called from plain code.
    pub fn waits(&self, why: &str) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Event::Trouble {
                machine: self.machine.clone(),
                error: why.to_owned(),
            });
        }
    }

    /// Progress inside a step. Dropped when the queue is full: called from plain code.
    pub fn progress(&self, step: &str) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Event::Step {
                machine: self.machine.clone(),
                step: step.to_owned(),
                awaits: String::new(),
                deadline: None,
            });
        }
    }

    /// All work on this machine is over.
    pub async fn finished(&self, outcome: &str, changed: bool) {
        self.send(Event::Finished {
            machine: self.machine.clone().unwrap_or_default(),
            outcome: outcome.to_owned(),
            changed,
        })
        .await;
    }

    /// Something the user should know.
    pub async fn warning(&self, text: impl Into<String>) {
        self.send(Event::Warning { text: text.into() }).await;
    }

    /// Something took so long.
    pub async fn span(&self, name: &str, took: Duration) {
        self.send(Event::Span {
            machine: self.machine.clone(),
            name: name.to_owned(),
            seconds: took.as_secs_f64(),
        })
        .await;
    }

    async fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            // The receiver is gone only when the command is over.
            let _ = sender.send(event).await;
        }
    }
}
