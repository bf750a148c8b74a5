//! `forge credentials …`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use forge::credentials::{Credentials as Kept, Origin, check_name};
use forge::store::Store;
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::passphrase::{self, Typed};
use super::rm::distinct;
use super::table::table;
use super::{Outcome, Session, report};

/// What can be done with the secrets of providers and hosts.
#[derive(Subcommand)]
pub enum Credentials {
    Set(Set),
    Ls(Ls),
    Rm(Rm),
}

impl Credentials {
    /// Runs the subcommand.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        match self {
            Self::Set(command) => command.run(session).await,
            Self::Ls(command) => command.run(session).await,
            Self::Rm(command) => command.run(session).await,
        }
    }
}

/// Where the passphrase of the sealed file is.
#[derive(Args)]
pub struct Passphrase {
    /// Read the passphrase from the first line of this file, or of standard input (`-`) [default: ask on the terminal]
    #[arg(
        long,
        value_name = "FILE",
        env = passphrase::VARIABLE,
        hide_env_values = true
    )]
    pub passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// Whoever knows it.
    pub fn typed(self) -> Arc<Typed> {
        Arc::new(Typed::new(self.passphrase_file))
    }

    fn is_piped(&self) -> bool {
        self.passphrase_file.as_deref() == Some(Path::new("-"))
    }
}

/// Keep a secret: in the keyring of the session, or where there is none in a file that a passphrase seals
///
/// The value is typed unseen, or read from standard input with `-`. The name is that of the driver whose token it is
/// (`digitalocean`), or `sudo/MACHINE`.
#[derive(Args)]
pub struct Set {
    /// Its name
    name: String,
    /// Read the value from standard input
    #[arg(value_name = "-", value_parser = ["-"], allow_hyphen_values = true)]
    piped: Option<String>,
    #[command(flatten)]
    passphrase: Passphrase,
}

impl Set {
    async fn run(self, session: &Session) -> Result<Outcome> {
        check_name(&self.name)?;
        let value = if self.piped.is_none() {
            passphrase::hidden(&format!("Value of `{}`: ", self.name)).map_err(|error| {
                error
                    .context(format!("failed to read the value of `{}`", self.name))
                    .hint(format!(
                        "`forge credentials set {} -` reads it from standard input",
                        self.name
                    ))
            })?
        } else if self.passphrase.is_piped() {
            return Err(Error::new(
                Kind::Usage,
                "value and passphrase cannot both come from standard input",
            ));
        } else {
            passphrase::piped()?
        };
        let store = Store::open(&session.root()?)?;
        let kept = opened(session, &store, self.passphrase)
            .set(&self.name, &value)
            .await
            .map_err(|error| error.context(format!("failed to keep `{}`", self.name)))?;
        if let Some(why) = &kept.instead {
            let path = store.root().join(forge::credentials::FILE);
            report::note(&format!(
                "{why}: `{}` is kept in {}, sealed by the passphrase",
                self.name,
                path.display()
            ));
        }
        if session.json() {
            println!(
                "{}",
                json!({"name": self.name, "kept": word(&kept.origin), "instead": kept.instead})
            );
        }
        Ok(Outcome::Done)
    }
}

/// List the names of the secrets that are kept, and where; never their values
#[derive(Args)]
pub struct Ls {}

impl Ls {
    async fn run(self, session: &Session) -> Result<Outcome> {
        let kept = match session.existing()? {
            Some(store) => {
                session
                    .credentials(&store, Arc::new(Typed::new(None)))
                    .ls()
                    .await?
                    .kept
            }
            None => Vec::new(),
        };
        if session.json() {
            let rows: Vec<_> = kept
                .iter()
                .map(|(name, origin)| json!({"name": name, "kept": word(origin)}))
                .collect();
            println!("{}", json!(rows));
            return Ok(Outcome::Done);
        }
        let rows: Vec<Vec<String>> = kept
            .into_iter()
            .map(|(name, origin)| vec![name, origin.to_string()])
            .collect();
        print!("{}", table(&["NAME", "KEPT IN"], &rows));
        Ok(Outcome::Done)
    }
}

/// Remove secrets, wherever they are kept
#[derive(Args)]
pub struct Rm {
    /// Their names
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    passphrase: Passphrase,
}

impl Rm {
    async fn run(self, session: &Session) -> Result<Outcome> {
        let missing = |name: &str| {
            Error::new(Kind::NotFound, format!("no secret `{name}` is kept"))
                .hint("`forge credentials ls` shows the names")
        };
        let names = distinct(self.names);
        let Some(store) = session.existing()? else {
            return Err(missing(&names[0]));
        };
        let credentials = opened(session, &store, self.passphrase);
        for name in names {
            if !credentials.rm(&name).await? {
                return Err(missing(&name));
            }
        }
        Ok(Outcome::Done)
    }
}

fn opened(session: &Session, store: &Store, passphrase: Passphrase) -> Kept {
    session.credentials(store, passphrase.typed())
}

/// A place, as JSON has it.
fn word(origin: &Origin) -> &'static str {
    match origin {
        Origin::Keyring => "keyring",
        _ => "file",
    }
}
