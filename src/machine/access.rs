//! How a machine is reached: over SSH and over the engine's TLS port.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Context, Error, Kind, Result};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Record;
use crate::engine::Stream;
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
    /// Says, quickly and cheaply, whether something that speaks SSH is there.
    ///
    /// # Errors
    /// What kept it from answering.
    async fn knock(&self, record: &Record) -> Result<()>;

    /// Opens the one connection of a command.
    ///
    /// # Errors
    /// Which phase failed: TCP, banner, key exchange, host key, authentication.
    async fn connect(&self, record: &Record, deadline: Duration) -> Result<Connection>;

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

/// Whether the banner comes is decided within this time: a forwarding host accepts connections for a
/// guest that is not up yet.
const BANNER_WAIT: Duration = Duration::from_millis(1500);

/// What SSH needs to know of a machine.
///
/// # Errors
/// When its address is not known yet or its key cannot be read.
pub fn target(store: &Store, record: &Record) -> Result<Target> {
    let path = store.machine_dir(&record.name).join("id_ed25519");
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
    async fn knock(&self, record: &Record) -> Result<()> {
        let address = record.endpoints()?.ssh;
        let silent = || {
            Error::new(
                Kind::Timeout,
                format!("{address} accepts connections, but no SSH server answers yet"),
            )
        };
        let knock = async {
            let mut stream = TcpStream::connect(address)
                .await
                .or_fail(Kind::Unavailable, || {
                    format!("{address} does not accept connections")
                })?;
            let mut banner = Vec::new();
            while banner.len() < 4 {
                let mut piece = [0; 64];
                match stream.read(&mut piece).await {
                    Ok(0) => return Err(silent().because("the connection was closed")),
                    Ok(count) => banner.extend_from_slice(&piece[..count]),
                    Err(error) => return Err(silent().because(error)),
                }
            }
            // RFC 4253, section 4.2: the identification string starts with `SSH-`.
            if banner.starts_with(b"SSH-") {
                Ok(())
            } else {
                let said = String::from_utf8_lossy(&banner)
                    .trim()
                    .escape_debug()
                    .to_string();
                Err(Error::new(
                    Kind::Invalid,
                    format!("what answers at {address} is not an SSH server"),
                )
                .because(format!("it said `{said}`")))
            }
        };
        match timeout(BANNER_WAIT, knock).await {
            Ok(answer) => answer,
            Err(_) => Err(silent()),
        }
    }

    async fn connect(&self, record: &Record, deadline: Duration) -> Result<Connection> {
        let guest = ssh::connect(&target(&self.store, record)?, deadline).await?;
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
