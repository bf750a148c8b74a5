//! Whom a connection expects at its other end, and whether it is that one.

use forge_driver::Result;
use jiff::Timestamp;
use russh::Preferred;
use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::keys::parse;

/// Whom a connection expects. A server that is none of it hears nothing but the end of the connection: no user name,
/// no key, no password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// A server with one of these keys.
    pub keys: Vec<String>,
    /// A server whose key has one of these fingerprints, `SHA256:…`.
    pub fingerprints: Vec<String>,
    /// A server that one of these keys certifies …
    pub authorities: Vec<String>,
    /// … under one of these names.
    pub principals: Vec<String>,
    /// Keys that it must not show, nor be certified by, whatever else is said of them.
    pub revoked: Vec<String>,
    /// A key of this kind (`ssh-rsa`), where it has several; `None` for the best.
    pub kind: Option<String>,
}

/// The same, parsed.
pub(super) struct Expected {
    keys: Vec<PublicKey>,
    fingerprints: Vec<String>,
    authorities: Vec<PublicKey>,
    principals: Vec<String>,
    revoked: Vec<PublicKey>,
    kind: Option<String>,
}

impl Expected {
    /// # Errors
    /// [`forge_driver::Kind::Invalid`] when a key is none.
    pub(super) fn parse(expect: &Expect) -> Result<Self> {
        let keys = |list: &[String]| {
            list.iter()
                .map(|key| parse(key))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            keys: keys(&expect.keys)?,
            fingerprints: expect.fingerprints.clone(),
            authorities: keys(&expect.authorities)?,
            principals: expect.principals.clone(),
            revoked: keys(&expect.revoked)?,
            kind: expect.kind.clone(),
        })
    }

    /// Nobody: to see the key that a server shows.
    pub(super) fn nobody() -> Self {
        Self {
            keys: Vec::new(),
            fingerprints: Vec::new(),
            authorities: Vec::new(),
            principals: Vec::new(),
            revoked: Vec::new(),
            kind: None,
        }
    }

    /// Whether nobody is expected.
    pub(super) fn is_nobody(&self) -> bool {
        self.keys.is_empty() && self.fingerprints.is_empty() && self.authorities.is_empty()
    }

    /// Whether the server is expected.
    ///
    /// # Errors
    /// Why it is not, in a few words.
    pub(super) fn judge(&self, server: &PublicKeyOrCertificate) -> Result<(), String> {
        let key = server.public_key();
        if among(&self.revoked, &key) {
            return Err(format!("its key {} is revoked", print(&key)));
        }
        if let Some(certificate) = server.certificate() {
            return self.certified(certificate);
        }
        if among(&self.keys, &key) || self.fingerprints.contains(&print(&key)) {
            return Ok(());
        }
        let mut known: Vec<String> = self.keys.iter().map(print).collect();
        known.extend(self.fingerprints.iter().cloned());
        let accepted = if known.is_empty() {
            "none".to_owned()
        } else {
            format!("only {}", known.join(" or "))
        };
        Err(format!(
            "the server presents {}, accepted is {accepted}",
            print(&key)
        ))
    }

    /// As OpenSSH's `ssh` judges a host's certificate: signed by an authority of that name, for hosts, now, under that
    /// name (OpenSSH, PROTOCOL.certkeys).
    fn certified(&self, certificate: &Certificate) -> Result<(), String> {
        let signer = PublicKey::new(certificate.signature_key().clone(), "");
        if among(&self.revoked, &signer) {
            return Err(format!("its authority {} is revoked", print(&signer)));
        }
        let prints: Vec<_> = self
            .authorities
            .iter()
            .map(|key| key.fingerprint(HashAlg::Sha256))
            .collect();
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        certificate.validate_at(now, &prints).map_err(|_| {
            format!(
                "its certificate, by {}, is not valid now or not by a known authority",
                print(&signer)
            )
        })?;
        if !certificate.cert_type().is_host() {
            return Err("its certificate is not one for hosts".to_owned());
        }
        if !certificate.critical_options().is_empty() {
            return Err("its certificate has conditions that are not known".to_owned());
        }
        let names = certificate.valid_principals();
        if !self.principals.iter().any(|name| names.contains(name)) {
            return Err(format!(
                "its certificate is for {}, and not for {}",
                names.join(", "),
                self.principals.join(" or ")
            ));
        }
        Ok(())
    }

    /// What is offered in the key exchange: only the kinds of keys that can be accepted, so that a server shows one of
    /// those, where it has one.
    pub(super) fn algorithms(&self) -> Preferred {
        let all = || {
            let curve = |curve| Algorithm::Ecdsa { curve };
            let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
            vec![
                Algorithm::Ed25519,
                curve(EcdsaCurve::NistP256),
                curve(EcdsaCurve::NistP384),
                curve(EcdsaCurve::NistP521),
                rsa(HashAlg::Sha512),
                rsa(HashAlg::Sha256),
            ]
        };
        let mut key = all();
        if !self.keys.is_empty() && self.fingerprints.is_empty() {
            key.retain(|one| {
                self.keys
                    .iter()
                    .any(|key| kind(&key.algorithm()) == kind(one))
            });
        }
        if let Some(wished) = &self.kind {
            key.retain(|one| kind(one).as_str() == wished);
        }
        Preferred {
            key: key.into(),
            host_key_certificates: if self.authorities.is_empty() {
                Vec::new().into()
            } else {
                all().into()
            },
            ..Preferred::DEFAULT
        }
    }
}

/// The kind of a key, whatever it is hashed with.
fn kind(algorithm: &Algorithm) -> Algorithm {
    match algorithm {
        Algorithm::Rsa { .. } => Algorithm::Rsa { hash: None },
        other => other.clone(),
    }
}

fn among(keys: &[PublicKey], key: &PublicKey) -> bool {
    keys.iter().any(|known| known.key_data() == key.key_data())
}

/// A key's fingerprint, as OpenSSH shows it.
pub(super) fn print(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
