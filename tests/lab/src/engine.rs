//! Servers in the place of engines: they answer over TLS, as `dockerd --tlsverify`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// What the engine tells of itself.
const VERSION: &str = "{\"Version\":\"20.10.24\",\"ApiVersion\":\"1.41\"}";

/// A server that shows this certificate and lets in who shows one of this authority; `None` when they do not fit.
pub fn config(
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Option<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).ok()?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .ok()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .ok()?;
    Some(Arc::new(config))
}

/// Answers one request with the engine's version. What fails shows at the other end.
pub fn answer(config: Arc<ServerConfig>, stream: TcpStream) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    let connection = ServerConnection::new(config).ok()?;
    let mut tls = StreamOwned::new(connection, stream);
    let mut request = [0; 1024];
    let _asked = tls.read(&mut request).ok()?;
    write!(
        tls,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{VERSION}",
        VERSION.len()
    )
    .ok()?;
    tls.conn.send_close_notify();
    tls.flush().ok()
}
