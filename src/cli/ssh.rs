//! `forge ssh`

use std::io::IsTerminal;

use clap::Args;
use forge::machine::{Record, access};
use forge::remote::ssh;
use forge_driver::Result;

use super::{Outcome, Session};

/// Open a shell on a machine, or run a command there and end with its exit code
///
/// Standard input, output and error pass as they are, binary data included.
#[derive(Args)]
pub struct Ssh {
    /// The machine
    #[arg(default_value = super::DEFAULT_MACHINE)]
    name: String,
    /// Ask for a terminal also when standard input is none
    #[arg(short = 't', long)]
    tty: bool,
    /// The command and its words; the remote shell reads them as one line
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Ssh {
    /// Runs the session.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let record = Record::load(&forge.store, &self.name)?;
        enter(session, &forge, &record, &self.command, self.tty).await
    }
}

/// Opens a session on a recorded machine.
///
/// # Errors
/// When no connection comes about; a remote command's exit code is an outcome.
pub async fn enter(
    session: &Session,
    forge: &forge::machine::Forge,
    record: &Record,
    command: &[String],
    tty: bool,
) -> Result<Outcome> {
    let target = access::target(&forge.store, record)?;
    let guest = ssh::connect_patiently(&target, session.patience())
        .await
        .map_err(|error| {
            error
                .context(format!("failed to connect to machine `{}`", record.name))
                .hint(format!(
                    "`forge status {0}` says whether it runs, `forge logs {0}` what it prints",
                    record.name
                ))
        })?;
    let line = command.join(" ");
    let line = (!command.is_empty()).then_some(line.as_str());
    let tty = tty || (line.is_none() && std::io::stdin().is_terminal());
    let code = guest.session(line, tty).await?;
    Ok(Outcome::Code(u8::try_from(code).unwrap_or(255)))
}
