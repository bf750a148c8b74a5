//! The host keys of machines that were imported: each is trusted once somebody vouches for it.

use std::path::PathBuf;
use std::time::Duration;

use forge_driver::{Error, Kind, Result};

use super::Foreign;
use crate::machine::{Forge, Record};
use crate::remote::known_hosts::Known;
use crate::remote::{HostKeys, fingerprint, ssh};
use crate::store::lock::{Guarded, acquire};

/// A host that shows no key within this time is left for another day.
const WAIT: Duration = Duration::from_secs(10);

/// The key that a machine shows, which nobody has vouched for.
#[derive(Clone, Debug)]
pub struct Shown {
    /// In OpenSSH's form.
    pub key: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// Where it was shown.
    pub address: String,
}

/// The keys that the user's `known_hosts`, and that of this host, have for a machine: whoever wrote them there vouched for
/// them. Machines of VirtualBox share an address of this host, which has a key of its own.
pub(super) fn known(foreign: &Foreign) -> Vec<String> {
    let Some((host, port)) = foreign
        .ssh
        .as_ref()
        .filter(|_| foreign.driver != "virtualbox")
    else {
        return Vec::new();
    };
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let own = home.map(|home| PathBuf::from(home).join(".ssh/known_hosts"));
    let files = own
        .into_iter()
        .chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]);
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok());
    let known = Known::read(texts, host, *port);
    known
        .keys
        .into_iter()
        .filter(|key| !known.revoked.contains(key) && HostKeys::only(key).is_ok())
        .collect()
}

/// The key that a recorded machine shows now; `None` when one is trusted already or it has no SSH.
///
/// # Errors
/// When it shows none in time.
pub async fn shown(forge: &Forge, name: &str) -> Result<Option<Shown>> {
    let record = Record::load(&forge.store, name)?;
    let without = record.imported.is_none() || record.config["ssh"].is_null();
    if without || !record.ssh.accepted().is_empty() {
        return Ok(None);
    }
    let address = record.endpoints()?.ssh;
    let key = ssh::presented_key(address, WAIT.min(forge.patience)).await?;
    Ok(Some(Shown {
        fingerprint: fingerprint(&key)?,
        key,
        address: address.to_string(),
    }))
}

/// Trusts the key that a machine shows, when it is one of those that were vouched for. Whether that is new.
///
/// # Errors
/// [`Kind::Refused`] when it shows another one: then it is trusted no more than before.
pub async fn pin(forge: &Forge, name: &str, vouched: &[String]) -> Result<bool> {
    let lock = Guarded::Machine(name.to_owned());
    let _lock = acquire(&forge.store, &lock, forge.patience, &forge.events).await?;
    let mut record = Record::load(&forge.store, name)?;
    let trusted = record.ssh.accepted();
    if !trusted.is_empty() {
        let known = trusted
            .iter()
            .filter_map(|key| fingerprint(key).ok())
            .any(|known| vouched.contains(&known));
        if known {
            return Ok(false);
        }
        return Err(Error::new(
            Kind::Refused,
            format!("another host key of machine `{name}` is trusted already"),
        ));
    }
    let Some(shown) = shown(forge, name).await? else {
        return Err(Error::new(
            Kind::Usage,
            format!("machine `{name}` has no SSH, and so no host key"),
        ));
    };
    if !vouched.contains(&shown.fingerprint) {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "machine `{name}` shows another host key than the one that was named: {} at {}",
                shown.fingerprint, shown.address
            ),
        )
        .hint(
            "compare it at the machine itself: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`",
        ));
    }
    // Refuses a key of a kind that no connection accepts.
    HostKeys::only(&shown.key)?;
    record.ssh.accept = vec![shown.key];
    record.save(&forge.store)?;
    Ok(true)
}
