//! The first meeting with a host: it is trusted before anything is said to it, and its user logs in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result, locate};
use forge_generic::{Config, JumpHost};
use tokio::time::{Instant, sleep, timeout};

use super::settle::{self, Said, Way};
use crate::http::Stream;
use crate::interrupt;
use crate::machine::{Adopted, Jump};
use crate::remote::known_hosts::Known;
use crate::remote::login::{self, Entered, Unlock};
use crate::remote::ssh::{Phase, SshGuest, stopped_at};
use crate::remote::{Dial, ExecOutput, Expect, Guest, fingerprint, known_as};

/// A host that refuses connections is tried again for so long: it may be booting.
const BOOTING: Duration = Duration::from_secs(20);
/// The pause before that.
const PAUSE: Duration = Duration::from_millis(500);
/// The kinds of host keys, as a server may have one of each; the first are all of them, best first.
const KINDS: [Option<&str>; 5] = [
    None,
    Some("ecdsa-sha2-nistp256"),
    Some("ecdsa-sha2-nistp384"),
    Some("ecdsa-sha2-nistp521"),
    Some("ssh-rsa"),
];

/// Whoever knows what nobody wrote down.
#[async_trait]
pub trait Ask: Unlock {
    /// Whether this is the key of that host; `None` when nobody is there to ask.
    async fn host_key(&self, host: &str, kind: &str, fingerprint: &str) -> Option<bool>;

    /// The command that is under way, with one more option.
    fn again(&self, option: &str) -> String;
}

/// A host that was met.
pub struct Met {
    /// The connection of its user.
    pub guest: Arc<SshGuest>,
    /// Where it is.
    pub address: SocketAddr,
    /// Its host keys.
    pub accept: Vec<String>,
    /// Keys that certify it.
    pub authorities: Vec<String>,
    /// What is to be remembered of it.
    pub adopted: Adopted,
}

/// What was settled of a host before it is met.
pub struct Route {
    /// Where the host is: settled, to be recorded.
    pub config: Config,
    way: Way,
    jump: Option<Between>,
}

/// The host between, settled.
struct Between {
    /// As its user named it.
    said: String,
    way: Way,
    /// The configuration of `ssh` that was named.
    config: Option<PathBuf>,
}

impl Route {
    /// Fills in what was not said, as `ssh` is configured.
    ///
    /// # Errors
    /// When the configuration cannot be read, or leads there in a way that forge does not go.
    pub async fn settle(mut config: Config, said: Said) -> Result<Self> {
        let way = settle::settle(&said).await?;
        config.ssh_user = Some(way.user.clone());
        config.ssh_port = Some(way.port);
        config.hostname = (way.hostname != config.host).then(|| way.hostname.clone());
        if config.jump.is_none() {
            if let Some(command) = &way.command {
                return Err(Error::new(
                    Kind::Usage,
                    format!("`ssh` reaches `{}` by a program (`ProxyCommand {command}`), which forge does not run", config.host),
                )
                .hint("name the host between by `--generic-jump`, or give the address of the host itself"));
            }
            config.jump = way.jump.as_deref().map(str::parse).transpose()?;
        }
        let jump = match &config.jump {
            Some(jump) => Some(settle_jump(jump, said.config.as_deref()).await?),
            None => None,
        };
        // Who asks whether the host is up goes by no configuration.
        config.jump = jump.as_ref().map(|Between { way, .. }| JumpHost {
            host: way.hostname.clone(),
            user: Some(way.user.clone()),
            port: Some(way.port),
        });
        Ok(Self { config, way, jump })
    }
}

async fn settle_jump(jump: &JumpHost, config: Option<&Path>) -> Result<Between> {
    let way = settle::settle(&Said {
        host: jump.host.clone(),
        user: jump.user.clone(),
        port: jump.port,
        config: config.map(ToOwned::to_owned),
        ..Said::default()
    })
    .await?;
    if way.jump.is_some() || way.command.is_some() {
        return Err(Error::new(
            Kind::Usage,
            format!("`{}` is itself reached through another host", jump.host),
        )
        .hint("one host can be between"));
    }
    Ok(Between {
        said: jump.host.clone(),
        way,
        config: config.map(ToOwned::to_owned),
    })
}

/// Meets the host: trusts it, by these fingerprints where there are some, and logs in as its user.
///
/// # Errors
/// [`Kind::Timeout`] with the last error of SSH, [`Kind::Refused`] when it is not to be trusted or does not let in.
pub async fn meet(
    route: &Route,
    fingerprints: &[String],
    ask: &dyn Ask,
    patience: Duration,
) -> Result<Met> {
    let deadline = Instant::now() + patience;
    let config = &route.config;
    let (through, jump) = match &route.jump {
        None => (None, None),
        Some(Between { said, way, config }) => {
            let host = Host {
                name: said,
                way,
                fingerprints: &[],
                through: None,
                between: true,
            };
            let (guest, pinned, _) = host.enter(ask, deadline).await.map_err(|error| {
                error.context(format!(
                    "failed to enter `{said}`, the host before `{}`",
                    route.config.host
                ))
            })?;
            let jump = Jump {
                host: said.clone(),
                hostname: (way.hostname != *said).then(|| way.hostname.clone()),
                alias: way.alias.clone(),
                port: way.port,
                user: way.user.clone(),
                accept: pinned.accept,
                authorities: pinned.authorities,
                config: config.as_deref().map(settle::shown),
            };
            (Some(Arc::new(guest)), Some(jump))
        }
    };
    let host = Host {
        name: &config.host,
        way: &route.way,
        fingerprints,
        through: through.as_ref(),
        between: false,
    };
    let (mut guest, pinned, address) = host.enter(ask, deadline).await?;
    if let Some(through) = through {
        guest = guest.keeping(through);
    }
    Ok(Met {
        guest: Arc::new(guest),
        address,
        accept: pinned.accept,
        authorities: pinned.authorities,
        adopted: Adopted {
            host: config.host.clone(),
            name: config.name(),
            alias: Some(route.way.known_as()).filter(|known| *known != config.host),
            jump,
            sudo_password: false,
        },
    })
}

/// What a host was trusted for.
struct Pinned {
    accept: Vec<String>,
    authorities: Vec<String>,
}

/// A host that is to be entered.
struct Host<'a> {
    name: &'a str,
    way: &'a Way,
    fingerprints: &'a [String],
    through: Option<&'a Arc<SshGuest>>,
    /// Another host is reached through it.
    between: bool,
}

impl Host<'_> {
    /// Enters it when it is to be trusted.
    async fn enter(
        &self,
        ask: &dyn Ask,
        deadline: Instant,
    ) -> Result<(SshGuest, Pinned, SocketAddr)> {
        let known = self.way.known();
        let mut expect = Expect {
            fingerprints: self.fingerprints.to_vec(),
            principals: vec![self.way.known_as()],
            revoked: known.revoked.clone(),
            ..Expect::default()
        };
        if self.fingerprints.is_empty() {
            expect.keys = known.keys.clone();
            expect.authorities = known.authorities.clone();
        }
        let address = self.address(deadline).await?;
        let mut met = self.attempt(address, &expect, ask, deadline).await?;
        if !self.fingerprints.is_empty() {
            // The fingerprint may be that of another of its keys.
            for kind in KINDS.into_iter().flatten() {
                if matches!(met, Entered::In(_)) {
                    break;
                }
                expect.kind = Some(kind.to_owned());
                if let Ok(found @ Entered::In(_)) =
                    self.attempt(address, &expect, ask, deadline).await
                {
                    met = found;
                }
            }
        }
        let guest = match met {
            Entered::In(guest) => guest,
            Entered::Stranger { key, error } => {
                self.trust(&key, error, &known, ask).await?;
                expect.keys = vec![key];
                match self.attempt(address, &expect, ask, deadline).await? {
                    Entered::In(guest) => guest,
                    Entered::Stranger { error, .. } => return Err(error),
                }
            }
        };
        let pinned = match guest.authority() {
            Some(authority) => Pinned {
                accept: Vec::new(),
                authorities: vec![authority.to_owned()],
            },
            None => Pinned {
                accept: vec![guest.host_key().to_owned()],
                authorities: Vec::new(),
            },
        };
        Ok((guest, pinned, address))
    }

    /// Its address; behind another host, that one tells it.
    async fn address(&self, deadline: Instant) -> Result<SocketAddr> {
        let name = self.way.hostname.as_str();
        let ip = match self.through {
            Some(through) if name.parse::<std::net::IpAddr>().is_err() => {
                let left = deadline.saturating_duration_since(Instant::now());
                let line = format!("getent hosts {}", crate::playbook::quote(name));
                let output = through.exec(&line, b"", left).await?;
                told(&output).ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!("the host before `{name}` knows no address of it"),
                    )
                })?
            }
            _ => locate(name).await?,
        };
        Ok(SocketAddr::new(ip, self.way.port))
    }

    /// One login, tried again for a while where nothing listens.
    async fn attempt(
        &self,
        address: SocketAddr,
        expect: &Expect,
        ask: &dyn Ask,
        deadline: Instant,
    ) -> Result<Entered> {
        let user = self.way.user.as_str();
        let shown = address.to_string();
        let booting = Instant::now() + BOOTING;
        loop {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let stream = match self.stream(address, left).await {
                Ok(stream) => stream,
                Err(error)
                    if error.kind() == Kind::Unavailable
                        && Instant::now() < booting.min(deadline) =>
                {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let identities = &self.way.identities;
            return login::enter(stream, (&shown, user), expect, identities, ask, left).await;
        }
    }

    async fn stream(&self, address: SocketAddr, left: Duration) -> Result<Box<dyn Stream>> {
        match self.through {
            Some(through) => {
                through
                    .dial(&Dial::Host(address.ip().to_string(), address.port()), left)
                    .await
            }
            None => open(address, &self.way.user, left).await,
        }
    }

    /// Whether the user says that a key that nobody knows is that of the host.
    async fn trust(&self, key: &str, error: Error, known: &Known, ask: &dyn Ask) -> Result<()> {
        let name = self.name;
        if !self.fingerprints.is_empty() || known.revoked.iter().any(|revoked| revoked == key) {
            return Err(error);
        }
        let why = error.causes().pop().unwrap_or_default();
        if !known.keys.is_empty() {
            return Err(Error::new(
                Kind::Refused,
                format!("the host key of `{name}` is not the one in `known_hosts`"),
            )
            .because(why)
            .hint(format!("somebody else may answer there, and nothing was sent; when the host was made anew, compare its key there and forget the old one: `ssh-keygen -R {}`", known_as(&self.way.known_as(), self.way.known_port()))));
        }
        let why = if known.authorities.is_empty() {
            "it is in no `known_hosts`, no authority certifies it, and there is no terminal to ask at; nothing was sent to the host".to_owned()
        } else {
            format!(
                "it is in no `known_hosts`, and no authority certifies it ({why}); there is no terminal to ask at, and nothing was sent to the host"
            )
        };
        let unknown = |print: &str, kind: &str| {
            let said = format!("nobody says that {print} ({kind}) is the host key of `{name}`");
            Error::new(Kind::Refused, said).because(why)
        };
        let print = fingerprint(key)?;
        let kind = key.split_whitespace().next().unwrap_or_default();
        match ask.host_key(name, kind, &print).await {
            Some(true) => Ok(()),
            Some(false) => Err(Error::new(
                Kind::Refused,
                format!("`{name}` is not trusted: the answer was not yes, and nothing was sent to it"),
            )),
            None if self.between => Err(unknown(&print, kind).hint(format!(
                "log in there once by `ssh {name}`: it shows the key, and remembers it when you say that it is the right one"
            ))),
            None => Err(unknown(&print, kind).hint(format!(
                "compare it first: at the host, `ssh-keygen -lf {}` prints it; when it is the same: `{}`",
                file_of(kind),
                ask.again(&format!("--generic-host-key {print}"))
            ))),
        }
    }
}

/// Where a server keeps a key of this kind (sshd_config(5), HostKey).
fn file_of(kind: &str) -> &'static str {
    match kind {
        "ssh-rsa" => "/etc/ssh/ssh_host_rsa_key.pub",
        "ssh-ed25519" => "/etc/ssh/ssh_host_ed25519_key.pub",
        _ => "/etc/ssh/ssh_host_ecdsa_key.pub",
    }
}

/// The address that `getent hosts` printed first.
fn told(output: &ExecOutput) -> Option<std::net::IpAddr> {
    output.text().split_whitespace().next()?.parse().ok()
}

/// A TCP connection, within what is left.
async fn open(address: SocketAddr, user: &str, left: Duration) -> Result<Box<dyn Stream>> {
    match timeout(left, crate::remote::ssh::tcp(address)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(stopped_at(
            address,
            user,
            Kind::Unavailable,
            Phase::Tcp,
            error.to_string(),
        )),
        Err(_) => {
            let why = format!("no answer within {} s", left.as_secs());
            Err(stopped_at(address, user, Kind::Timeout, Phase::Tcp, why))
        }
    }
}
