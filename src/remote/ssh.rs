//! One authenticated SSH connection to a machine.
//!
//! The host key is checked against a list that we wrote ourselves; there is no trust on first use and no
//! way to accept another key. Only the algorithms of the accepted keys are offered in the key exchange,
//! so that nobody can answer with a key of a kind that was never recorded.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use russh::client::{self, Config, Handle};
use russh::keys::{
    Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
};
use russh::{Disconnect, Preferred};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::keys::{parse, text};
use crate::secret::Secret;

pub use super::keys::{KeyPair, generate_key};

/// When nothing has come for this long, the peer is asked whether it lives …
const KEEPALIVE: Duration = Duration::from_secs(15);
/// … and given up after this many questions without an answer: an emulated machine that shares its
/// processors with others that boot can be silent for a minute.
const KEEPALIVE_MAX: usize = 8;

/// One attempt to connect may take this long: key exchange on a busy emulated machine.
pub const ATTEMPT: Duration = Duration::from_secs(45);

/// A private key in OpenSSH's text form. It does not print itself.
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
    /// The host keys that are accepted, in OpenSSH's text form: exactly these.
    pub accept: Vec<String>,
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
struct Progress {
    phase: AtomicU8,
    presented: Mutex<Option<PublicKey>>,
    disconnect: Mutex<Option<String>>,
}

impl Progress {
    fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::SeqCst))
    }

    fn presented(&self) -> Option<PublicKey> {
        self.presented.lock().ok().and_then(|key| key.clone())
    }
}

/// Checks the server's key against the list, and against nothing else.
pub(super) struct Checker {
    accept: Vec<PublicKey>,
    progress: Arc<Progress>,
}

impl client::Handler for Checker {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        server: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let key = server.public_key();
        let accepted = server.certificate().is_none()
            && self
                .accept
                .iter()
                .any(|accepted| accepted.key_data() == key.key_data());
        if let Ok(mut presented) = self.progress.presented.lock() {
            *presented = Some(key);
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

/// A TCP stream that notes when the other side has begun to speak SSH.
struct Watched {
    stream: TcpStream,
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
    pub(super) address: SocketAddr,
    host_key: String,
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

/// [`connect`] over a TCP connection to `target` on which the other side may have begun to speak.
///
/// # Errors
/// As [`connect`], from the banner on.
pub async fn connect_over(
    stream: TcpStream,
    target: &Target,
    deadline: Duration,
) -> Result<SshGuest> {
    log_in(Some(stream), target, deadline).await
}

async fn log_in(
    stream: Option<TcpStream>,
    target: &Target,
    deadline: Duration,
) -> Result<SshGuest> {
    let address = target.address;
    let accept = target
        .accept
        .iter()
        .map(|key| parse(key))
        .collect::<Result<Vec<_>>>()?;
    if accept.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("no host key is recorded for `{address}`"),
        )
        .hint("a connection needs at least one accepted host key"));
    }
    let key = PrivateKey::from_openssh(target.key.expose()).or_fail(Kind::Invalid, || {
        "the private SSH key cannot be read".to_owned()
    })?;
    let progress = Arc::new(Progress::default());
    let expected: Vec<String> = accept.iter().map(print).collect();
    let attempt = async {
        let stream = match stream {
            Some(stream) => stream,
            None => TcpStream::connect(address).await?,
        };
        let mut handle = exchange(stream, accept, &progress).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let answer = handle.authenticate_publickey(&target.user, key).await?;
        Ok::<_, russh::Error>((handle, answer.success()))
    };
    match timeout_at(Instant::now() + deadline, attempt).await {
        Ok(Ok((handle, true))) => Ok(SshGuest {
            handle: Arc::new(handle),
            address,
            host_key: progress.presented().as_ref().map(text).unwrap_or_default(),
        }),
        Ok(Ok((_, false))) => Err(stopped(
            target,
            Kind::Refused,
            Phase::Authentication,
            format!(
                "the server does not accept the key of user `{}`",
                target.user
            ),
        )),
        Ok(Err(error)) => Err(explain(target, &progress, &expected, &error)),
        Err(_) => {
            let phase = match progress.phase() {
                // Both may still come; the host key alone is decided at once.
                Phase::HostKey => Phase::KeyExchange,
                phase => phase,
            };
            let why = format!("no answer within {}", seconds(deadline));
            Err(stopped(target, Kind::Timeout, phase, why))
        }
    }
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
    let target = Target {
        address,
        user: String::new(),
        key: Secret::default(),
        accept: Vec::new(),
    };
    let progress = Arc::new(Progress::default());
    let attempt = timeout_at(Instant::now() + deadline, async {
        exchange(TcpStream::connect(address).await?, Vec::new(), &progress).await
    })
    .await;
    match (progress.presented(), attempt) {
        (Some(key), _) => Ok(text(&key)),
        (None, Ok(Err(error))) => Err(explain(&target, &progress, &[], &error)),
        (None, Ok(Ok(_))) => Err(stopped(
            &target,
            Kind::Unavailable,
            Phase::KeyExchange,
            "no host key came".to_owned(),
        )),
        (None, Err(_)) => {
            let why = format!("no answer within {}", seconds(deadline));
            Err(stopped(&target, Kind::Timeout, progress.phase(), why))
        }
    }
}

async fn exchange(
    stream: TcpStream,
    accept: Vec<PublicKey>,
    progress: &Arc<Progress>,
) -> Result<Handle<Checker>, russh::Error> {
    stream.set_nodelay(true)?;
    progress.enter(Phase::Banner);
    let stream = Watched {
        stream,
        progress: Arc::clone(progress),
        seen: Vec::new(),
    };
    let checker = Checker {
        accept: accept.clone(),
        progress: Arc::clone(progress),
    };
    client::connect_stream(Arc::new(config(&accept)), stream, checker).await
}

fn config(accept: &[PublicKey]) -> Config {
    let mut algorithms: Vec<Algorithm> = Vec::new();
    for key in accept {
        if !algorithms.contains(&key.algorithm()) {
            algorithms.push(key.algorithm());
        }
    }
    if algorithms.is_empty() {
        algorithms.push(Algorithm::Ed25519);
    }
    Config {
        preferred: Preferred {
            key: Cow::Owned(algorithms),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        channel_buffer_size: 16,
        ..Config::default()
    }
}

fn print(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

pub(super) fn seconds(time: Duration) -> String {
    if time.as_secs() == 0 {
        format!("{} ms", time.as_millis())
    } else {
        format!("{} s", time.as_secs())
    }
}

fn stopped(target: &Target, kind: Kind, phase: Phase, why: String) -> Error {
    let message = if target.user.is_empty() {
        format!("failed to reach the SSH server at `{}`", target.address)
    } else {
        format!(
            "failed to connect to `{}@{}` by SSH",
            target.user, target.address
        )
    };
    Error::new(kind, message).because(Stopped { phase, why })
}

fn explain(
    target: &Target,
    progress: &Progress,
    expected: &[String],
    error: &russh::Error,
) -> Error {
    let phase = progress.phase();
    let farewell = progress.disconnect.lock().ok().and_then(|why| why.clone());
    let why = match (phase, error) {
        (Phase::HostKey, _) => {
            let presented = progress.presented().as_ref().map(print).unwrap_or_default();
            return stopped(
                target,
                Kind::Refused,
                phase,
                format!("the server presents {presented}, accepted is only {}", expected.join(" or ")),
            )
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
    stopped(target, kind, phase, why)
}

impl SshGuest {
    /// The host key that this server presented, one of the accepted ones: `ssh-ed25519 AAAA…`.
    pub fn host_key(&self) -> &str {
        &self.host_key
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
