//! What lies beside a machine's record for TLS: whom its clients trust, what they show, and the server's own.
//!
//! A machine is talked with by these files and no others, as a user's `docker` does (`DOCKER_CERT_PATH`): two CAs may be
//! alive in one store, while one gives way to the other or since a machine came from elsewhere.

use std::fmt;
use std::fs;

use forge_driver::{Context, Kind, Result};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::Record;
use crate::ca::{self, Authority};
use crate::engine::Trust;
use crate::secret::Secret;
use crate::store::Store;

/// The CA's certificate.
pub const CA: &str = "ca.pem";
/// The client's certificate.
pub const CLIENT: &str = "cert.pem";
/// The client's key.
pub const CLIENT_KEY: &str = "key.pem";
/// The server's certificate.
pub const SERVER: &str = "server.pem";
/// The server's key.
pub const SERVER_KEY: &str = "server-key.pem";

/// What a client of one machine trusts, and what it shows; PEM.
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// The CA's certificate.
    pub ca: String,
    /// The client's certificate.
    pub client: String,
    /// The client's key.
    pub client_key: Secret,
}

impl ClientFiles {
    /// Those beside the record of machine `name`.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn beside(store: &Store, name: &str) -> Result<Self> {
        Ok(Self {
            ca: read(store, name, CA)?,
            client: read(store, name, CLIENT)?,
            client_key: Secret::new(read(store, name, CLIENT_KEY)?),
        })
    }

    /// Those of the store's own authority.
    pub fn of(authority: &Authority) -> Self {
        Self {
            ca: authority.ca.clone(),
            client: authority.client.clone(),
            client_key: authority.client_key.clone(),
        }
    }

    /// For connections.
    ///
    /// # Errors
    /// As [`Trust::new`].
    pub fn trust(&self) -> Result<Trust> {
        Trust::new(&self.ca, &self.client, &self.client_key)
    }

    /// Tells them apart from others.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for text in [&self.ca, &self.client, self.client_key.expose()] {
            digest.update(text);
            digest.update([0]);
        }
        digest.finalize().into()
    }
}

pub(super) fn read(store: &Store, name: &str, file: &str) -> Result<String> {
    let path = store.machine_dir(name).join(file);
    fs::read_to_string(&path).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
}

/// Which certificate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The server's or the client's.
    Leaf,
    /// The CA's.
    Authority,
}

/// The certificate of a machine that is near its end, or behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Which one.
    pub which: Which,
    /// When.
    pub at: Timestamp,
}

impl Ending {
    /// Whether nothing accepts it any more.
    pub fn over(&self) -> bool {
        self.at <= Timestamp::now()
    }

    /// What makes it anew.
    pub fn remedy(&self, machine: &str) -> String {
        match self.which {
            Which::Leaf => format!("`forge regenerate-certs {machine}` makes it anew"),
            Which::Authority => {
                "`forge regenerate-certs --all` makes it and all certificates anew".to_owned()
            }
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.which {
            Which::Leaf => "its certificate",
            Which::Authority => "the CA of its certificate",
        };
        let days = |seconds: i64| match seconds / 86_400 {
            1 => "1 day".to_owned(),
            days => format!("{days} days"),
        };
        let left = self.at.as_second() - Timestamp::now().as_second();
        if left <= 0 {
            write!(f, "{what} ended {} ago", days(-left))
        } else {
            write!(f, "{what} ends in {}", days(left))
        }
    }
}

/// The certificate of a machine that is to be told of: the first to end, where one is near its end. What cannot be read
/// is told of where it is used.
pub fn ending(store: &Store, record: &Record) -> Option<Ending> {
    let server = record.tls.as_ref()?.expires;
    let end = |file: &str| ca::ends(&read(store, &record.name, file).ok()?).ok();
    let leaf = end(CLIENT).map_or(server, |client| client.min(server));
    let authority = end(CA);
    // Where the CA ends, a new certificate of it would, too.
    if let Some(at) = authority
        && (at <= leaf || !ca::due(leaf))
        && ca::within(at, ca::CA_NEAR_DAYS)
    {
        let which = Which::Authority;
        return Some(Ending { which, at });
    }
    ca::due(leaf).then_some(Ending {
        which: Which::Leaf,
        at: leaf,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;

    #[test]
    fn an_end_is_told_in_days() {
        let at = |hours: i64| Ending {
            which: Which::Leaf,
            at: Timestamp::now()
                .saturating_add(hours.hours())
                .expect("a time"),
        };
        assert_eq!(
            at(12 * 24 + 1).to_string(),
            "its certificate ends in 12 days"
        );
        assert_eq!(at(25).to_string(), "its certificate ends in 1 day");
        assert_eq!(at(1).to_string(), "its certificate ends in 0 days");
        assert_eq!(at(-50).to_string(), "its certificate ended 2 days ago");
        assert!(at(-1).over() && !at(1).over());
        assert_eq!(
            at(1).remedy("n1"),
            "`forge regenerate-certs n1` makes it anew"
        );
    }
}
