//! Secrets of providers and hosts: where they are kept between commands, and in which order they are looked for.
//!
//! A driver's token is taken from the flag, else from the environment, else from the provider's own configuration file,
//! else from here: the keyring of the session, or, where there is none, a file of the store that a passphrase seals. No
//! record holds one.

mod file;
mod keyring;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result, Tokens};

use crate::event::Events;
use crate::secret::Secret;
use crate::store::Store;
use keyring::Keyring;

pub use file::FILE;

/// No name is longer.
pub const LONGEST_NAME: usize = 128;
/// No secret is longer.
const LONGEST: usize = 64 << 10;

/// Where a secret is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The keyring of the session.
    Keyring,
    /// The sealed file of the store.
    File,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyring => f.pad("keyring"),
            Self::File => f.pad("sealed file"),
        }
    }
}

/// What a passphrase is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To open what is sealed.
    Open,
    /// To seal something new.
    New,
}

/// Whoever knows passphrases: a terminal, a file.
pub trait Passphrases: Send + Sync {
    /// The passphrase of `what`.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when nobody can be asked.
    fn passphrase(&self, what: &str, ask: Ask) -> Result<Secret>;
}

/// Where a driver's token is looked for before the places of this module.
#[derive(Clone, Copy)]
pub struct TokenOption {
    /// The id of the flag.
    pub flag: &'static str,
    /// The variable.
    pub variable: &'static str,
    /// Reads the provider's own configuration file.
    pub file: fn() -> Result<Option<Secret>>,
}

/// How a secret was kept.
#[derive(Debug)]
pub struct Kept {
    /// Where.
    pub origin: Origin,
    /// Why not in the keyring.
    pub instead: Option<String>,
    /// Why an earlier one is still in the sealed file.
    pub earlier: Option<String>,
}

/// What was looked for.
#[derive(Debug)]
pub struct Found {
    /// The secret, where one is kept.
    pub secret: Option<Secret>,
    /// Why the keyring was not asked.
    pub without_keyring: Option<String>,
}

/// What was removed.
#[derive(Debug)]
pub struct Removed {
    /// Whether there was one.
    pub any: bool,
    /// Why the keyring was not asked: it may have one still.
    pub without_keyring: Option<String>,
}

/// What is kept where.
#[derive(Debug)]
pub struct Listing {
    /// Each name, and where it is kept; one may be kept in both places, and the keyring's counts.
    pub kept: Vec<(String, Origin)>,
    /// Why the keyring was not asked.
    pub without_keyring: Option<String>,
}

/// The secrets of one store.
#[derive(Clone)]
pub struct Credentials {
    store: Store,
    passphrases: Arc<dyn Passphrases>,
    patience: Duration,
    /// Tokens that flags of this command gave, by driver.
    given: BTreeMap<&'static str, Secret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Those of `store`. `passphrases` is asked when the sealed file is needed, never before.
    pub fn new(
        store: &Store,
        passphrases: Arc<dyn Passphrases>,
        patience: Duration,
        given: BTreeMap<&'static str, Secret>,
    ) -> Self {
        Self {
            store: store.clone(),
            passphrases,
            patience,
            given,
        }
    }

    /// The secret of this name: from the keyring, else from the sealed file.
    ///
    /// # Errors
    /// When the file has it and cannot be opened. That there is no keyring is none.
    pub async fn find(&self, name: &str) -> Result<Found> {
        check_name(name)?;
        let asked = match Keyring::open(self.store.id()).await {
            Ok(keyring) => keyring.find(name).await,
            Err(why) => Err(why),
        };
        let without_keyring = match asked {
            Ok(Some(secret)) => {
                return Ok(Found {
                    secret: Some(secret),
                    without_keyring: None,
                });
            }
            Ok(None) => None,
            Err(why) => Some(why),
        };
        let secret = if self.is_in_file(name)? {
            let kept = self.sealed().open()?;
            kept.get(name).map(|value| Secret::new(value.clone()))
        } else {
            None
        };
        Ok(Found {
            secret,
            without_keyring,
        })
    }

    fn is_in_file(&self, name: &str) -> Result<bool> {
        Ok(file::names(&self.store)?.iter().any(|kept| kept == name))
    }

    /// Keeps a secret under this name: in the keyring, or where there is none in the sealed file. The keyring's counts, so
    /// an earlier one in the file goes.
    ///
    /// # Errors
    /// When neither can be written.
    pub async fn set(&self, name: &str, secret: &Secret) -> Result<Kept> {
        check_name(name)?;
        check_value(secret)?;
        let instead = match Keyring::open(self.store.id()).await {
            Ok(keyring) => match keyring.set(name, secret).await {
                Ok(()) => {
                    let earlier = match self.forget_in_file(name).await {
                        Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                        forgotten => forgotten.err().map(|error| error.line()),
                    };
                    return Ok(Kept {
                        origin: Origin::Keyring,
                        instead: None,
                        earlier,
                    });
                }
                Err(why) => why,
            },
            Err(why) => why,
        };
        self.change(|kept| {
            kept.insert(name.to_owned(), secret.expose().to_owned());
            true
        })
        .await?;
        Ok(Kept {
            origin: Origin::File,
            instead: Some(instead),
            earlier: None,
        })
    }

    /// Removes a secret from the sealed file; whether there was one.
    async fn forget_in_file(&self, name: &str) -> Result<bool> {
        if !self.is_in_file(name)? {
            return Ok(false);
        }
        self.change(|kept| kept.remove(name).is_some()).await
    }

    /// The names, and where each is kept. Asks for no passphrase.
    ///
    /// # Errors
    /// When the file is not what it should be.
    pub async fn ls(&self) -> Result<Listing> {
        let mut kept: Vec<(String, Origin)> = file::names(&self.store)?
            .into_iter()
            .map(|name| (name, Origin::File))
            .collect();
        let listed = match Keyring::open(self.store.id()).await {
            Ok(keyring) => keyring.names().await,
            Err(why) => Err(why),
        };
        let without_keyring = match listed {
            Ok(names) => {
                kept.extend(names.into_iter().map(|name| (name, Origin::Keyring)));
                None
            }
            Err(why) => Some(why),
        };
        kept.sort_by(|a, b| (&a.0, a.1 == Origin::File).cmp(&(&b.0, b.1 == Origin::File)));
        Ok(Listing {
            kept,
            without_keyring,
        })
    }

    /// Removes a secret from both places. A keyring that cannot be opened is told: what it has stays.
    ///
    /// # Errors
    /// When one of them cannot be changed.
    pub async fn rm(&self, name: &str) -> Result<Removed> {
        check_name(name)?;
        let (removed, without_keyring) = match Keyring::open(self.store.id()).await {
            Ok(keyring) => {
                let removed = keyring.rm(name).await.map_err(|why| {
                    Error::new(
                        Kind::Unavailable,
                        format!("failed to remove `{name}` from the keyring"),
                    )
                    .because(why)
                })?;
                (removed, None)
            }
            Err(why) => (false, Some(why)),
        };
        Ok(Removed {
            any: self.forget_in_file(name).await? | removed,
            without_keyring,
        })
    }

    /// A driver's token: from the flag, the environment, the provider's own file, else from where it is kept.
    ///
    /// # Errors
    /// As [`Credentials::find`]; when the provider's file cannot be read.
    pub async fn token(&self, driver: &'static str, option: TokenOption) -> Result<Found> {
        let found = |secret| Found {
            secret: Some(secret),
            without_keyring: None,
        };
        if let Some(secret) = self.given.get(driver) {
            return Ok(found(secret.clone()));
        }
        if let Some(value) = std::env::var(option.variable)
            .ok()
            .filter(|value| !value.is_empty())
        {
            return Ok(found(value.into()));
        }
        if let Some(secret) = (option.file)()? {
            return Ok(found(secret));
        }
        self.find(driver).await
    }

    fn sealed(&self) -> file::Sealed<'_> {
        file::Sealed::new(&self.store, &*self.passphrases)
    }

    /// Changes the sealed file under its lock; whether there was something to change.
    async fn change(&self, work: impl FnOnce(&mut file::Values) -> bool) -> Result<bool> {
        use crate::store::lock::{Guarded, acquire};
        let events = Events::silent();
        let _lock = acquire(&self.store, &Guarded::Credentials, self.patience, &events).await?;
        self.sealed().change(work)
    }
}

/// The token of one driver, found when it is asked for the first time: commands that ask no provider need none.
pub struct DriverToken {
    credentials: Credentials,
    driver: &'static str,
    option: TokenOption,
    found: tokio::sync::OnceCell<Secret>,
}

impl DriverToken {
    /// That of `driver`.
    pub fn new(credentials: Credentials, driver: &'static str, option: TokenOption) -> Self {
        Self {
            credentials,
            driver,
            option,
            found: tokio::sync::OnceCell::new(),
        }
    }
}

impl fmt::Debug for DriverToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DriverToken({})", self.driver)
    }
}

#[async_trait]
impl Tokens for DriverToken {
    async fn token(&self) -> Result<Secret> {
        let find = || async {
            let found = self.credentials.token(self.driver, self.option).await?;
            found.secret.ok_or_else(|| {
                let (driver, variable) = (self.driver, self.option.variable);
                let none = Error::new(
                    Kind::Unavailable,
                    format!("there is no token for the driver `{driver}`"),
                );
                let none = match &found.without_keyring {
                    Some(why) => none.because(format!("the keyring was not asked: {why}")),
                    None => none,
                };
                none.hint(format!(
                    "set {variable}, or let `forge credentials set {driver}` keep it"
                ))
            })
        };
        self.found.get_or_try_init(find).await.cloned()
    }
}

/// Refuses a name that no secret can have: names are listed, and stand in texts.
///
/// # Errors
/// [`Kind::Usage`] with the rule.
pub fn check_name(name: &str) -> Result<()> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/@".contains(c);
    if name.len() <= LONGEST_NAME
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name.chars().all(allowed)
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("`{}` cannot be the name of a secret", name.escape_debug()),
    )
    .hint("a name has 1 to 128 letters, digits, `-`, `.`, `_`, `/` or `@`: that of a driver, or `sudo/MACHINE`"))
}

fn check_value(secret: &Secret) -> Result<()> {
    let value = secret.expose();
    let why = if value.is_empty() {
        "it is empty"
    } else if value.len() > LONGEST {
        "it is longer than 64 KiB"
    } else if value.contains('\0') {
        "it holds a zero byte"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, "that cannot be a secret").because(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["digitalocean", "sudo/n1", "a", "me@host", "a.b_c-d"] {
            check_name(good).expect(good);
        }
        let long = "a".repeat(129);
        for bad in ["", "-a", "a/", "a b", "ä", "a\n", &long] {
            assert_eq!(check_name(bad).expect_err(bad).kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn a_value_is_something() {
        for bad in ["", "a\0b", &"x".repeat(LONGEST + 1)] {
            check_value(&bad.into()).expect_err("no secret");
        }
        check_value(&"x".into()).expect("a secret");
    }
}
