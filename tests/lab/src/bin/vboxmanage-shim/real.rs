//! The real VBoxManage.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::Result;

fn program() -> Result<Command> {
    let program = std::env::var_os("FORGE_VIRTUALBOX_REAL")
        .ok_or("run me through tests/lab/with-virtualbox")?;
    Ok(Command::new(program))
}

/// The folder in which the shim keeps what it knows.
pub fn state() -> Result<PathBuf> {
    let folder = std::env::var_os("FORGE_VIRTUALBOX_STATE")
        .ok_or("run me through tests/lab/with-virtualbox")?;
    Ok(PathBuf::from(folder))
}

/// Becomes the real VBoxManage: arguments, streams and exit code are its own.
pub fn exec(words: &[OsString]) -> Result<u8> {
    Err(program()?.args(words).exec().into())
}

/// Runs the real VBoxManage with the streams of this call, for when there is something to do afterwards.
pub fn tell<W: AsRef<OsStr>>(words: &[W]) -> Result<u8> {
    let status = program()?.args(words).status()?;
    Ok(code(status))
}

/// Runs the real VBoxManage and takes what it says.
pub fn hear<W: AsRef<OsStr>>(words: &[W]) -> Result<Output> {
    Ok(program()?.args(words).stdin(Stdio::null()).output()?)
}

/// What a call that must succeed says on standard output.
pub fn ask(words: &[&str]) -> Result<String> {
    let output = hear(words)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into())
    }
}

/// The exit code of a child; 1 when a signal ended it.
pub fn code(status: std::process::ExitStatus) -> u8 {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}
