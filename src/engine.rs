//! A machine's engine: its API over mutual TLS, what is found of it on its machine, and what it is told.
//!
//! Docker Engine API: <https://docs.docker.com/reference/api/engine/>; `GET /version` needs no
//! version prefix.

pub mod back;
pub mod found;
pub mod keys;
pub mod settings;
mod unit;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::http::{self, Question, Stream};
use crate::secret::Secret;

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The engine's version.
    #[serde(rename = "Version")]
    pub version: String,
    /// The API's version.
    #[serde(rename = "ApiVersion")]
    pub api: String,
}

/// The name that an engine's certificate must carry: its address, or the machine's name where all
/// machines share 127.0.0.1.
pub fn server_name(machine: &str, address: IpAddr) -> String {
    if address.is_loopback() && address == IpAddr::from([127, 0, 0, 1]) {
        machine.to_owned()
    } else {
        address.to_string()
    }
}

/// Whom a client trusts and what it shows, made once for any number of connections.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trusts what this CA signed, and shows this pair; all of them PEM.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] when one of them is not what it should be.
    pub fn new(ca: &str, client: &str, client_key: &Secret) -> Result<Self> {
        client_config(ca, client, client_key).map(|config| Self(Arc::new(config)))
    }
}

/// Asks the engine behind `stream` for its version, proving both sides by certificates.
///
/// # Errors
/// [`Kind::Refused`] when the handshake fails, [`Kind::Timeout`] at the deadline, [`Kind::Invalid`]
/// for an answer that is not an engine's.
pub async fn version(
    stream: impl Stream + 'static,
    name: &str,
    trust: &Trust,
    deadline: Duration,
) -> Result<Version> {
    match timeout(deadline, ask(stream, name, trust)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(
            Kind::Timeout,
            format!(
                "the engine of `{name}` did not answer within {} s",
                deadline.as_secs()
            ),
        )),
    }
}

async fn ask(stream: impl Stream + 'static, name: &str, trust: &Trust) -> Result<Version> {
    let connector = TlsConnector::from(Arc::clone(&trust.0));
    let server = ServerName::try_from(name.to_owned()).or_fail(Kind::Invalid, || {
        format!("`{name}` cannot be checked in a certificate")
    })?;
    let tls = connector
        .connect(server, stream)
        .await
        .or_fail(Kind::Refused, || {
            format!("the TLS handshake with the engine of `{name}` failed")
        })?;
    let answer = http::ask(tls, Question::get("/version"))
        .await
        .map_err(|error| error.context(format!("the engine of `{name}` broke off")))?;
    let strange = |why: String| {
        Error::new(
            Kind::Invalid,
            format!("the answer of `{name}` is not a container engine's"),
        )
        .because(why)
    };
    if !answer.status.is_success() {
        return Err(strange(format!("its status is {}", answer.status)));
    }
    serde_json::from_slice(&answer.body).map_err(|error| strange(error.to_string()))
}

fn client_config(ca: &str, client: &str, client_key: &Secret) -> Result<ClientConfig> {
    let broken = |what: &str| format!("a {what} of the store is damaged");
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes())
        .or_fail(Kind::Corrupt, || broken("CA certificate"))?;
    roots
        .add(ca)
        .or_fail(Kind::Corrupt, || broken("CA certificate"))?;
    let client = CertificateDer::from_pem_slice(client.as_bytes())
        .or_fail(Kind::Corrupt, || broken("client certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(client_key.expose().as_bytes())
        .or_fail(Kind::Corrupt, || broken("client key"))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .or_fail(Kind::Invalid, || "TLS could not be set up".to_owned())?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![client], key)
        .or_fail(Kind::Corrupt, || broken("client pair"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;
    use crate::event::Events;
    use crate::machine::tls::ClientFiles;
    use crate::store::Store;
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A TLS server as an engine with `--tlsverify` is one, at the other end of a pipe.
    fn engine(
        authority: &Authority,
        names: &[&str],
        answer: &'static [u8],
    ) -> tokio::io::DuplexStream {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let issued = authority.issue(&names).expect("issued");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.ca.as_bytes()).expect("ca"))
            .expect("root");
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .expect("verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("cert")],
                PrivateKeyDer::from_pem_slice(issued.key.expose().as_bytes()).expect("key"),
            )
            .expect("pair");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            if let Ok(mut tls) = acceptor.accept(theirs).await {
                let mut request = [0; 512];
                // What cannot be read or written shows as a failed assertion at the other end.
                let _ = tls.read(&mut request).await;
                let _ = tls.write_all(answer).await;
                let _ = tls.shutdown().await;
            }
        });
        ours
    }

    fn trust(authority: &Authority) -> Trust {
        ClientFiles::of(authority).trust().expect("sound")
    }

    async fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let authority = crate::ca::ensure(&store, Duration::from_secs(5), &Events::silent())
            .await
            .expect("authority");
        (folder, authority)
    }

    const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"Version\":\"20.10.24\",\"ApiVersion\":\"1.41\"}\n";

    /// Asks as a client that means 127.133.7.101 and goes by this authority.
    async fn ask_at_101(stream: impl Stream + 'static, authority: &Authority) -> Result<Version> {
        let wait = Duration::from_secs(5);
        version(stream, "127.133.7.101", &trust(authority), wait).await
    }

    #[tokio::test]
    async fn an_engine_with_our_certificate_answers() {
        let (_folder, authority) = authority().await;
        let stream = engine(&authority, &["127.133.7.101", "n1"], ANSWER);
        let version = ask_at_101(stream, &authority).await.expect("version");
        assert_eq!(version.version, "20.10.24");
        assert_eq!(version.api, "1.41");
    }

    #[tokio::test]
    async fn a_certificate_for_another_address_is_refused() {
        let (_folder, authority) = authority().await;
        let stream = engine(&authority, &["127.133.7.102", "n2"], ANSWER);
        let error = ask_at_101(stream, &authority)
            .await
            .expect_err("another machine");
        assert_eq!(error.kind(), Kind::Refused);
    }

    #[tokio::test]
    async fn an_engine_of_another_store_is_refused() {
        let (_a, ours) = authority().await;
        let (_b, theirs) = authority().await;
        let stream = engine(&theirs, &["127.133.7.101"], ANSWER);
        let error = ask_at_101(stream, &ours).await.expect_err("another store");
        assert_eq!(error.kind(), Kind::Refused);
    }

    #[tokio::test]
    async fn something_else_behind_the_port_is_told() {
        let (_folder, authority) = authority().await;
        let stream = engine(
            &authority,
            &["127.133.7.101"],
            b"HTTP/1.0 503 Busy\r\n\r\n{}",
        );
        let error = ask_at_101(stream, &authority).await.expect_err("503");
        assert_eq!(error.causes(), ["its status is 503 Service Unavailable"]);
    }
}
