//! What came of several machines: told one by one, summed up, and how the command ends.

use forge_driver::{Error, Result};
use serde_json::{Value, json};

use super::{Outcome, Session, report};

/// At most so many machines are worked on at once.
pub const FAN_OUT: usize = 32;

/// What each machine came to.
pub type Done<T> = Vec<(String, Result<T>)>;

/// How much of a machine was changed: whether, or how many steps.
pub trait Changed {
    /// As a number; 0 for nothing.
    fn count(&self) -> usize;
}

impl Changed for bool {
    fn count(&self) -> usize {
        usize::from(*self)
    }
}

impl Changed for usize {
    fn count(&self) -> usize {
        *self
    }
}

/// The last line of `--json`.
pub fn summary<T: Changed>(done: &[(String, Result<T>)]) -> Value {
    json!({
        "event": "summary",
        "changed": done.iter().filter_map(|(_, result)| Some(result.as_ref().ok()?.count())).sum::<usize>(),
        "machines": done.iter().map(|(name, result)| json!({
            "name": name,
            "ok": result.is_ok(),
            "error": result.as_ref().err().map(Error::line),
        })).collect::<Vec<_>>(),
    })
}

/// Says how a command ended: its summary, where JSON is wanted, and each failure.
///
/// # Errors
/// As [`conclude`].
pub fn finish<T: Changed>(session: &Session, done: Done<T>) -> Result<Outcome> {
    if session.json() {
        println!("{}", summary(&done));
    }
    conclude(done)
}

/// Reports each failure; the last one ends the command.
///
/// # Errors
/// When any machine failed.
pub fn conclude<T>(done: Done<T>) -> Result<Outcome> {
    let mut last = None;
    for (_, result) in done {
        if let Err(error) = result
            && let Some(earlier) = last.replace(error)
        {
            report::write(&earlier, None);
        }
    }
    match last {
        Some(error) => Err(error),
        None => Ok(Outcome::Done),
    }
}
