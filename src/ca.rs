//! The certificate authority of a store, and what it signs.
//!
//! Keys are ECDSA P-256. The CA and the client pair are made under their lock; the client pair is what a user's
//! `docker` shows, server certificates are what machines show. All files of `certs/` are written key first,
//! certificate second: a certificate that is there has its key.
//!
//! What is near its end is made anew: the client pair by itself, since no machine has to hear of it; the CA by a
//! [`rotation`], after which each machine has to be given a certificate of the new one.

pub mod rotation;

mod given;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use forge_driver::{Error, Kind, Result, atomic};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;

use crate::event::Events;
use crate::machine::{Record, Tls};
use crate::secret::Secret;
use crate::store::lock::{Guarded, acquire};
use crate::store::{Store, write_file};

pub use given::Given;

/// The CA lives this long.
const CA_YEARS: i16 = 10;
/// Client and server certificates live this long, in days, and never longer than their CA.
const LEAF_DAYS: i64 = 1095;
/// What ends within so many days is made anew.
const RENEW_DAYS: i64 = 30;
/// A CA that ends within so many days gives way when all certificates are made anew anyway …
const CA_LAST_DAYS: i64 = 365;
/// … and within so many it is told of.
pub(crate) const CA_NEAR_DAYS: i64 = 90;

/// The organization in the names of all certificates.
const OWNER: &str = "forge";

/// The CA and the client pair.
pub struct Authority {
    /// The CA's certificate, PEM.
    pub ca: String,
    ca_key: Secret,
    /// The client's certificate, PEM.
    pub client: String,
    /// The client's key, PEM.
    pub client_key: Secret,
}

/// A server certificate with its key.
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: Secret,
    /// What the record remembers of it.
    pub facts: Tls,
}

/// The authority that signs from now on, made when it is not there yet, and the client pair, made anew when it is near
/// its end. A CA that is near its end gives way to a new one. Any number of processes may come here at once: one makes
/// what is missing, the others find it.
///
/// # Errors
/// When the lock is not had within `patience`, or files cannot be read or written.
pub async fn ensure(store: &Store, patience: Duration, events: &Events) -> Result<Authority> {
    let _lock = acquire(store, &Guarded::Ca, patience, events).await?;
    atomic::private_folder(&store.certs_dir())?;
    rotation::finish_held(store)?;
    if !rotation::under_way(store)
        && let Some(ca) = read(&store.certs_dir().join("ca.pem"))?
        && due(ends(&ca).map_err(|error| damaged(error, &store.certs_dir()))?)
    {
        rotation::begin_held(store)?;
    }
    signing(store)
}

/// The authority that signs from now on. The caller holds the lock of the CA.
fn signing(store: &Store) -> Result<Authority> {
    let folder = rotation::folder(store);
    let (ca, ca_key) = match pair(&folder, "ca")? {
        Some(pair) => pair,
        None => {
            unused(store, &folder)?;
            let made = make_ca(store)?;
            save_pair(&folder, "ca", "ca-key", &made)?;
            // A client pair of an earlier CA would not be accepted by any machine of this one.
            crate::store::remove_file(&folder.join("cert.pem"))?;
            made
        }
    };
    let (client, client_key) = match pair(&folder, "cert")? {
        Some(pair) if !due(ends(&pair.0)?) => pair,
        _ => make_client(&folder, &ca, &ca_key)?,
    };
    Ok(Authority {
        ca,
        ca_key,
        client,
        client_key,
    })
}

fn make_client(folder: &Path, ca: &str, ca_key: &Secret) -> Result<(String, Secret)> {
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    let (certificate, key, _) = sign(ca, ca_key, &[], usage, "forge client")?;
    let made = (certificate, key);
    save_pair(folder, "cert", "key", &made)?;
    Ok(made)
}

/// Whether the CA that signs from now on is in its last year: each machine has to be given a certificate of another one
/// before its end. One that is still to be made is not.
///
/// # Errors
/// [`Kind::Corrupt`] when it is damaged, and when it cannot be read.
pub fn is_ending(store: &Store) -> Result<bool> {
    read(&rotation::folder(store).join("ca.pem"))?
        .map_or(Ok(false), |ca| Ok(within(ends(&ca)?, CA_LAST_DAYS)))
}

/// A new client pair of the CA that signs from now on, whatever the age of the earlier one, which machines accept on.
///
/// # Errors
/// As [`ensure`].
pub async fn renew_client(store: &Store, patience: Duration, events: &Events) -> Result<()> {
    let authority = ensure(store, patience, events).await?;
    let _lock = acquire(store, &Guarded::Ca, patience, events).await?;
    make_client(&rotation::folder(store), &authority.ca, &authority.ca_key).map(|_| ())
}

impl Authority {
    /// The [`fingerprint`] of its CA.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.ca)
    }

    /// Signs a new server certificate for these names and addresses.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(&self, names: &[String]) -> Result<Issued> {
        let subject = names
            .iter()
            .find(|name| name.parse::<IpAddr>().is_err())
            .map_or("forge machine", String::as_str);
        let (certificate, key, expires) = sign(
            &self.ca,
            &self.ca_key,
            names,
            ExtendedKeyUsagePurpose::ServerAuth,
            subject,
        )?;
        Ok(Issued {
            certificate,
            key,
            facts: Tls {
                names: names.to_vec(),
                expires,
                authority: self.fingerprint(),
            },
        })
    }
}

/// SHA-256 of a CA's certificate (the text of its file), in hexadecimal: as records name it.
pub fn fingerprint(ca: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(ca))
}

/// What is read of a certificate (PEM).
///
/// # Errors
/// Why it is none.
pub fn of_certificate<T>(
    pem: impl AsRef<[u8]>,
    read: impl FnOnce(&X509Certificate<'_>) -> T,
) -> std::result::Result<T, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_ref()).map_err(|e| e.to_string())?;
    Ok(read(&pem.parse_x509().map_err(|e| e.to_string())?))
}

/// Refuses to make a new CA in `folder` where machines trust an earlier one that was there: they would be locked out.
fn unused(store: &Store, folder: &Path) -> Result<()> {
    let lost = match read(&folder.join("ca.pem"))? {
        Some(ca) => Some(fingerprint(&ca)),
        // Nobody can trust what was begun a moment ago.
        None if rotation::under_way(store) => return Ok(()),
        None => None,
    };
    let trusting = Record::all(store)?.into_iter().find_map(|(name, record)| {
        let tls = record.ok()?.tls?;
        let trusts = match &lost {
            Some(lost) => tls.authority == *lost,
            // A machine that came from elsewhere may trust a CA that never was here.
            None => read(&store.machine_dir(&name).join("ca.pem"))
                .is_ok_and(|ca| ca.is_none_or(|ca| is_ours(&ca))),
        };
        trusts.then_some(name)
    });
    match trusting {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Kind::Corrupt,
            format!(
                "the CA in `{}` is lost, and machine `{name}` trusts no other",
                folder.display()
            ),
        )
        .hint("put `certs/` back from a backup")),
    }
}

/// Whether forge made this CA, by the name of its owner.
fn is_ours(ca: &str) -> bool {
    let owned = |ca: &X509Certificate<'_>| {
        ca.subject()
            .iter_organization()
            .any(|owner| owner.as_str().is_ok_and(|owner| owner == OWNER))
    };
    of_certificate(ca, owned).unwrap_or(false)
}

/// When a certificate (PEM) ends.
///
/// # Errors
/// [`Kind::Corrupt`] when it is none.
pub fn ends(certificate: &str) -> Result<Timestamp> {
    let broken = || Error::new(Kind::Corrupt, "a certificate of the store is damaged");
    let ends = of_certificate(certificate, |found| found.validity().not_after.timestamp())
        .map_err(|why| broken().because(why))?;
    Timestamp::from_second(ends).map_err(|error| broken().because(error))
}

/// Whether what ends then is to be made anew.
pub fn due(ends: Timestamp) -> bool {
    within(ends, RENEW_DAYS)
}

/// Whether it ends within so many days.
pub fn within(ends: Timestamp, days: i64) -> bool {
    let until = Timestamp::now().saturating_add((days * 24).hours());
    ends <= until.unwrap_or(Timestamp::MAX)
}

/// Whether a certificate and a key (PEM) belong together.
///
/// # Errors
/// When one of them is none.
pub fn belong_together(certificate: &str, key: &Secret) -> Result<bool> {
    let broken =
        |what: &str| Error::new(Kind::Corrupt, format!("a {what} of the store is damaged"));
    let key = KeyPair::from_pem(key.expose()).map_err(|error| broken("key").because(error))?;
    of_certificate(certificate, |found| {
        found.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    })
    .map_err(|why| broken("certificate").because(why))
}

/// Reads `certs/<name>.pem` with its key; `None` when either is missing or they do not belong together
/// (what a kill between two writes leaves).
fn pair(folder: &Path, name: &str) -> Result<Option<(String, Secret)>> {
    let key_name = if name == "ca" { "ca-key" } else { "key" };
    let (Some(certificate), Some(key)) = (
        read(&folder.join(format!("{name}.pem")))?,
        read(&folder.join(format!("{key_name}.pem")))?,
    ) else {
        return Ok(None);
    };
    let key = Secret::new(key);
    let together = belong_together(&certificate, &key).map_err(|error| damaged(error, folder))?;
    Ok(together.then_some((certificate, key)))
}

fn damaged(error: Error, folder: &Path) -> Error {
    error
        .context(format!(
            "failed to read the certificates in `{}`",
            folder.display()
        ))
        .hint(
            "put `certs/` back from a backup; machines trust only the CA that they were made with",
        )
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Error::new(Kind::Io, format!("failed to read `{}`", path.display())).because(error))
        }
    }
}

fn save_pair(
    folder: &Path,
    name: &str,
    key_name: &str,
    (certificate, key): &(String, Secret),
) -> Result<()> {
    write_file(
        &folder.join(format!("{key_name}.pem")),
        key.expose().as_bytes(),
        0o600,
    )?;
    write_file(
        &folder.join(format!("{name}.pem")),
        certificate.as_bytes(),
        0o644,
    )
}

fn failed(error: rcgen::Error) -> Error {
    Error::new(Kind::Invalid, "failed to make a certificate").because(error)
}

fn make_ca(store: &Store) -> Result<(String, Secret)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("forge CA {}", &store.id().to_string()[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let (from, to) = (
        today.saturating_sub(1.day()),
        today.saturating_add(i64::from(CA_YEARS).years()),
    );
    params.not_before = day(from);
    params.not_after = day(to);
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), Secret::new(key.serialize_pem())))
}

/// Signs a certificate that is valid from yesterday on: clocks of new machines may be behind.
fn sign(
    ca: &str,
    ca_key: &Secret,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
    subject: &str,
) -> Result<(String, Secret, Timestamp)> {
    let issuer_key = KeyPair::from_pem(ca_key.expose()).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(ca, issuer_key).map_err(failed)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    params.distinguished_name = named(subject);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    // Nobody accepts a certificate whose CA has ended (RFC 5280, section 6.1.3).
    let last = ends(ca)?.to_zoned(TimeZone::UTC).date();
    let to = today.saturating_add(LEAF_DAYS.days()).min(last);
    params.not_before = day(today.saturating_sub(1.day()));
    params.not_after = day(to);
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    let expires = to
        .to_zoned(TimeZone::UTC)
        .map_err(|error| {
            Error::new(Kind::Invalid, "the date of expiry cannot be represented").because(error)
        })?
        .timestamp();
    Ok((certificate.pem(), Secret::new(key.serialize_pem()), expires))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, OWNER);
    // RFC 5280, appendix A: a common name has at most 64 characters.
    name.push(
        DnType::CommonName,
        common_name.chars().take(64).collect::<String>(),
    );
    name
}

fn day(date: jiff::civil::Date) -> time::OffsetDateTime {
    date_time_ymd(
        date.year().into(),
        date.month().unsigned_abs(),
        date.day().unsigned_abs(),
    )
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn authority(store: &Store) -> Authority {
        ensure(store, Duration::from_secs(5), &Events::silent())
            .await
            .expect("authority")
    }

    #[tokio::test]
    async fn it_is_made_once() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let (first, second) = (authority(&store).await, authority(&store).await);
        assert_eq!(first.ca, second.ca);
        assert_eq!(first.client, second.client);
        for (certificate, key) in [
            (&first.ca, &first.ca_key),
            (&first.client, &first.client_key),
        ] {
            assert!(belong_together(certificate, key).expect("parsed"));
        }
    }

    #[tokio::test]
    async fn what_a_kill_left_half_done_is_made_whole() {
        for missing in ["ca.pem", "cert.pem", "key.pem", "ca-key.pem"] {
            let folder = tempfile::tempdir().expect("folder");
            let store = Store::open(folder.path()).expect("store");
            authority(&store).await;
            fs::remove_file(store.certs_dir().join(missing)).expect("remove");
            let whole = authority(&store).await;
            assert!(
                belong_together(&whole.ca, &whole.ca_key).expect("parsed"),
                "{missing}"
            );
            assert!(
                belong_together(&whole.client, &whole.client_key).expect("parsed"),
                "{missing}"
            );
            assert!(signed_by(&whole.client, &whole.ca), "{missing}");
        }
    }

    #[tokio::test]
    async fn a_server_certificate_names_what_it_was_asked_for_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let authority = authority(&store).await;
        let names = ["10.133.7.101", "127.133.7.101", "n1"].map(str::to_owned);
        let issued = authority.issue(&names).expect("issued");
        assert!(signed_by(&issued.certificate, &authority.ca));
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).expect("pem");
        let parsed = pem.parse_x509().expect("x509");
        let alternatives = parsed
            .subject_alternative_name()
            .expect("one")
            .expect("present");
        assert_eq!(alternatives.value.general_names.len(), 3);
        assert!(!issued.certificate.contains("PRIVATE"));
        assert_eq!(
            parsed.validity().not_after.timestamp(),
            issued.facts.expires.as_second()
        );
    }

    fn signed_by(certificate: &str, ca: &str) -> bool {
        let (_, ca) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).expect("pem");
        let ca = ca.parse_x509().expect("x509");
        let (_, leaf) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).expect("pem");
        let leaf = leaf.parse_x509().expect("x509");
        leaf.issuer() == ca.subject() && leaf.verify_signature(Some(ca.public_key())).is_ok()
    }
}
