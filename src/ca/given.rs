//! A CA and a client pair that come from elsewhere, such as those of docker-machine, whose keys are RSA in the form of
//! PKCS#1. A store that has none takes them as its own; one that has any keeps it.

use std::path::Path;
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result, atomic};
use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{belong_together, pair, save_pair, unused};
use crate::event::Events;
use crate::secret::Secret;
use crate::store::Store;
use crate::store::lock::{Guarded, acquire};

/// A certificate with its key, as they were given.
struct Pair {
    /// PEM, of the certificate alone.
    certificate: String,
    /// PEM, in the form of PKCS#8.
    key: Option<Secret>,
}

/// What was given, looked through.
pub struct Given {
    ca: Option<Pair>,
    client: Option<Pair>,
}

impl Given {
    /// Looks through what was given, each PEM: that it is of use now, and that it belongs together.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with what is wrong with which of them.
    pub fn new(
        ca: Option<String>,
        ca_key: Option<Secret>,
        client: Option<String>,
        client_key: Option<Secret>,
    ) -> Result<Self> {
        let ca = together("CA", ca, ca_key)?;
        let client = together("client", client, client_key)?;
        if let Some(ca) = &ca {
            let der = der(&ca.certificate)?;
            if !parsed(&der)?.is_ca() {
                return Err(invalid(
                    "the certificate that is given as that of a CA is none",
                ));
            }
            if let Some(client) = &client {
                signed_by(&client.certificate, &ca.certificate)?;
            }
        }
        Ok(Self { ca, client })
    }

    /// Whether the store has all of what was given; `false` when it has nothing in its place.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it has another CA, or another client pair.
    pub fn is_in(&self, store: &Store) -> Result<bool> {
        let folder = store.certs_dir();
        let mut whole = true;
        for (what, name, given) in [
            ("CA", "ca", &self.ca),
            ("client pair", "cert", &self.client),
        ] {
            let Some(given) = given else { continue };
            match pair(&folder, name)? {
                Some((certificate, _)) => same(&folder, what, &certificate, &given.certificate)?,
                None => whole = false,
            }
        }
        Ok(whole)
    }

    /// The CA with its key, where nothing is missing for a store that has neither a CA nor a client pair.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with what is missing.
    pub fn is_whole(&self) -> Result<(String, Secret)> {
        let ca = self.ca.as_ref().ok_or_else(|| {
            invalid("a client pair is given without its CA, and the store has none")
        })?;
        if let Some(client) = &self.client {
            key_of("client", client)?;
        }
        Ok((ca.certificate.clone(), key_of("CA", ca)?))
    }

    /// Makes it the store's where that has none. Any number of processes may come here at once.
    ///
    /// # Errors
    /// As [`Given::is_in`]; and when a part is missing, the lock is not had or files cannot be written.
    pub async fn adopt(&self, store: &Store, patience: Duration, events: &Events) -> Result<()> {
        let _lock = acquire(store, &Guarded::Ca, patience, events).await?;
        if self.is_in(store)? {
            return Ok(());
        }
        let folder = store.certs_dir();
        atomic::private_folder(&folder)?;
        let ca = match pair(&folder, "ca")? {
            Some((ca, _)) => ca,
            None => {
                unused(store, &folder)?;
                let made = self.is_whole()?;
                save_pair(&folder, "ca", "ca-key", &made)?;
                // A client pair of an earlier CA would not be accepted by any machine of this one.
                crate::store::remove_file(&folder.join("cert.pem"))?;
                made.0
            }
        };
        if let Some(client) = &self.client
            && pair(&folder, "cert")?.is_none()
        {
            signed_by(&client.certificate, &ca)?;
            let made = (client.certificate.clone(), key_of("client", client)?);
            save_pair(&folder, "cert", "key", &made)?;
        }
        Ok(())
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}

fn key_of(what: &str, pair: &Pair) -> Result<Secret> {
    let key = pair.key.as_ref().ok_or_else(|| {
        invalid(format!(
            "the certificate of the {what} is given without its key"
        ))
    })?;
    Ok(Secret::new(key.expose()))
}

/// A certificate and its key, which may be left out where the store has both.
fn together(what: &str, certificate: Option<String>, key: Option<Secret>) -> Result<Option<Pair>> {
    let certificate = match (certificate, &key) {
        (Some(certificate), _) => alone(what, &certificate)?,
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            return Err(invalid(format!(
                "the key of the {what} is given without its certificate"
            )));
        }
    };
    current(what, &certificate)?;
    let key = key.map(|key| pkcs8(what, &key)).transpose()?;
    if let Some(key) = &key
        && !belong_together(&certificate, key)?
    {
        return Err(invalid(format!(
            "the certificate and the key that are given of the {what} do not belong together"
        )));
    }
    Ok(Some(Pair { certificate, key }))
}

/// The first certificate of a file, without what other programs write around it.
fn alone(what: &str, text: &str) -> Result<String> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let found = text.find(begin).and_then(|from| {
        let length = text[from..].find(end)? + end.len();
        Some(format!("{}\n", &text[from..from + length]))
    });
    let found = found.ok_or_else(|| {
        invalid(format!(
            "what is given as the certificate of the {what} holds none (PEM)"
        ))
    })?;
    parsed(&der(&found)?)?;
    Ok(found)
}

/// Refuses a certificate that is not valid now.
fn current(what: &str, certificate: &str) -> Result<()> {
    let der = der(certificate)?;
    let validity = parsed(&der)?.validity().clone();
    let now = Timestamp::now().as_second();
    if (validity.not_before.timestamp()..validity.not_after.timestamp()).contains(&now) {
        return Ok(());
    }
    Err(invalid(format!(
        "the certificate that is given of the {what} is valid from {} to {}, and not now",
        validity.not_before, validity.not_after
    )))
}

fn der(certificate: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(certificate.as_bytes()).or_fail(Kind::Invalid, || {
        "a certificate that is given cannot be read".to_owned()
    })
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .map(|(_, parsed)| parsed)
        .or_fail(Kind::Invalid, || {
            "a certificate that is given cannot be read".to_owned()
        })
}

fn signed_by(client: &str, ca: &str) -> Result<()> {
    let (client, ca) = (der(client)?, der(ca)?);
    let (client, ca) = (parsed(&client)?, parsed(&ca)?);
    if client.issuer() == ca.subject() && client.verify_signature(Some(ca.public_key())).is_ok() {
        return Ok(());
    }
    Err(invalid(
        "the client's certificate that is given was not signed by the CA",
    ))
}

fn same(folder: &Path, what: &str, ours: &str, given: &str) -> Result<()> {
    if der(ours)? == der(given)? {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!(
            "the {what} that is given is another than that of the store, in `{}`",
            folder.display()
        ),
    )
    .hint("machines trust the one that they were made with: leave it out, or name another store"))
}

/// A private key in the form that signatures are made with here.
fn pkcs8(what: &str, key: &Secret) -> Result<Secret> {
    let unusable = || {
        format!(
            "the key that is given of the {what} is none that can be used: RSA of at least 2048 bits or ECDSA, without a passphrase"
        )
    };
    let read =
        PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).or_fail(Kind::Invalid, unusable)?;
    let wrapped = match read {
        PrivateKeyDer::Pkcs1(key) => PrivatePkcs8KeyDer::from(wrapped(key.secret_pkcs1_der())),
        PrivateKeyDer::Pkcs8(key) => key,
        _ => {
            return Err(invalid(unusable())
                .because("it has neither the form of PKCS#1 nor that of PKCS#8")
                .hint("`openssl pkcs8 -topk8 -nocrypt` brings it into the latter"));
        }
    };
    let pair =
        KeyPair::try_from(&PrivateKeyDer::Pkcs8(wrapped)).or_fail(Kind::Invalid, unusable)?;
    Ok(Secret::new(pair.serialize_pem()))
}

/// An RSA key of PKCS#1 (RFC 8017, appendix A.1.2) inside of PKCS#8 (RFC 5208, section 5): a version, the algorithm
/// `rsaEncryption` without parameters, and the key.
fn wrapped(pkcs1: &[u8]) -> Vec<u8> {
    const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
    const RSA: [u8; 13] = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let body = [&VERSION[..], &element(0x30, &RSA), &element(0x04, pkcs1)].concat();
    element(0x30, &body)
}

/// An element of DER: tag, length, contents (X.690, section 8.1).
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let bytes = contents.len().to_be_bytes();
    let length = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    let mut whole = vec![tag];
    match length {
        [] => whole.push(0),
        [short] if *short < 0x80 => whole.push(*short),
        long => {
            // At most as many bytes as an address has.
            whole.push(0x80 | u8::try_from(long.len()).unwrap_or(0x7f));
            whole.extend_from_slice(long);
        }
    }
    whole.extend_from_slice(contents);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_the_length_that_der_wants() {
        assert_eq!(element(0x04, &[]), [0x04, 0x00]);
        assert_eq!(element(0x04, &[7; 127])[..2], [0x04, 0x7f]);
        assert_eq!(element(0x04, &[7; 128])[..3], [0x04, 0x81, 0x80]);
        assert_eq!(element(0x30, &[7; 300])[..4], [0x30, 0x82, 0x01, 0x2c]);
    }

    #[test]
    fn what_stands_around_a_certificate_is_left_out() {
        let key = KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(Vec::new()).expect("params");
        let pem = params.self_signed(&key).expect("signed").pem();
        let pem = pem.replace("\r\n", "\n");
        let around =
            format!("Certificate:\n  Data:\n{pem}\n-----BEGIN CERTIFICATE-----\nanother\n");
        assert_eq!(alone("CA", &around).expect("one"), pem);
        alone("CA", "nothing").expect_err("none");
        alone(
            "CA",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .expect_err("not a certificate");
    }
}
