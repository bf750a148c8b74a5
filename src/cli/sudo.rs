//! What `sudo` asks for on hosts of others: looked for where it may be kept, else typed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use forge::credentials::Credentials;
use forge::machine::{Forge, Record, relocate};
use forge::secret::Secret;
use forge_driver::{Error, Kind, Result};

use super::{ask, passphrase, report};

/// The file that holds what `sudo` asks for.
const SUDO: &str = "FORGE_SUDO_PASSWORD_FILE";

/// What `sudo` asks for on a machine: what is kept for it, else what is typed.
pub async fn password(kept: Option<&Credentials>, name: &str) -> Result<Secret> {
    let mut unasked = None;
    if let Some(kept) = kept {
        let found = kept.find(&credential(name)).await?;
        if let Some(secret) = found.secret {
            return Ok(secret);
        }
        unasked = found.without_keyring;
    }
    let question = format!("What `sudo` asks for on `{name}`: ");
    ask::hidden(question, None)
        .await
        .map_err(|error| match error.kind() {
            Kind::Unavailable => match unasked {
                None => no_password(name),
                Some(why) => no_password(name).because(format!("the keyring was not asked: {why}")),
            },
            _ => error.context(format!("failed to read what `sudo` asks for on `{name}`")),
        })
}

/// The name under which a machine's password is kept.
fn credential(name: &str) -> String {
    format!("sudo/{name}")
}

fn no_password(name: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        "`sudo` asks for a password there, and there is no terminal to ask for it",
    )
    .hint(format!(
        "{SUDO} names a file with it, `forge credentials set {}` keeps it, `create` has `--generic-sudo-password-file` and `--generic-sudo-password-stdin`; or let `sudo` ask for none: `USER ALL=(ALL) NOPASSWD: ALL`",
        credential(name)
    ))
}

/// What `sudo` asks for on those of these machines where it asks.
///
/// # Errors
/// When it is not to be had.
pub async fn passwords(
    forge: &Forge,
    names: &[String],
    file: Option<&PathBuf>,
) -> Result<Arc<BTreeMap<String, Secret>>> {
    let mut passwords = BTreeMap::new();
    for name in names {
        // What is wrong with a record, the command itself tells.
        let Ok(Some(record)) = Record::find(&forge.store, name) else {
            continue;
        };
        if passwords.contains_key(name) || record.adopted.is_none_or(|host| !host.sudo_password) {
            continue;
        }
        let variable = || std::env::var_os(SUDO).filter(|path| !path.is_empty());
        let path = file.cloned().or_else(|| variable().map(PathBuf::from));
        let password = match path {
            Some(path) => passphrase::from_file(&path, "password")?,
            None => password(Some(&forge.credentials), name).await?,
        };
        passwords.insert(name.clone(), password);
    }
    Ok(Arc::new(passwords))
}

/// The same, and one whose password is not to be had keeps no other from being worked on: that is told.
///
/// # Errors
/// [`Kind::Interrupted`] alone.
pub async fn passwords_there(
    forge: &Forge,
    names: &[String],
) -> Result<Arc<BTreeMap<String, Secret>>> {
    let mut all = BTreeMap::new();
    for name in names {
        match passwords(forge, std::slice::from_ref(name), None).await {
            Ok(found) => all.extend(Arc::unwrap_or_clone(found)),
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => report::note(&format!("warning: machine `{name}`: {}", error.line())),
        }
    }
    Ok(Arc::new(all))
}

/// The record of a machine that is on, whose certificate carries the address that clients go by: made anew where it does
/// not, by whoever may do that there.
///
/// # Errors
/// As [`relocate::certified`]; when what `sudo` asks for is not to be had.
pub async fn certified(forge: &Forge, record: Record) -> Result<Record> {
    if record.placement.decided() || relocate::named(&record) {
        return Ok(record);
    }
    let sudo = passwords(forge, std::slice::from_ref(&record.name), None).await?;
    let forge = Forge {
        sudo,
        ..forge.clone()
    };
    relocate::certified(&forge, record).await
}
