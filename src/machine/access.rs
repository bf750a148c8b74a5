//! How a machine is reached: over SSH and over the engine's TLS port.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Context, Error, Kind, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::Record;
use crate::http::Stream;
use crate::remote::Guest;
use crate::remote::ssh::{self, Target};
use crate::secret::Secret;
use crate::store::Store;

/// An open connection to a machine, and the host key that it showed.
#[derive(Clone)]
pub struct Connection {
    /// Runs commands there.
    pub guest: Arc<dyn Guest>,
    /// The host key, in OpenSSH's form.
    pub host_key: String,
}

/// The ways to a machine.
#[async_trait]
pub trait Access: Send + Sync {
    /// A connection whose other side has begun to speak SSH. Ends at once where nothing listens; a guest
    /// that is not up yet may leave it waiting for ever ([`Knocks`] bounds it).
    ///
    /// # Errors
    /// What kept it from answering.
    async fn knock(&self, record: &Record) -> Result<Door>;

    /// Opens the one connection of a command.
    ///
    /// # Errors
    /// Which phase failed: key exchange, host key, authentication.
    async fn connect(&self, record: &Record, door: Door, deadline: Duration) -> Result<Connection>;

    /// The host key that is shown now, without entering.
    ///
    /// # Errors
    /// As [`Access::connect`], up to the key exchange.
    async fn presented_key(&self, record: &Record, deadline: Duration) -> Result<String>;

    /// A stream to the engine's TLS port.
    ///
    /// # Errors
    /// When nothing listens there.
    async fn engine(&self, record: &Record, deadline: Duration) -> Result<Box<dyn Stream>>;
}

/// The way to machines in earnest.
pub struct Network {
    /// Where the machines' keys lie.
    pub store: Store,
}

/// Something that speaks SSH. What it has said is still to be read.
pub struct Door(pub(super) Option<TcpStream>);

/// A new knock begins this long after the last that is not answered …
const KNOCK_EVERY: Duration = Duration::from_secs(2);
/// … and each is waited for this long.
const KNOCK_FOR: Duration = Duration::from_secs(20);
/// So many are under way at most. A host that forwards accepts connections for a guest that is not up yet,
/// and that guest may never see them, so new ones are needed; on a busy guest each costs a process that
/// speaks after some seconds, so old ones are not given up when new ones begin.
const KNOCKS: usize = 2;

type Knock<'a> = Pin<Box<dyn Future<Output = Result<Door>> + Send + 'a>>;

/// The knocks at one machine that are under way.
pub struct Knocks<'a> {
    access: &'a dyn Access,
    record: &'a Record,
    pending: FuturesUnordered<Knock<'a>>,
}

impl<'a> Knocks<'a> {
    /// None yet.
    pub fn new(access: &'a dyn Access, record: &'a Record) -> Self {
        Self {
            access,
            record,
            pending: FuturesUnordered::new(),
        }
    }

    /// Knocks once more, unless many are waited for already, and waits a moment for any answer.
    ///
    /// # Errors
    /// Why there is none yet; the caller goes on after a pause, or gives up.
    pub async fn once(&mut self) -> Result<Door> {
        if self.pending.len() < KNOCKS {
            let (access, record) = (self.access, self.record);
            self.pending.push(Box::pin(async move {
                match timeout(KNOCK_FOR, access.knock(record)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(silent(record)),
                }
            }));
        }
        match timeout(KNOCK_EVERY, self.pending.next()).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(silent(self.record)),
        }
    }
}

fn silent(record: &Record) -> Error {
    let address = record
        .endpoints()
        .map_or_else(|_| record.name.clone(), |at| at.ssh.to_string());
    Error::new(
        Kind::Timeout,
        format!("{address}: no SSH server answers yet"),
    )
}

/// A connection to a machine that is up, busy though it may be; within `deadline`.
///
/// # Errors
/// The last reason why there is none.
pub async fn open(access: &dyn Access, record: &Record, deadline: Duration) -> Result<Connection> {
    let end = Instant::now() + deadline;
    let mut knocks = Knocks::new(access, record);
    loop {
        match knocks.once().await {
            Ok(door) => {
                let left = end.saturating_duration_since(Instant::now());
                return access.connect(record, door, left).await;
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// The pause after a knock that was not answered.
pub const PAUSE: Duration = Duration::from_millis(300);

/// What SSH needs to know of a machine.
///
/// # Errors
/// When its address is not known yet or its key cannot be read.
pub fn target(store: &Store, record: &Record) -> Result<Target> {
    let path = store.machine_dir(&record.name).join(&record.ssh.key);
    let key = std::fs::read_to_string(&path).or_fail(Kind::Io, || {
        format!("failed to read the SSH key of `{}`", record.name)
    })?;
    Ok(Target {
        address: record.endpoints()?.ssh,
        user: record.ssh.user.clone(),
        key: Secret::new(key),
        accept: record.ssh.accepted(),
    })
}

#[async_trait]
impl Access for Network {
    async fn knock(&self, record: &Record) -> Result<Door> {
        let address = record.endpoints()?.ssh;
        let stream = TcpStream::connect(address)
            .await
            .or_fail(Kind::Unavailable, || {
                format!("{address} does not accept connections")
            })?;
        // RFC 4253, section 4.2: the identification string starts with `SSH-`.
        let mut banner = [0; 4];
        loop {
            match stream.peek(&mut banner).await {
                Ok(0) => return Err(silent(record).because("the connection was closed")),
                Ok(4) => break,
                // What was seen stays to be read, so the stream counts as readable at once again.
                Ok(_) => sleep(Duration::from_millis(20)).await,
                Err(error) => return Err(silent(record).because(error)),
            }
        }
        if banner == *b"SSH-" {
            return Ok(Door(Some(stream)));
        }
        let mut said = [0; 64];
        let count = stream.peek(&mut said).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said[..count]);
        Err(Error::new(
            Kind::Invalid,
            format!("what answers at {address} is not an SSH server"),
        )
        .because(format!("it said `{}`", said.trim().escape_debug())))
    }

    async fn connect(&self, record: &Record, door: Door, deadline: Duration) -> Result<Connection> {
        let target = target(&self.store, record)?;
        let guest = match door.0 {
            Some(stream) => ssh::connect_over(stream, &target, deadline).await?,
            None => ssh::connect(&target, deadline).await?,
        };
        let host_key = guest.host_key().to_owned();
        Ok(Connection {
            guest: Arc::new(guest),
            host_key,
        })
    }

    async fn presented_key(&self, record: &Record, deadline: Duration) -> Result<String> {
        ssh::presented_key(record.endpoints()?.ssh, deadline).await
    }

    async fn engine(&self, record: &Record, deadline: Duration) -> Result<Box<dyn Stream>> {
        let address = record.endpoints()?.engine;
        match timeout(deadline, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(Error::new(
                Kind::Unavailable,
                format!("the engine's port {address} does not accept connections"),
            )
            .because(error)),
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!("the engine's port {address} does not answer"),
            )),
        }
    }
}
