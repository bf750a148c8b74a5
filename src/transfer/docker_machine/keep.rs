//! Where the secrets of imported machines go: into the keyring, or the sealed file of a store that has none.

use std::collections::BTreeMap;

use forge_driver::Result;
use sha2::{Digest, Sha256};

use super::Foreign;
use crate::ca::hex;
use crate::credentials::{LONGEST_NAME, Origin, check_name};
use crate::machine::Forge;
use crate::machine::imported::Imported;
use crate::secret::Secret;

/// The token of a provider, which is kept under the name of the driver: there forge looks for it.
const TOKENS: [(&str, &str); 5] = [
    ("digitalocean", "AccessToken"),
    ("hetzner", "AccessToken"),
    ("linode", "APIToken"),
    ("scaleway", "Token"),
    ("scaleway", "SecretKey"),
];

/// Keeps secrets for one run: a passphrase is asked for once, and where none can be had nobody is asked again.
#[derive(Default)]
pub struct Keeper {
    known: BTreeMap<String, Secret>,
    kept: BTreeMap<String, Origin>,
    instead: Option<String>,
    refused: Option<String>,
}

impl Keeper {
    /// What was kept, and where.
    pub fn kept(&self) -> &BTreeMap<String, Origin> {
        &self.kept
    }

    /// Why it was not the keyring.
    pub fn instead(&self) -> Option<&str> {
        self.instead.as_deref()
    }

    /// Why some could not be kept.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Keeps the secrets of a machine: under which name each is kept, or that it is not.
    pub(super) async fn keep(
        &mut self,
        forge: &Forge,
        name: &str,
        foreign: &Foreign,
    ) -> BTreeMap<String, Option<String>> {
        let mut names = BTreeMap::new();
        for (field, secret) in &foreign.secrets {
            let kept = match &self.refused {
                Some(_) => None,
                None => match self.one(forge, name, &foreign.driver, field, secret).await {
                    Ok(kept) => Some(kept),
                    Err(error) => {
                        self.refused = Some(error.line());
                        None
                    }
                },
            };
            names.insert(field.clone(), kept);
        }
        names
    }

    /// Machines of one provider mostly have one secret: it is kept once, and another one under a name of the machine's own.
    async fn one(
        &mut self,
        forge: &Forge,
        machine: &str,
        driver: &str,
        field: &str,
        secret: &Secret,
    ) -> Result<String> {
        let shared = if TOKENS.contains(&(driver, field)) {
            driver.to_owned()
        } else {
            allowed(&format!("{driver}/{field}"))
        };
        if self.is_or_becomes(forge, &shared, secret).await? {
            return Ok(shared);
        }
        let own = allowed(&format!("{}{field}", of_machine(driver, machine)));
        if !self.is_or_becomes(forge, &own, secret).await? {
            self.set(forge, &own, secret).await?;
        }
        Ok(own)
    }

    /// Whether this secret is kept under the name, now at the latest.
    async fn is_or_becomes(&mut self, forge: &Forge, name: &str, secret: &Secret) -> Result<bool> {
        let found = match self.known.get(name) {
            Some(known) => Some(known.clone()),
            None => forge.credentials.find(name).await?.secret,
        };
        match found {
            Some(found) => Ok(found == *secret),
            None => self.set(forge, name, secret).await.map(|()| true),
        }
    }

    async fn set(&mut self, forge: &Forge, name: &str, secret: &Secret) -> Result<()> {
        let kept = forge.credentials.set(name, secret).await?;
        self.known.insert(name.to_owned(), secret.clone());
        self.kept.insert(name.to_owned(), kept.origin);
        self.instead = kept.instead;
        Ok(())
    }
}

fn of_machine(driver: &str, machine: &str) -> String {
    format!("{driver}/{machine}/")
}

/// Removes the secrets that were kept for one machine alone.
///
/// # Errors
/// When they cannot be removed.
pub async fn forget(forge: &Forge, name: &str, imported: &Imported) -> Result<()> {
    let own = plain(&of_machine(&imported.driver, name));
    for kept in imported.secrets.values().flatten() {
        if !kept.starts_with(&own) {
            continue;
        }
        if let Some(why) = forge.credentials.rm(kept).await?.without_keyring {
            let text = format!("the keyring was not asked, and may still keep `{kept}`: {why}");
            forge.events.warning(text).await;
        }
    }
    Ok(())
}

/// The name without what no secret's name has.
fn plain(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._/@".contains(c);
    let fitting = name.chars().map(|c| if fits(c) { c } else { '-' });
    fitting.collect()
}

/// The name as a secret may have it. One that has to be changed for more than single characters ends with what tells it
/// from others that would be the same.
fn allowed(name: &str) -> String {
    let plain = plain(name);
    if check_name(&plain).is_ok() {
        return plain;
    }
    let digest = hex(&Sha256::digest(name));
    let digest = &digest[..8];
    let start = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let rest: String = start
        .chars()
        .take(LONGEST_NAME - 1 - digest.len())
        .collect();
    if rest.is_empty() {
        return digest.to_owned();
    }
    format!("{rest}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_becomes_one_that_a_secret_can_have() {
        assert_eq!(allowed("amazonec2/SecretKey"), "amazonec2/SecretKey");
        assert_eq!(allowed("x/a b"), "x/a-b");
        let long = format!("x/{}", "y".repeat(200));
        let odd = [&*long, "x/Token_", "x/", "_", "", "/x", "\u{e4}"];
        let mut made: Vec<String> = odd.map(allowed).into();
        for (name, made) in odd.iter().zip(&made) {
            check_name(made).expect(name);
        }
        assert!(allowed("x/Token_").starts_with("x/Token_-"));
        made.extend([allowed(&format!("{long}z")), allowed("x/Token-")]);
        made.sort();
        let count = made.len();
        made.dedup();
        assert_eq!(made.len(), count, "{made:?}");
    }
}
