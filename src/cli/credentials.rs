//! `forge credentials …`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use forge::credentials::{Credentials as Kept, Listing, Origin, check_name};
use forge::store::Store;
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::names::distinct;
use super::passphrase::{self, Typed};
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
                "{why}: `{}` is kept in {}, sealed by the passphrase; what a keyring has under this name counts wherever it answers",
                self.name,
                path.display()
            ));
        }
        if let Some(why) = &kept.earlier {
            report::note(&format!(
                "warning: `{0}` is kept in the keyring, and an earlier one is still in the sealed file: {why}\nhint: `forge credentials rm {0}`, then set it again, once the passphrase is known",
                self.name
            ));
        }
        if session.json() {
            println!(
                "{}",
                json!({"name": self.name, "kept": word(kept.origin), "instead": kept.instead, "earlier": kept.earlier})
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
        let Listing {
            kept,
            without_keyring,
        } = match session.existing()? {
            Some(store) => {
                let credentials = session.credentials(&store, Arc::new(Typed::new(None)));
                credentials.ls().await?
            }
            None => Listing {
                kept: Vec::new(),
                without_keyring: None,
            },
        };
        if session.json() {
            let rows: Vec<_> = kept
                .iter()
                .map(|(name, origin)| json!({"name": name, "kept": word(*origin)}))
                .collect();
            println!(
                "{}",
                json!({"secrets": rows, "without_keyring": without_keyring})
            );
            return Ok(Outcome::Done);
        }
        let rows: Vec<Vec<String>> = kept
            .into_iter()
            .map(|(name, origin)| vec![name, origin.to_string()])
            .collect();
        print!("{}", table(&["NAME", "KEPT IN"], &rows));
        if let Some(why) = without_keyring {
            report::note(&format!(
                "the keyring was not asked, and may keep others: {why}"
            ));
        }
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
        let missing = |name: &str, without_keyring: Option<String>| {
            let missing = match without_keyring {
                None => Error::new(Kind::NotFound, format!("no secret `{name}` is kept")),
                Some(why) => Error::new(
                    Kind::Unavailable,
                    format!(
                        "no secret `{name}` is in the sealed file, and the keyring was not asked"
                    ),
                )
                .because(why),
            };
            missing.hint("`forge credentials ls` shows the names")
        };
        let names = distinct(self.names);
        let Some(store) = session.existing()? else {
            return Err(missing(&names[0], None));
        };
        let credentials = opened(session, &store, self.passphrase);
        for name in names {
            let removed = credentials.rm(&name).await?;
            if !removed.any {
                return Err(missing(&name, removed.without_keyring));
            }
            if let Some(why) = removed.without_keyring {
                report::note(&format!(
                    "warning: `{name}` is gone from the sealed file; the keyring was not asked, and may keep another: {why}"
                ));
            }
        }
        Ok(Outcome::Done)
    }
}

fn opened(session: &Session, store: &Store, passphrase: Passphrase) -> Kept {
    session.credentials(store, passphrase.typed())
}

/// A place, as JSON has it.
fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::Keyring => "keyring",
        Origin::File => "file",
    }
}
