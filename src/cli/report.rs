//! How a command says that it failed: what, why, what to try.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use forge_driver::{Error, Kind};
use serde_json::json;

use super::persona::Line;

/// The log of this command, once it has one.
static LOG: OnceLock<PathBuf> = OnceLock::new();

/// Remembers where this command is logged, for the report of a failure.
pub fn logged_at(path: &Path) {
    // A command has one log; a second one would only be less telling.
    let _ = LOG.set(path.to_owned());
}

/// The line that is answered in docker-machine's words.
static LINE: OnceLock<Line> = OnceLock::new();

/// From now on errors are told in docker-machine's words.
pub fn as_docker_machine(line: Line) {
    // A process has one command line.
    let _ = LINE.set(line);
}

/// The exit code for an error of this kind, as the help lists them.
fn code(kind: Kind) -> u8 {
    match kind {
        _ if LINE.get().is_some() => Line::code(kind),
        Kind::Usage => 2,
        Kind::Precheck => 3,
        Kind::Interrupted => 130,
        _ => 1,
    }
}

/// With `--json`: errors are documents, too.
static JSON: OnceLock<()> = OnceLock::new();

/// From now on errors go to standard output as well, as one line of JSON each.
pub fn as_json() {
    // Said twice it means the same.
    let _ = JSON.set(());
}

/// Writes one error to standard error; with `--json` also as an event to standard output.
pub fn write(error: &Error, subject: Option<&str>) {
    if JSON.get().is_some() {
        let event = json!({
            "event": "error",
            "kind": format!("{:?}", error.kind()).to_lowercase(),
            "subject": subject,
            "message": error.message(),
            "causes": error.causes(),
            "hint": error.deepest_hint(),
        });
        // Whoever reads it may have gone.
        let _ = writeln!(std::io::stdout(), "{event}");
    }
    let text = match LINE.get() {
        Some(line) => {
            if let Some(help) = line.help(error) {
                let _ = write!(std::io::stdout(), "{help}");
            }
            line.words(error)
        }
        None => lines(error, subject),
    };
    // Standard error may be closed; the exit code still tells.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What failed, why, what to try: a line each.
fn lines(error: &Error, subject: Option<&str>) -> String {
    let mut text = String::new();
    let subject = subject
        .map(|subject| format!("{subject}: "))
        .unwrap_or_default();
    text.push_str(&format!("error: {subject}{}\n", error.message()));
    for cause in error.causes() {
        text.push_str(&format!("caused by: {cause}\n"));
    }
    if let Some(hint) = error.deepest_hint() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

/// Writes the error that ended the command, and gives its exit code.
pub fn failed(error: &Error, subject: Option<&str>) -> ExitCode {
    write(error, subject);
    let in_few_words = LINE.get().is_some() && error.deepest_fact().is_some();
    if let Some(path) = LOG.get()
        && !matches!(error.kind(), Kind::Usage | Kind::Precheck)
        && !in_few_words
    {
        note(&format!("log: {}", path.display()));
    }
    ExitCode::from(code(error.kind()))
}

/// A line for the user that is no data.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(code(Kind::Usage), 2);
        assert_eq!(code(Kind::Precheck), 3);
        assert_eq!(code(Kind::NotFound), 1);
        assert_eq!(code(Kind::Timeout), 1);
    }
}
