//! `forge scp`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use forge::interrupt;
use forge::machine::{Forge, Record, access};
use forge::remote::{Place, copy, signalled};
use forge_driver::{Error, Fact, Kind, Result, process};

use super::place::{Remote, here, machine, patience, wrong_count};
use super::ssh::program;
use super::{Outcome, Session};

/// Copy files between this host and machines, or from one machine to another
///
/// A path of a machine is `MACHINE:PATH` or `USER@MACHINE:PATH`; every other path, and what follows `localhost:`, is this
/// host's. OpenSSH's scp does it, with the machines' own keys and host keys, and its exit code is forge's; where it is not
/// installed, forge copies by itself.
#[derive(Args)]
pub struct Scp {
    /// Copy folders with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Send only what differs, by rsync, which has to be installed here and on the machine
    #[arg(short, long)]
    delta: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// From where, and to where
    #[arg(value_names = ["SOURCE", "TARGET"], num_args = 0..)]
    paths: Vec<OsString>,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A path of this host.
    Here(OsString),
    /// A path of a machine.
    There(Remote),
}

impl Side {
    /// What follows `localhost:` is this host's, as every word without a colon.
    fn read(word: &OsStr) -> Result<Self> {
        Ok(match Remote::read(word)? {
            None => Self::Here(word.to_owned()),
            Some(remote) if remote.machine == "localhost" => Self::Here(remote.path),
            Some(remote) => Self::There(remote),
        })
    }

    fn machine(&self) -> Option<&str> {
        match self {
            Self::Here(_) => None,
            Self::There(remote) => Some(&remote.machine),
        }
    }

    /// Where this program copies from or to; the next of the machines where it is one.
    async fn place(
        &self,
        session: &Session,
        machines: &mut impl Iterator<Item = &(Forge, Record)>,
    ) -> Result<Place> {
        let Self::There(Remote { user, path, .. }) = self else {
            return Ok(Place::Here(PathBuf::from(self.word())));
        };
        let path = path.to_str().ok_or_else(|| {
            Error::new(Kind::Usage, format!("`{}` is no text", path.display()))
                .hint("install openssh-client: its scp copies such files")
        })?;
        let (forge, record) = machines
            .next()
            .ok_or_else(|| Error::new(Kind::Failed, "a machine was not loaded"))?;
        let patience = session.patience();
        let guest = access::guest(&forge.store, record, user.as_deref(), patience).await?;
        Ok(Place::There(guest, path.to_owned()))
    }

    /// As scp and rsync read it.
    fn word(&self) -> OsString {
        match self {
            Self::Here(path) => here(path),
            Self::There(remote) => remote.word(),
        }
    }
}

impl Scp {
    /// Copies.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let [from, to] = self.paths.as_slice() else {
            return Err(wrong_count("`scp` takes a source and a target"));
        };
        let sides = [Side::read(from)?, Side::read(to)?];
        let mut machines = Vec::new();
        for name in sides.iter().filter_map(Side::machine) {
            machines.push(machine(session, name).await?);
        }
        if self.delta {
            return Err(self.by_rsync(session, &sides, &machines)?);
        }
        match program(session, "scp") {
            Some(program) => {
                session.tell(&format!("copying by `{}`", program.display()));
                Err(self.by_openssh(session, &program, &sides, &machines)?)
            }
            None => {
                session.tell("copying by forge itself");
                self.by_ourselves(session, &sides, &machines).await
            }
        }
    }

    /// Becomes OpenSSH's `scp`. Comes back only with what kept it from that.
    fn by_openssh(
        &self,
        session: &Session,
        program: &Path,
        sides: &[Side; 2],
        machines: &[(Forge, Record)],
    ) -> Result<Error> {
        let mut command = Command::new(program);
        command.arg("-F").arg(configured(machines)?);
        command.arg("-o").arg(patience(session));
        if machines.len() == 2 {
            // The two need not reach each other, and neither has the other's key.
            command.arg("-3");
        }
        command.args(self.recursive.then_some("-r"));
        command.args(self.quiet.then_some("-q"));
        command.args(sides.iter().map(Side::word));
        Ok(process::replace(command))
    }

    /// Becomes `rsync`. Comes back only with what kept it from that.
    fn by_rsync(
        &self,
        session: &Session,
        sides: &[Side; 2],
        machines: &[(Forge, Record)],
    ) -> Result<Error> {
        if machines.len() == 2 {
            return Err(Error::new(
                Kind::Usage,
                "rsync does not copy from one machine to another",
            )
            .hint("leave out `--delta`"));
        }
        let rsync = process::which(Path::new("rsync")).ok_or_else(|| {
            Error::new(Kind::Unavailable, "`rsync` is not installed")
                .hint("install rsync, or leave out `--delta`")
                .fact(Fact::NoProgram("rsync"))
        })?;
        let mut command = Command::new(rsync);
        // rsync(1), `--rsh`: blanks part the words, and quotes keep them together.
        let file = configured(machines)?;
        command.arg("-e").arg(format!(
            "ssh -F \"{}\" -o {}",
            file.display(),
            patience(session)
        ));
        command.args(self.recursive.then_some("-r"));
        command.args(self.quiet.then_some("-q"));
        command.args(sides.iter().map(Side::word));
        Ok(process::replace(command))
    }

    async fn by_ourselves(
        &self,
        session: &Session,
        sides: &[Side; 2],
        machines: &[(Forge, Record)],
    ) -> Result<Outcome> {
        let work = async {
            let mut machines = machines.iter();
            let mut places = Vec::new();
            for side in sides {
                places.push(side.place(session, &mut machines).await?);
            }
            copy(&places[0], &places[1], self.recursive).await
        };
        // What is half copied is copied again: nothing is to be finished first.
        interrupt::pass_on();
        tokio::select! {
            done = work => done.map(|()| Outcome::Done),
            code = signalled() => Ok(Outcome::Code(code?)),
        }
    }
}

/// The file of configuration for these machines; none of the user's where there are none.
fn configured(machines: &[(Forge, Record)]) -> Result<PathBuf> {
    let records: Vec<&Record> = machines.iter().map(|(_, record)| record).collect();
    match machines.first() {
        Some((forge, _)) => access::openssh(&forge.store, &records),
        None => Ok("/dev/null".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_read_as_docker_machine_read_them() {
        let read = |word: &str| Side::read(word.as_ref()).expect(word);
        let word = |word: &str| read(word).word().into_string().expect("text");
        for (given, passed) in [
            ("/tmp/foo", "/tmp/foo"),
            ("foo", "./foo"),
            ("-foo", "./-foo"),
            ("localhost:/a:b", "/a:b"),
            ("localhost:a:b", "./a:b"),
            ("n1:", "n1:"),
            ("n1:/x:y", "n1:/x:y"),
            ("root@n1:~/x", "root@n1:~/x"),
        ] {
            assert_eq!(word(given), passed, "{given}");
        }
        assert_eq!(read("u@n1:a").machine(), Some("n1"));
        assert_eq!(read("u@localhost:a").machine(), None);
    }
}
