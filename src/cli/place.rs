//! Paths on a command line: this host's, or a machine's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use forge::machine::{Forge, Record};
use forge_driver::{Error, Fact, Kind, Result};

use super::Session;
use super::ssh::arrive;

/// A path of a machine, as `MACHINE:PATH` or `USER@MACHINE:PATH` says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Remote {
    /// Who logs in, where that is said.
    pub user: Option<String>,
    /// The machine's name.
    pub machine: String,
    /// The path there.
    pub path: OsString,
}

impl Remote {
    /// Reads it; `None` for a word without a colon. What stands before the first one is a machine (docker-machine's
    /// commands/scp.go, `getInfoForScpArg`).
    ///
    /// # Errors
    /// [`Kind::Usage`] for a machine whose name is no text.
    pub fn read(word: &OsStr) -> Result<Option<Self>> {
        let bytes = word.as_bytes();
        let Some(at) = bytes.iter().position(|byte| *byte == b':') else {
            return Ok(None);
        };
        let host = std::str::from_utf8(&bytes[..at]).map_err(|error| {
            Error::new(
                Kind::Usage,
                format!("`{}` names no machine", word.display()),
            )
            .because(error)
        })?;
        let (user, machine) = match host.split_once('@') {
            Some((user, machine)) => (Some(user.to_owned()), machine),
            None => (None, host),
        };
        Ok(Some(Self {
            user,
            machine: machine.to_owned(),
            path: OsString::from_vec(bytes[at + 1..].to_vec()),
        }))
    }

    /// As scp, rsync and sshfs read it.
    pub fn word(&self) -> OsString {
        let mut word = OsString::new();
        if let Some(user) = &self.user {
            word.push(user);
            word.push("@");
        }
        word.push(&self.machine);
        word.push(":");
        word.push(&self.path);
        word
    }
}

/// A path of this host that is neither taken for an option nor for a machine's.
pub fn here(path: &OsStr) -> OsString {
    let bytes = path.as_bytes();
    if bytes.starts_with(b"/") {
        return path.to_owned();
    }
    let mut word = OsString::from("./");
    word.push(path);
    word
}

/// A machine that is named on a command line, as it can be connected to.
///
/// # Errors
/// As [`Record::load`], also where there is no store yet, and [`arrive`].
pub async fn machine(session: &Session, name: &str) -> Result<(Forge, Record)> {
    if session.existing()?.is_none() {
        return Err(Record::missing(name));
    }
    let forge = session.reader()?;
    let record = Record::load(&forge.store, name)?;
    let record = arrive(&forge, &record).await?;
    Ok((forge, record))
}

/// How long a connection may take, as a setting of OpenSSH's.
pub fn patience(session: &Session) -> String {
    format!("ConnectTimeout={}", session.patience().as_secs().max(1))
}

/// That a command was given too many words or too few.
pub fn wrong_count(takes: &str) -> Error {
    Error::new(Kind::Usage, takes).fact(Fact::WrongCount)
}
