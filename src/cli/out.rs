//! Standard output. A reader who has had enough and has gone is no failure: what is left to say is said to nobody. A
//! disk that is full is one, and the exit code tells, since a script takes what it was given for the whole.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use forge_driver::{Error, Kind, Result};

/// Why standard output could not be written, the first time.
static FAILED: OnceLock<String> = OnceLock::new();

/// Writes to standard output, as far as that goes.
pub fn write(text: Arguments<'_>) {
    if FAILED.get().is_none() {
        note(std::io::stdout().write_fmt(text));
    }
}

fn note(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one tells.
        let _ = FAILED.set(error.to_string());
    }
}

/// Everything that was said has been written, or nobody wanted it any more.
///
/// # Errors
/// [`Kind::Io`] when it could not be.
pub fn finish() -> Result<()> {
    note(std::io::stdout().flush());
    FAILED.get().map_or(Ok(()), |why| {
        Err(Error::new(Kind::Io, "failed to write to standard output").because(why.as_str()))
    })
}
