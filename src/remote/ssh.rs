//! One authenticated SSH connection to a machine.
//!
//! The host key is checked against what was expected beforehand; there is no trust on first use and no
//! way to accept another key. Only the algorithms of the accepted keys are offered in the key exchange,
//! so that nobody can answer with a key of a kind that was never recorded.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use russh::Disconnect;
use russh::client::{self, Config, Handle};
use russh::keys::{
    HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
    decode_secret_key,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::host_key::{Expect, Expected};
use super::keys::text;
use crate::http::Stream;
use crate::secret::Secret;

pub use super::keys::{KeyPair, generate_key};

/// When nothing has come for this long, the peer is asked whether it lives …
const KEEPALIVE: Duration = Duration::from_secs(15);
/// … and given up after this many questions without an answer: an emulated machine that shares its
/// processors with others that boot can be silent for a minute.
const KEEPALIVE_MAX: usize = 8;

/// One attempt to connect may take this long: key exchange on a busy emulated machine.
pub const ATTEMPT: Duration = Duration::from_secs(45);

/// A private key in the text form of OpenSSH, or PEM. It does not print itself.
pub type PrivateKeyText = Secret;

/// Where to connect, as whom, and whom to expect.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address and port of the SSH server.
    pub address: SocketAddr,
    /// The user to log in as.
    pub user: String,
    /// The key to log in with.
    pub key: PrivateKeyText,
    /// Whom to expect there.
    pub expect: Expect,
}

/// The part of a connection's setup in which it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Nothing accepts connections at the address.
    Tcp,
    /// Something accepts connections, but no SSH server speaks.
    Banner,
    /// An SSH server speaks, but no session key was agreed on.
    KeyExchange,
    /// The server's key is not one that is accepted.
    HostKey,
    /// The server is the right one, but it does not let the user in.
    Authentication,
}

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Tcp,
            1 => Self::Banner,
            2 => Self::KeyExchange,
            3 => Self::HostKey,
            _ => Self::Authentication,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP connection",
            Self::Banner => "SSH banner",
            Self::KeyExchange => "SSH key exchange",
            Self::HostKey => "host key",
            Self::Authentication => "SSH authentication",
        })
    }
}

/// Why no connection came about: the cause inside the error that [`connect`] returns.
#[derive(Debug)]
struct Stopped {
    phase: Phase,
    why: String,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.phase, self.why)
    }
}

impl std::error::Error for Stopped {}

/// The error of a connection to `address` that stopped in `phase` before there was one.
pub(crate) fn stopped_at(
    address: SocketAddr,
    user: &str,
    kind: Kind,
    phase: Phase,
    why: String,
) -> Error {
    let at = At {
        address: address.to_string(),
        user: user.to_owned(),
    };
    at.stopped(kind, phase, why)
}

/// The error of a connection that stopped in `phase`, for guests that are reached in other ways.
#[cfg(feature = "lab")]
pub(crate) fn stopped_in(kind: Kind, phase: Phase, message: String, why: &str) -> Error {
    let why = why.to_owned();
    Error::new(kind, message).because(Stopped { phase, why })
}

/// The phase in which [`connect`] or [`presented_key`] failed, when `error` comes from one of them.
pub fn failed_phase(error: &Error) -> Option<Phase> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(stopped) = cause.downcast_ref::<Stopped>() {
            return Some(stopped.phase);
        }
        next = cause.source();
    }
    None
}

/// What the tasks of one connection attempt tell each other.
#[derive(Debug, Default)]
pub(super) struct Progress {
    phase: AtomicU8,
    presented: Mutex<Option<PublicKey>>,
    /// The key that certifies the presented one.
    authority: Mutex<Option<PublicKey>>,
    refused: Mutex<Option<String>>,
    disconnect: Mutex<Option<String>>,
}

impl Progress {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::SeqCst))
    }

    pub(super) fn presented(&self) -> Option<PublicKey> {
        self.presented.lock().ok().and_then(|key| key.clone())
    }
}

/// Checks the server's key against what is expected, and against nothing else.
pub(super) struct Checker {
    expected: Expected,
    progress: Arc<Progress>,
}

impl client::Handler for Checker {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        server: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let judged = self.expected.judge(server);
        if let Ok(mut presented) = self.progress.presented.lock() {
            *presented = Some(server.public_key());
        }
        if let (Some(certificate), Ok(mut authority)) =
            (server.certificate(), self.progress.authority.lock())
        {
            *authority = Some(PublicKey::new(certificate.signature_key().clone(), ""));
        }
        let accepted = judged.is_ok();
        if let (Err(why), Ok(mut refused)) = (judged, self.progress.refused.lock()) {
            *refused = Some(why);
        }
        self.progress.enter(if accepted {
            Phase::Authentication
        } else {
            Phase::HostKey
        });
        Ok(accepted)
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                if let Ok(mut why) = self.progress.disconnect.lock() {
                    *why = Some(info.message.trim().to_owned());
                }
                Ok(())
            }
            client::DisconnectReason::Error(error) => Err(error),
        }
    }
}

/// A stream that notes when the other side has begun to speak SSH.
struct Watched {
    stream: Box<dyn Stream>,
    progress: Arc<Progress>,
    seen: Vec<u8>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.seen.len() < 4096 && self.progress.phase() < Phase::KeyExchange {
            self.seen.extend_from_slice(&buffer.filled()[before..]);
            // Lines of other text may come first (RFC 4253, 4.2).
            if self.seen.starts_with(b"SSH-")
                || self.seen.windows(5).any(|bytes| bytes == b"\nSSH-")
            {
                self.progress.enter(Phase::KeyExchange);
            }
        }
        poll
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A machine behind one authenticated SSH connection; any number of commands run over it.
#[derive(Clone)]
pub struct SshGuest {
    pub(super) handle: Arc<Handle<Checker>>,
    pub(super) address: String,
    pub(super) host_key: String,
    /// The key that certifies the host key.
    pub(super) authority: Option<String>,
    /// The connection that this one goes through stays open as long as it.
    through: Option<Arc<SshGuest>>,
}

impl fmt::Debug for SshGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshGuest({})", self.address)
    }
}

/// Connects and logs in: one attempt.
///
/// # Errors
/// Says which of TCP, banner, key exchange, host key and authentication failed ([`failed_phase`]):
/// [`Kind::Unavailable`] for the first three, [`Kind::Timeout`] at the deadline,
/// [`Kind::Refused`] for the last two.
pub async fn connect(target: &Target, deadline: Duration) -> Result<SshGuest> {
    log_in(None, target, deadline).await
}

/// [`connect`] over a stream to `target` on which the other side may have begun to speak.
///
/// # Errors
/// As [`connect`], from the banner on.
pub async fn connect_over(
    stream: impl Stream + 'static,
    target: &Target,
    deadline: Duration,
) -> Result<SshGuest> {
    log_in(Some(Box::new(stream)), target, deadline).await
}

/// Reads a private key in the text form of OpenSSH, or PEM.
pub(super) fn private_key(key: &PrivateKeyText, passphrase: Option<&Secret>) -> Result<PrivateKey> {
    decode_secret_key(key.expose(), passphrase.map(Secret::expose)).or_fail(Kind::Invalid, || {
        "the private SSH key cannot be read".to_owned()
    })
}

/// A stream to an address, on which small words are not held back.
pub(crate) async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn log_in(
    stream: Option<Box<dyn Stream>>,
    target: &Target,
    deadline: Duration,
) -> Result<SshGuest> {
    let address = target.address;
    let expected = Expected::parse(&target.expect)?;
    if expected.is_nobody() {
        return Err(Error::new(
            Kind::Invalid,
            format!("no host key is recorded for `{address}`"),
        )
        .hint("a connection needs at least one accepted host key"));
    }
    let key = private_key(&target.key, None)?;
    let progress = Arc::new(Progress::default());
    let attempt = async {
        let stream = match stream {
            Some(stream) => stream,
            None => Box::new(tcp(address).await?),
        };
        let mut handle = exchange(stream, expected, &progress).await?;
        let hash = hash_for(&handle, key.algorithm().is_rsa()).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let answer = handle.authenticate_publickey(&target.user, key).await?;
        Ok::<_, russh::Error>((handle, answer.success()))
    };
    let at = At {
        address: address.to_string(),
        user: target.user.clone(),
    };
    match timeout_at(Instant::now() + deadline, attempt).await {
        Ok(Ok((handle, true))) => Ok(at.guest(handle, &progress)),
        Ok(Ok((_, false))) => Err(at.not_let_in("the key")),
        Ok(Err(error)) => Err(at.explain(&progress, &error)),
        Err(_) => Err(at.late(&progress, deadline)),
    }
}

/// What an RSA key signs a login with: the best that the server takes, never SHA-1 (RFC 8332).
pub(super) async fn hash_for(
    handle: &Handle<Checker>,
    is_rsa: bool,
) -> Result<Option<HashAlg>, russh::Error> {
    if !is_rsa {
        return Ok(None);
    }
    let best = handle.best_supported_rsa_hash().await?;
    Ok(Some(best.flatten().unwrap_or(HashAlg::Sha256)))
}

/// [`connect`], in attempts of at most [`ATTEMPT`], for as long as `patience` lasts. Only silence is met with
/// another attempt: a connection to a machine that restarts in the midst of it stays open and dead.
///
/// # Errors
/// As [`connect`].
pub async fn connect_patiently(target: &Target, patience: Duration) -> Result<SshGuest> {
    connect_in_attempts(target, ATTEMPT, patience).await
}

async fn connect_in_attempts(
    target: &Target,
    attempt: Duration,
    patience: Duration,
) -> Result<SshGuest> {
    let end = Instant::now() + patience;
    // Bounded: an attempt that ends early has an answer, and that ends the loop.
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match connect(target, attempt.min(left)).await {
            Err(error) if error.kind() == Kind::Timeout && Instant::now() < end => {}
            done => return done,
        }
    }
}

/// The host key that a server presents, checked against nothing: key exchange only, no login.
///
/// # Errors
/// As [`connect`], up to the key exchange.
pub async fn presented_key(address: SocketAddr, deadline: Duration) -> Result<String> {
    let at = At {
        address: address.to_string(),
        user: String::new(),
    };
    let progress = Arc::new(Progress::default());
    let attempt = timeout_at(Instant::now() + deadline, async {
        exchange(Box::new(tcp(address).await?), Expected::nobody(), &progress).await
    })
    .await;
    match (progress.presented(), attempt) {
        (Some(key), _) => Ok(text(&key)),
        (None, Ok(Err(error))) => Err(at.explain(&progress, &error)),
        (None, Ok(Ok(_))) => Err(at.stopped(
            Kind::Unavailable,
            Phase::KeyExchange,
            "no host key came".to_owned(),
        )),
        (None, Err(_)) => Err(at.late(&progress, deadline)),
    }
}

/// Agrees on session keys with a server that is expected.
pub(super) async fn exchange(
    stream: Box<dyn Stream>,
    expected: Expected,
    progress: &Arc<Progress>,
) -> Result<Handle<Checker>, russh::Error> {
    progress.enter(Phase::Banner);
    let stream = Watched {
        stream,
        progress: Arc::clone(progress),
        seen: Vec::new(),
    };
    let config = Config {
        preferred: expected.algorithms(),
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        channel_buffer_size: 16,
        ..Config::default()
    };
    let checker = Checker {
        expected,
        progress: Arc::clone(progress),
    };
    client::connect_stream(Arc::new(config), stream, checker).await
}

pub(super) fn seconds(time: Duration) -> String {
    if time.as_secs() == 0 {
        format!("{} ms", time.as_millis())
    } else {
        format!("{} s", time.as_secs())
    }
}

/// The other end of a connection attempt, for what is said of it.
pub(super) struct At {
    /// Where.
    pub(super) address: String,
    /// As whom; empty for nobody.
    pub(super) user: String,
}

impl At {
    pub(super) fn guest(&self, handle: Handle<Checker>, progress: &Progress) -> SshGuest {
        let authority = progress.authority.lock().ok().and_then(|key| key.clone());
        SshGuest {
            handle: Arc::new(handle),
            address: self.address.clone(),
            host_key: progress.presented().as_ref().map(text).unwrap_or_default(),
            authority: authority.as_ref().map(text),
            through: None,
        }
    }

    pub(super) fn not_let_in(&self, what: &str) -> Error {
        let why = format!("the server does not accept {what} of user `{}`", self.user);
        self.stopped(Kind::Refused, Phase::Authentication, why)
    }

    pub(super) fn late(&self, progress: &Progress, deadline: Duration) -> Error {
        let phase = match progress.phase() {
            // Both may still come; the host key alone is decided at once.
            Phase::HostKey => Phase::KeyExchange,
            phase => phase,
        };
        let why = format!("no answer within {}", seconds(deadline));
        self.stopped(Kind::Timeout, phase, why)
    }

    pub(super) fn stopped(&self, kind: Kind, phase: Phase, why: String) -> Error {
        let message = if self.user.is_empty() {
            format!("failed to reach the SSH server at `{}`", self.address)
        } else {
            format!(
                "failed to connect to `{}@{}` by SSH",
                self.user, self.address
            )
        };
        Error::new(kind, message).because(Stopped { phase, why })
    }

    pub(super) fn explain(&self, progress: &Progress, error: &russh::Error) -> Error {
        let phase = progress.phase();
        let farewell = progress.disconnect.lock().ok().and_then(|why| why.clone());
        let why = match (phase, error) {
            (Phase::HostKey, _) => {
                let refused = progress.refused.lock().ok().and_then(|why| why.clone());
                return self
                    .stopped(Kind::Refused, phase, refused.unwrap_or_default())
                    .hint("something else answers at this address, or the machine was made anew; nothing was sent to it");
            }
            (_, russh::Error::NoCommonAlgo { kind, ours, theirs }) => format!(
                "no common {kind:?} algorithm: accepted is {}, the server offers {}",
                ours.join(", "),
                theirs.join(", ")
            ),
            (Phase::Banner, russh::Error::HUP | russh::Error::Disconnect | russh::Error::IO(_)) => {
                "the connection was closed before a server spoke".to_owned()
            }
            (Phase::Banner, russh::Error::Version) => {
                "what answers there is not an SSH server".to_owned()
            }
            (_, russh::Error::IO(error)) => error.to_string(),
            (_, error) => farewell.unwrap_or_else(|| error.to_string()),
        };
        let kind = if phase == Phase::Authentication {
            Kind::Refused
        } else {
            Kind::Unavailable
        };
        self.stopped(kind, phase, why)
    }
}

impl SshGuest {
    /// The host key that this server presented, one of the accepted ones: `ssh-ed25519 AAAA…`.
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// The key that certifies the host key, when the server was accepted for that.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The same, and the connection that it goes through is kept with it.
    #[must_use]
    pub fn keeping(mut self, through: Arc<SshGuest>) -> Self {
        self.through = Some(through);
        self
    }

    /// Whether the connection is known to be gone.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Says goodbye. Dropping does the same without the courtesy.
    pub async fn close(self) {
        let farewell = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
    }
}

#[cfg(test)]
mod tests;
