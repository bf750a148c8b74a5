//! How a machine is reached: over SSH and over the engine's TLS port.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Context, Error, Kind, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Record, adopt, companions};
use crate::http::Stream;
use crate::interrupt;
use crate::remote::openssh::{Between, Login};
use crate::remote::ssh::{self, Phase, SshGuest, Target, failed_phase};
use crate::remote::{Dial, Expect, Guest};
use crate::secret::Secret;
use crate::store::{Store, write_file};

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
pub enum Door {
    /// At the end of a connection.
    Tcp(TcpStream),
    /// Behind another host, whose connection it is reached through.
    Behind(Box<dyn Stream>, Arc<SshGuest>),
    /// In a folder.
    Nowhere,
}

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
/// The last reason why there is none; at once where asking again would not help ([`is_final`]).
pub async fn open(access: &dyn Access, record: &Record, deadline: Duration) -> Result<Connection> {
    let end = Instant::now() + deadline;
    let mut knocks = Knocks::new(access, record);
    loop {
        match knocks.once().await {
            Ok(door) => {
                let left = end.saturating_duration_since(Instant::now());
                return access.connect(record, door, left).await;
            }
            Err(error) if Instant::now() >= end || is_final(&error) => return Err(error),
            Err(_) => {
                interrupt::check()?;
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a server has answered, and it is no: its key is another one, it lets nobody in, it does not forward, or its
/// `sudo` does not take the password. Asked again and again, a host of
/// somebody else's shuts out whoever asks.
pub(super) fn is_final(error: &Error) -> bool {
    match failed_phase(error) {
        Some(Phase::HostKey) => true,
        Some(Phase::Authentication) | None => error.kind() == Kind::Refused,
        _ => false,
    }
}

/// A connection to a machine for one command's own streams, through the host before it where there is one; as `user`,
/// else as the recorded one. Within `patience`.
///
/// # Errors
/// As [`target`] and [`ssh::connect`].
pub async fn guest(
    store: &Store,
    record: &Record,
    user: Option<&str>,
    patience: Duration,
) -> Result<SshGuest> {
    let mut target = target(store, record)?;
    if let Some(user) = user {
        user.clone_into(&mut target.user);
    }
    let end = Instant::now() + patience;
    match between(record, patience).await? {
        None => ssh::connect_patiently(&target, patience).await,
        Some(jump) => {
            let left = || end.saturating_duration_since(Instant::now());
            let stream = beyond(&jump, target.address, left()).await?;
            let guest = ssh::connect_over(stream, &target, left()).await?;
            Ok(guest.keeping(jump))
        }
    }
}

/// The pause after a knock that was not answered.
pub const PAUSE: Duration = Duration::from_millis(300);

/// Refuses a machine that nobody logs in at.
///
/// # Errors
/// [`Kind::Unavailable`]
pub fn somebody(record: &Record) -> Result<()> {
    if !record.ssh.user.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "machine `{}` is known by its URL alone: nobody logs in there",
            record.name
        ),
    )
    .hint("the driver `generic` adopts a host that answers SSH"))
}

/// Refuses a machine of which no host key is trusted: docker-machine trusted any.
///
/// # Errors
/// [`Kind::Refused`] with the command by which somebody vouches for one.
pub fn vouched(record: &Record) -> Result<()> {
    if record.imported.is_none() || !record.ssh.accepted().is_empty() {
        return Ok(());
    }
    let name = &record.name;
    Err(Error::new(
        Kind::Refused,
        format!("no host key of machine `{name}` is trusted yet"),
    )
    .because("it was imported from docker-machine, which looked at none")
    .hint(format!(
        "`forge import docker-machine PATH {name} --host-key {name}=SHA256:…` trusts one; at the machine `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` shows which"
    )))
}

/// Refuses work on a machine that was imported and cannot be entered, before any of it is begun.
///
/// # Errors
/// As [`somebody`] and [`vouched`].
pub(super) fn enterable(record: &Record) -> Result<()> {
    if record.imported.is_none() && !record.is_nowhere() {
        return Ok(());
    }
    somebody(record)?;
    vouched(record)
}

/// What SSH needs to know of a machine.
///
/// # Errors
/// When its address is not known yet or its key cannot be read.
fn target(store: &Store, record: &Record) -> Result<Target> {
    somebody(record)?;
    vouched(record)?;
    let path = store.machine_dir(&record.name).join(&record.ssh.key);
    let key = fs::read_to_string(&path).or_fail(Kind::Io, || {
        format!("failed to read the SSH key of `{}`", record.name)
    })?;
    Ok(Target {
        address: record.endpoints()?.ssh,
        user: record.ssh.user.clone(),
        key: Secret::new(key),
        expect: expect(record),
    })
}

/// The name under which an authority certifies a host.
pub(super) fn principal(record: &Record) -> Option<String> {
    let adopted = record.adopted.as_ref()?;
    Some(adopted.alias.as_ref().unwrap_or(&adopted.host).clone())
}

/// Whom to expect at a machine.
fn expect(record: &Record) -> Expect {
    Expect {
        keys: record.ssh.accepted(),
        authorities: record.ssh.authorities.clone(),
        principals: principal(record).into_iter().collect(),
        ..Expect::default()
    }
}

/// The connection to the host before a machine, when there is one between.
async fn between(record: &Record, deadline: Duration) -> Result<Option<Arc<SshGuest>>> {
    let jump = record
        .adopted
        .as_ref()
        .and_then(|adopted| adopted.jump.as_ref());
    match jump {
        Some(jump) => Ok(Some(Arc::new(adopt::enter_jump(jump, deadline).await?))),
        None => Ok(None),
    }
}

/// A stream from the host before a machine to an address there.
async fn beyond(
    jump: &SshGuest,
    address: SocketAddr,
    deadline: Duration,
) -> Result<Box<dyn Stream>> {
    let to = Dial::Host(address.ip().to_string(), address.port());
    jump.dial(&to, deadline).await
}

/// What OpenSSH needs to know of a machine. Its file of known hosts is brought up to date.
///
/// # Errors
/// When its address is not known yet, its key is missing or its host keys cannot be written.
pub fn login(store: &Store, record: &Record) -> Result<Login> {
    somebody(record)?;
    let folder = store.machine_dir(&record.name);
    let (key, known_hosts) = (folder.join(&record.ssh.key), folder.join("known_hosts"));
    let login = Login {
        name: record.name.clone(),
        address: record.endpoints()?.ssh,
        user: record.ssh.user.clone(),
        key,
        known_hosts,
        alias: (!record.ssh.authorities.is_empty())
            .then(|| principal(record))
            .flatten(),
        jump: record.adopted.as_ref().and_then(|adopted| {
            let jump = adopted.jump.as_ref()?;
            Some(Between {
                name: jump.host.clone(),
                host: jump.target().to_owned(),
                port: jump.port,
                user: jump.user.clone(),
                alias: jump.alias.clone(),
                config: jump.config.clone(),
            })
        }),
    };
    if !login.key.exists() {
        return Err(Error::new(
            Kind::Io,
            format!("the SSH key of `{}` is missing", record.name),
        )
        .because(format!("there is no file `{}`", login.key.display())));
    }
    keep(&login.known_hosts, &companions::known_hosts(record)?)?;
    Ok(login)
}

/// The file of configuration with which OpenSSH reaches these machines by their names. It lies in the folder of the first
/// and follows from their records: it is written anew where it differs, and stays, since what reconnects reads it again.
///
/// # Errors
/// As [`login`].
pub fn openssh(store: &Store, records: &[&Record]) -> Result<PathBuf> {
    let mut text = String::from("# Made from machine.json at each use\n");
    let mut names = Vec::new();
    for record in records {
        text.push_str(&login(store, record)?.own_section()?);
        names.push(record.name.as_str());
    }
    let others: Vec<String> = names
        .iter()
        .skip(1)
        .map(|name| format!("-{name}"))
        .collect();
    let folder = store.machine_dir(names.first().copied().unwrap_or_default());
    let file = folder.join(format!("ssh{}.conf", others.concat()));
    keep(&file, &text)?;
    Ok(file)
}

/// Writes a file of the user's own where it differs.
fn keep(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).ok().as_deref() == Some(text) {
        return Ok(());
    }
    write_file(file, text.as_bytes(), 0o600)
}

#[async_trait]
impl Access for Network {
    async fn knock(&self, record: &Record) -> Result<Door> {
        somebody(record)?;
        let address = record.endpoints()?.ssh;
        if let Some(jump) = between(record, KNOCK_FOR).await? {
            let stream = beyond(&jump, address, KNOCK_FOR).await?;
            return Ok(Door::Behind(stream, jump));
        }
        let stream = ssh::tcp(address).await.or_fail(Kind::Unavailable, || {
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
            return Ok(Door::Tcp(stream));
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
        let guest = match door {
            Door::Tcp(stream) => ssh::connect_over(stream, &target, deadline).await?,
            Door::Behind(stream, jump) => ssh::connect_over(stream, &target, deadline)
                .await?
                .keeping(jump),
            Door::Nowhere => ssh::connect(&target, deadline).await?,
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
        if let Some(jump) = between(record, deadline).await? {
            let stream = beyond(&jump, address, deadline).await?;
            return Ok(Box::new(Behind {
                stream,
                _jump: jump,
            }));
        }
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

/// A stream through another host, whose connection is kept with it.
struct Behind {
    stream: Box<dyn Stream>,
    _jump: Arc<SshGuest>,
}

impl AsyncRead for Behind {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Behind {
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
