//! `forge ssh`

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use forge::interrupt;
use forge::machine::{Forge, Record, access, relocate};
use forge::remote::openssh::{Asked, Terminal, is_option};
use forge::remote::{Streams, signalled};
use forge_driver::{Error, Fact, Kind, Result, State, ports, process};

use super::{Outcome, Session, report};

/// Open a shell on a machine, or run a command there and end with its exit code
///
/// Standard input, output and error pass as they are, binary data included, and so do signals. What follows the machine
/// is for ssh: its options (`-L 8080:localhost:80 -N`, `-D 1080`, `-t`, `-A`, `-C` …), then the command. Options and
/// terminals are OpenSSH's own where it is installed, with this machine's key and host key; where it is not, forge has
/// some of them (-L, -N, -l, -n, -q, -t, -T, -v) and says which it lacks.
#[derive(Args)]
pub struct Ssh {
    /// The machine
    #[arg(default_value = super::DEFAULT_MACHINE)]
    name: String,
    /// Ask for a terminal also when standard input is none
    #[arg(short = 't', long)]
    tty: bool,
    /// Options of ssh, then the command and its words; the remote shell reads these as one line
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl Ssh {
    /// Runs the session.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let record = Record::load(&forge.store, &self.name)?;
        let mut words = self.words;
        if self.tty {
            words.insert(0, "-tt".into());
        }
        enter(session, &forge, &record, &words).await
    }
}

/// Opens a session on a recorded machine, with these words behind its name.
///
/// # Errors
/// When no connection comes about; a remote command's exit code is an outcome.
pub async fn enter(
    session: &Session,
    forge: &Forge,
    record: &Record,
    words: &[OsString],
) -> Result<Outcome> {
    // A command on plain streams asks nothing of OpenSSH, which would keep signals from it.
    let plain = match words.first() {
        Some(word) => !is_option(word),
        None => !std::io::stdin().is_terminal(),
    };
    let program = if plain { None } else { program(session, "ssh") };
    let record = &arrive(forge, record).await?;
    match program {
        Some(program) => {
            session.tell(&format!("SSH by `{}`", program.display()));
            Err(by_openssh(forge, record, &program, words)?)
        }
        None => {
            session.tell("SSH by forge itself");
            by_ourselves(session, forge, record, &Asked::read(words)?).await
        }
    }
}

/// A program of OpenSSH's, where it is installed and wanted.
pub fn program(session: &Session, name: &str) -> Option<PathBuf> {
    if session.native_ssh() {
        None
    } else {
        process::which(Path::new(name))
    }
}

/// The machine as it can be connected to: what `ssh`, `scp` and `mount` all come by before anything is sent.
///
/// The provider is not asked, so that a machine is reached also while its provider is not. Only where no connection comes
/// about, it is asked why, and where a server of its network gives its address, whether it has another one now.
///
/// # Errors
/// [`Fact::NotRunning`] for a machine that is off.
pub async fn arrive(forge: &Forge, record: &Record) -> Result<Record> {
    access::somebody(record)?;
    let address = record.endpoints()?.ssh;
    let behind = record
        .adopted
        .as_ref()
        .is_some_and(|host| host.jump.is_some());
    if behind {
        return Ok(record.clone());
    }
    if !record.placement.decided() && !relocate::accepts(address).await {
        let found = relocate::sought(forge, record.clone()).await;
        if found.endpoints()?.ssh != address {
            return Ok(found);
        }
    }
    if !ports::refused(address) {
        return Ok(record.clone());
    }
    let name = &record.name;
    let failed = || Error::new(Kind::Unavailable, unreached(name));
    let driver = forge.driver(record)?;
    match forge::machine::state(&*driver, record).await {
        Ok(State::Running) => Err(failed()
            .because(format!("{address} does not accept connections"))
            .hint(look(name))),
        Ok(state) => Err(failed()
            .because(format!("it is not running: it is {state}"))
            .hint(format!("`forge start {name}` starts it"))
            .fact(Fact::NotRunning(name.clone()))),
        Err(error) => Err(error.context(unreached(name))),
    }
}

fn unreached(name: &str) -> String {
    format!("failed to connect to machine `{name}`")
}

fn look(name: &str) -> String {
    format!("`forge status {name}` says whether it runs, `forge logs {name}` what it prints")
}

/// Becomes OpenSSH's `ssh`. Comes back only with what kept it from that.
fn by_openssh(forge: &Forge, record: &Record, program: &Path, words: &[OsString]) -> Result<Error> {
    let login = access::login(&forge.store, record)?;
    let mut command = Command::new(program);
    command
        .arg("-F")
        .arg(access::openssh(&forge.store, &[record])?)
        .args(login.pins(forge.patience)?)
        .arg(&record.name)
        .args(words);
    Ok(process::replace(command))
}

async fn by_ourselves(
    session: &Session,
    forge: &Forge,
    record: &Record,
    asked: &Asked,
) -> Result<Outcome> {
    let mut listeners = Vec::new();
    for forward in &asked.forwards {
        listeners.push((forward, forward.listen().await?));
    }
    let user = asked.user.as_deref();
    let say = |text: &str| {
        if asked.verbose {
            report::note(text);
        }
    };
    let (shown, address) = (user.unwrap_or(&record.ssh.user), record.endpoints()?.ssh);
    say(&format!("connecting to {shown}@{address}"));
    // Until it is the command's, a signal has nothing to finish here.
    interrupt::pass_on();
    let guest = tokio::select! {
        guest = access::guest(&forge.store, record, user, session.patience()) => guest.map_err(|error| {
            error
                .context(unreached(&record.name))
                .hint(look(&record.name))
        })?,
        code = signalled() => return Ok(Outcome::Code(code?)),
    };
    say(&format!("connected; the host key is {}", guest.host_key()));
    let serving = listeners
        .into_iter()
        .map(|(forward, listener)| forward.serve(listener, &guest));
    let serving = async {
        futures_util::future::join_all(serving).await;
        std::future::pending::<()>().await;
    };
    let ended = async {
        if asked.no_session {
            return guest.hold().await;
        }
        guest
            .session(asked.command.as_deref(), streams(asked))
            .await
    };
    let code = tokio::select! {
        code = ended => code?,
        () = serving => 0,
    };
    Ok(Outcome::Code(u8::try_from(code).unwrap_or(255)))
}

fn streams(asked: &Asked) -> Streams {
    let terminal = std::io::stdin().is_terminal();
    let wanted = match asked.terminal {
        Terminal::Shell => asked.command.is_none() && terminal,
        Terminal::Wished => terminal,
        Terminal::Forced => true,
        Terminal::Never => false,
    };
    match (wanted, asked.no_input) {
        (true, _) => Streams::Terminal,
        (false, true) => Streams::OutputAlone,
        (false, false) => Streams::Plain,
    }
}
