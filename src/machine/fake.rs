//! The guest of a fake machine: a folder that stands for its files.
//!
//! It really runs what it is sent, by this host's `sh`, with `FORGE_FAKE_ROOT` naming the folder, and
//! answers with the keys and certificates that lie in it: a host key that is not accepted, a user who is
//! not let in and a handshake that fails are so in earnest.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::fake::{Knob, Provider};
use forge_driver::{Context, Error, Kind, Result, atomic, process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::process::Command;

mod swarm;

use super::Record;
use super::access::{Access, Connection, Door};
use crate::http::Stream;
use crate::playbook::quote;
use crate::remote::ssh::{Phase, stopped_in};
use crate::remote::{Dial, ExecOutput, Guest, HostKeys};
use crate::store::Store;

/// The variable that names the folder of the machine's files.
const ROOT: &str = "FORGE_FAKE_ROOT";
/// What the engine of a fake machine answers.
const ANSWER: &[u8] =
    b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"Version\":\"0.0.0\",\"ApiVersion\":\"1.41\"}\n";
/// Programs that must not reach this host: who may become root here is not asked, and what other
/// programs wrote is not waited for.
const STAND_INS: [(&str, &str); 3] = [
    (
        "sudo",
        "#!/bin/sh\n[ \"$1\" != -n ] || shift\nexec \"$@\"\n",
    ),
    ("sync", "#!/bin/sh\n"),
    (
        "docker",
        "#!/bin/sh\necho \"docker $*: there is no engine here\" >&2\nexit 1\n",
    ),
];

/// The way to machines of the provider made of folders.
pub struct FakeAccess {
    /// Where the machines' keys lie.
    pub store: Store,
}

impl FakeAccess {
    fn provider(&self) -> Provider {
        Provider::of(&self.store.driver_dir("fake"))
    }

    /// The files of the machine, when it is on and answers.
    fn root(&self, record: &Record) -> Result<PathBuf> {
        let provider = self.provider();
        let address = record.endpoints()?.ssh;
        let vm = provider.find(record.claim)?.filter(|vm| vm.on);
        let there = vm.map(|vm| vm.instance()).transpose()?;
        if there.is_none_or(|there| there.endpoints.ssh != address) {
            return Err(Error::new(
                Kind::Unavailable,
                format!("{address} does not accept connections"),
            ));
        }
        if provider.knob(Knob::SilentSsh) {
            return Err(Error::new(
                Kind::Timeout,
                format!("{address}: no SSH server answers yet"),
            ));
        }
        Ok(provider.folder(record.claim).join("root"))
    }

    /// Lets in only the key that the seed brought.
    fn authenticate(&self, record: &Record, root: &Path, address: SocketAddr) -> Result<()> {
        let path = self.store.machine_dir(&record.name).join(&record.ssh.key);
        let key = russh::keys::load_secret_key(&path, None).or_fail(Kind::Io, || {
            format!("failed to read the SSH key of `{}`", record.name)
        })?;
        let ours = key.public_key().to_openssh().unwrap_or_default();
        let authorized = read(&root.join("home/authorized_keys"))?;
        if HostKeys::new([&ours])? == HostKeys::new([authorized.trim()])? {
            return Ok(());
        }
        Err(stopped_in(
            Kind::Refused,
            Phase::Authentication,
            format!(
                "failed to connect to `{}@{address}` by SSH",
                record.ssh.user
            ),
            "the key is not one that is let in",
        ))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
}

fn host_key(root: &Path) -> Result<String> {
    let text = read(&root.join("etc/ssh/ssh_host_ed25519_key.pub"))?;
    // Without a comment, as a connection shows it.
    Ok(text
        .split_whitespace()
        .take(2)
        .collect::<Vec<_>>()
        .join(" "))
}

#[async_trait]
impl Access for FakeAccess {
    async fn knock(&self, record: &Record) -> Result<Door> {
        self.root(record).map(|_| Door::Nowhere)
    }

    async fn connect(&self, record: &Record, _: Door, _: Duration) -> Result<Connection> {
        let root = self.root(record)?;
        let address = record.endpoints()?.ssh;
        let host_key = host_key(&root)?;
        let shown = HostKeys::new([&host_key])?;
        let accepted = record.ssh.accepted();
        if !accepted
            .iter()
            .any(|key| HostKeys::new([key]).is_ok_and(|key| key == shown))
        {
            return Err(stopped_in(
                Kind::Refused,
                Phase::HostKey,
                format!(
                    "failed to connect to `{}@{address}` by SSH",
                    record.ssh.user
                ),
                "the server shows a key that is not accepted",
            ));
        }
        self.authenticate(record, &root, address)?;
        let guest = FakeGuest::enter(root, self.provider())?;
        Ok(Connection {
            guest: Arc::new(guest),
            host_key,
        })
    }

    async fn presented_key(&self, record: &Record, _: Duration) -> Result<String> {
        if self.provider().knob(Knob::HiddenHostKey) {
            return Err(Error::new(Kind::Timeout, "no host key was shown"));
        }
        host_key(&self.root(record)?)
    }

    async fn engine(&self, record: &Record, _: Duration) -> Result<Box<dyn Stream>> {
        let root = self.root(record)?;
        let address = record.endpoints()?.engine;
        if self.provider().knob(Knob::SilentEngine) || !root.join("etc/docker/enabled").exists() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the engine's port {address} does not accept connections"),
            ));
        }
        Ok(Box::new(engine(&root.join("etc/docker/tls"))?))
    }
}

/// A TLS server with the machine's own certificate that asks for one of its CA, as `dockerd --tlsverify`
/// does.
fn engine(folder: &Path) -> Result<DuplexStream> {
    let unusable = || "the engine cannot use its certificates".to_owned();
    let ca =
        CertificateDer::from_pem_file(folder.join("ca.pem")).or_fail(Kind::Failed, unusable)?;
    let certificate =
        CertificateDer::from_pem_file(folder.join("server.pem")).or_fail(Kind::Failed, unusable)?;
    let key = PrivateKeyDer::from_pem_file(folder.join("server-key.pem"))
        .or_fail(Kind::Failed, unusable)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).or_fail(Kind::Failed, unusable)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .or_fail(Kind::Failed, unusable)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_fail(Kind::Failed, unusable)?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .or_fail(Kind::Failed, unusable)?;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        if let Ok(mut tls) = acceptor.accept(theirs).await {
            let mut request = [0; 512];
            // What cannot be read or written shows at the other end.
            let _ = tls.read(&mut request).await;
            let _ = tls.write_all(ANSWER).await;
            let _ = tls.shutdown().await;
        }
    });
    Ok(ours)
}

/// A shell whose scripts write below the machine's folder.
struct FakeGuest {
    root: PathBuf,
    provider: Provider,
}

impl FakeGuest {
    fn enter(root: PathBuf, provider: Provider) -> Result<Self> {
        let folder = provider.root().join("bin");
        if !folder.exists() {
            // Appears whole, by one rename; of several that come here at once the first one wins.
            let new = tempfile::Builder::new()
                .prefix(".bin-")
                .tempdir_in(provider.root())
                .or_fail(Kind::Io, || "failed to make stand-ins".to_owned())?;
            let bin = new.path().join("bin");
            fs::DirBuilder::new()
                .mode(0o755)
                .create(&bin)
                .or_fail(Kind::Io, || "failed to make stand-ins".to_owned())?;
            for (name, text) in STAND_INS {
                atomic::write(&bin.join(name), text.as_bytes(), 0o755)?;
            }
            if let Err(error) = fs::rename(&bin, &folder)
                && !folder.exists()
            {
                return Err(error).or_fail(Kind::Io, || "failed to make stand-ins".to_owned());
            }
        }
        Ok(Self { root, provider })
    }

    /// The script, led to the machine's files. Scripts that know of another root name it first.
    fn below(&self, input: &[u8]) -> Vec<u8> {
        let root = quote(&self.root.display().to_string());
        match input.strip_prefix(b"forge_root=''\n") {
            Some(rest) => [format!("forge_root={root}\n").as_bytes(), rest].concat(),
            None => input.to_vec(),
        }
    }
}

#[async_trait]
impl Guest for FakeGuest {
    async fn dial(&self, to: &Dial, _: Duration) -> Result<Box<dyn Stream>> {
        Ok(match to {
            Dial::Engine => Box::new(swarm::engine(&self.provider, &self.root)),
            Dial::Tcp(at) => Box::new(swarm::published(&self.provider, *at)?),
            Dial::Host(host, port) => {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("`{host}:{port}` is not reached through a folder"),
                ));
            }
        })
    }

    async fn exec(&self, command: &str, input: &[u8], deadline: Duration) -> Result<ExecOutput> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        if self.provider.knob(Knob::HangingCommands) {
            shell.args(["-c", "while [ -e \"$1\" ]; do sleep 0.05; done", "sh"]);
            shell.arg(self.provider.root().join(Knob::HangingCommands.file()));
            process::run(shell, None, deadline).await?;
            shell = Command::new("sh");
        }
        shell.args(["-c", command]).env(ROOT, &self.root).env(
            "PATH",
            format!("{}:{path}", self.provider.root().join("bin").display()),
        );
        let output = process::run(shell, Some(&self.below(input)), deadline).await?;
        Ok(ExecOutput {
            status: output.status.code().unwrap_or(255),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}
