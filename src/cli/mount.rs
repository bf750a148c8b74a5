//! `forge mount`

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use clap::Args;
use forge::machine::access;
use forge_driver::{Error, Fact, Kind, Result, process};

use super::place::{Remote, here, machine, patience, wrong_count};
use super::{DEFAULT_MACHINE, Outcome, Session};

/// Mount a folder of a machine here by sshfs, or unmount it
///
/// The folder is mounted on DIR, else on the path that it has on the machine.
#[derive(Args)]
pub struct Mount {
    /// Unmount
    #[arg(short, long)]
    unmount: bool,
    /// The folder of the machine, and where it is to be here
    #[arg(value_names = ["MACHINE:PATH", "DIR"], num_args = 0..)]
    words: Vec<OsString>,
}

/// A folder of a machine. Without a colon, all of it is the path (docker-machine's commands/mount.go,
/// `getInfoForSshfsArg`).
fn source(word: &OsStr) -> Result<Remote> {
    Ok(Remote::read(word)?.unwrap_or_else(|| Remote {
        user: None,
        machine: DEFAULT_MACHINE.to_owned(),
        path: word.to_owned(),
    }))
}

impl Mount {
    /// Becomes sshfs, or what unmounts.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let (from, folder) = match self.words.as_slice() {
            [word] => (source(word)?, None),
            [word, folder] => (source(word)?, Some(folder)),
            _ => {
                return Err(wrong_count(
                    "`mount` takes a folder of a machine, and where to mount it",
                ));
            }
        };
        let folder = here(folder.unwrap_or(&from.path));
        if self.unmount {
            return Err(unmounted(&folder)?);
        }
        let (forge, record) = machine(session, &from.machine).await?;
        let sshfs = process::which(Path::new("sshfs")).ok_or_else(|| {
            Error::new(Kind::Unavailable, "`sshfs` is not installed")
                .hint("install sshfs")
                .fact(Fact::NoProgram("sshfs"))
        })?;
        let mut command = Command::new(sshfs);
        command
            .arg("-F")
            .arg(access::openssh(&forge.store, &[&record])?)
            .arg("-o")
            .arg(patience(session))
            .arg(from.word())
            .arg(folder);
        Err(process::replace(command))
    }
}

/// Becomes what unmounts. Comes back only with what kept it from that.
fn unmounted(folder: &OsStr) -> Result<Error> {
    let known: [(&str, &[&str]); 3] = [
        ("fusermount3", &["-u"]),
        ("fusermount", &["-u"]),
        ("umount", &[]),
    ];
    let found = known.into_iter().find_map(|(name, words)| {
        let program = process::which(Path::new(name))?;
        let mut command = Command::new(program);
        command.args(words).arg(folder);
        Some(command)
    });
    let command = found.ok_or_else(|| {
        Error::new(
            Kind::Unavailable,
            "neither `fusermount3` nor `umount` is installed",
        )
        .hint("install fuse3")
        .fact(Fact::NoProgram("fusermount"))
    })?;
    Ok(process::replace(command))
}
