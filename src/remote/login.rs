//! The login of a user at a host that is not forge's yet: with the keys of an agent, then with key files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result};
use russh::client::Handle;
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::host_key::{Expect, Expected, print};
use super::keys::{parse, text};
use super::ssh::{At, Checker, Phase, Progress, SshGuest, exchange, hash_for, private_key};
use crate::http::Stream;
use crate::interrupt;
use crate::secret::Secret;

/// So many keys are offered at most: servers end a connection after six that they do not know (sshd_config(5),
/// MaxAuthTries).
const OFFERS: usize = 5;
/// A user is given this long for passphrases, and for the touch of a security key: servers wait no longer for a login
/// either (sshd_config(5), LoginGraceTime).
const HUMAN: Duration = Duration::from_secs(120);
/// Questions are over so long before that: what was typed is still of use then.
const MARGIN: Duration = Duration::from_secs(10);
/// A passphrase is asked for so often.
const TRIES: usize = 3;

/// What a user can show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// The socket of an agent.
    pub agent: Option<PathBuf>,
    /// Files with private keys; those that are not there are passed over.
    pub files: Vec<PathBuf>,
    /// Nothing but these files is shown, by the agent where it holds one of them.
    pub only_files: bool,
}

/// Whoever can be asked for passphrases.
#[async_trait]
pub trait Unlock: Send + Sync {
    /// The passphrase of the key in this file; `attempt` counts from 0, and with each one the one before was wrong.
    ///
    /// # Errors
    /// Why there is none: nobody is there to ask, or nothing was said before `until`.
    async fn passphrase(&self, file: &Path, attempt: usize, until: Instant) -> Result<Secret>;
}

/// How a login ended that did not fail.
pub enum Entered {
    /// A connection.
    In(SshGuest),
    /// The server is not one that was expected; it was told nothing.
    Stranger {
        /// The key that it showed.
        key: String,
        /// That, as an error.
        error: Error,
    },
}

/// Logs in as `user` over `stream`, which leads to `address`, when the server is expected.
///
/// # Errors
/// As [`super::ssh::connect`]; the host key is no error here.
pub async fn enter(
    stream: Box<dyn Stream>,
    (address, user): (&str, &str),
    expect: &Expect,
    identities: &Identities,
    unlock: &dyn Unlock,
    deadline: Duration,
) -> Result<Entered> {
    let at = At {
        address: address.to_owned(),
        user: user.to_owned(),
    };
    let progress = Arc::new(Progress::default());
    let start = Instant::now();
    let expected = Expected::parse(expect)?;
    let mut handle = match timeout_at(start + deadline, exchange(stream, expected, &progress)).await
    {
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => {
            let error = at.explain(&progress, &error);
            return match progress.presented() {
                Some(key) if progress.phase() == Phase::HostKey => Ok(Entered::Stranger {
                    key: text(&key),
                    error,
                }),
                _ => Err(error),
            };
        }
        Err(_) => return Err(at.late(&progress, deadline)),
    };
    let begun = Instant::now();
    let mut offers = Offers {
        handle: &mut handle,
        user,
        left: OFFERS,
        until: begun + HUMAN - MARGIN,
        told: Vec::new(),
    };
    let all = offers.all(identities, unlock);
    let within = deadline.max(HUMAN);
    let done = timeout_at(begun + within, all).await;
    // Whoever was asked may have had enough.
    interrupt::check()?;
    match done {
        Ok(Ok(true)) => Ok(Entered::In(at.guest(handle, &progress))),
        Ok(Ok(false)) => {
            let told = offers.told;
            Err(refused(&at, &told))
        }
        Ok(Err(error)) => Err(at.explain(&progress, &error)),
        Err(_) => Err(at.late(&progress, within)),
    }
}

fn refused(at: &At, told: &[String]) -> Error {
    let error = if told.is_empty() {
        at.stopped(
            Kind::Refused,
            Phase::Authentication,
            "there is no key to log in with: no agent holds one, and none lies where `ssh` looks for them".to_owned(),
        )
    } else {
        at.not_let_in(&format!("any key ({})", told.join("; ")))
    };
    error.hint(format!(
        "name a key that `{}` is let in with, or add it to an agent: `ssh-add FILE`",
        at.user
    ))
}

/// The keys that are offered on one connection.
struct Offers<'a> {
    handle: &'a mut Handle<Checker>,
    user: &'a str,
    left: usize,
    /// Nobody is asked after this moment.
    until: Instant,
    /// What came of those that were not taken.
    told: Vec<String>,
}

impl Offers<'_> {
    /// Whether one of them was taken.
    async fn all(
        &mut self,
        identities: &Identities,
        unlock: &dyn Unlock,
    ) -> Result<bool, russh::Error> {
        let files: Vec<File> = identities
            .files
            .iter()
            .filter_map(|path| File::read(path))
            .collect();
        let mut held = Vec::new();
        if let Some(socket) = &identities.agent
            && self
                .by_agent(socket, &files, identities.only_files, &mut held)
                .await?
        {
            return Ok(true);
        }
        for file in &files {
            let known = file.public.as_ref();
            if known.is_some_and(|key| held.iter().any(|held| held.key_data() == key.key_data())) {
                continue;
            }
            if self.left == 0 {
                self.told.push("no more than five are offered".to_owned());
                return Ok(false);
            }
            if self.by_file(file, unlock).await? {
                return Ok(true);
            }
        }
        if identities.only_files {
            let missing = identities.files.iter().filter(|path| !path.exists());
            self.told
                .extend(missing.map(|path| format!("`{}` is not there", path.display())));
        }
        Ok(false)
    }

    /// With what the agent holds; those keys are in `held` afterwards.
    async fn by_agent(
        &mut self,
        socket: &Path,
        files: &[File],
        only_files: bool,
        held: &mut Vec<PublicKey>,
    ) -> Result<bool, russh::Error> {
        // An agent that is gone is as good as none.
        let Ok(mut agent) = AgentClient::<UnixStream>::connect_uds(socket).await else {
            return Ok(false);
        };
        let Ok(mut identities) = agent.request_identities().await else {
            self.told.push("the agent does not answer".to_owned());
            return Ok(false);
        };
        let of_file = |identity: &AgentIdentity| {
            let key = identity.public_key();
            let mut known = files.iter().filter_map(|file| file.public.as_ref());
            known.any(|known| known.key_data() == key.key_data())
        };
        identities.retain(|identity| !only_files || of_file(identity));
        // Those that were chosen for this host come first.
        identities.sort_by_key(|identity| !of_file(identity));
        for identity in identities {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let key = identity.public_key().into_owned();
            let hash = hash_for(self.handle, key.algorithm().is_rsa()).await?;
            let answer = match &identity {
                AgentIdentity::PublicKey { .. } => {
                    self.handle
                        .authenticate_publickey_with(self.user, key.clone(), hash, &mut agent)
                        .await
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    self.handle
                        .authenticate_certificate_with(
                            self.user,
                            certificate.clone(),
                            hash,
                            &mut agent,
                        )
                        .await
                }
            };
            match answer {
                Ok(answer) if answer.success() => return Ok(true),
                Ok(_) => self.told.push(format!("{} of the agent", print(&key))),
                // The server takes it, and the agent does not sign: a refused confirmation, a key that is not plugged in.
                Err(_) => self
                    .told
                    .push(format!("{}: the agent does not sign with it", print(&key))),
            }
            held.push(key);
        }
        Ok(false)
    }

    /// With a key file, whose passphrase is asked for when the server would take the key.
    async fn by_file(&mut self, file: &File, unlock: &dyn Unlock) -> Result<bool, russh::Error> {
        let shown = format!("`{}`", file.path.display());
        let key = match private_key(&file.text, None) {
            Ok(key) if !key.is_encrypted() => key,
            found => {
                let locked = found.is_ok() || file.looks_locked();
                if !locked {
                    self.told.push(format!("{shown} cannot be read as a key"));
                    return Ok(false);
                }
                if let Some(public) = &file.public
                    && !self.would_be_taken(public).await?
                {
                    self.left -= 1;
                    self.told.push(shown);
                    return Ok(false);
                }
                match self.opened(file, unlock).await {
                    Ok(key) => key,
                    Err(why) => {
                        self.told.push(format!("{shown} {why}"));
                        return Ok(false);
                    }
                }
            }
        };
        self.left -= 1;
        if self.offer(key).await? {
            return Ok(true);
        }
        self.told.push(shown);
        Ok(false)
    }

    /// The key of a file with a passphrase, or why there is none.
    async fn opened(&self, file: &File, unlock: &dyn Unlock) -> Result<PrivateKey, String> {
        for attempt in 0..TRIES {
            let asked = unlock.passphrase(&file.path, attempt, self.until).await;
            let passphrase =
                asked.map_err(|error| format!("has a passphrase, and {}", error.message()))?;
            match private_key(&file.text, Some(&passphrase)) {
                Ok(key) if !key.is_encrypted() => return Ok(key),
                _ => {}
            }
        }
        Err("has a passphrase, and none of those that were given opens it".to_owned())
    }

    /// Whether the server takes the key, were it shown that somebody has it (RFC 4252, 7): nobody is asked to open one
    /// that it does not know.
    async fn would_be_taken(&mut self, key: &PublicKey) -> Result<bool, russh::Error> {
        let hash = hash_for(self.handle, key.algorithm().is_rsa()).await?;
        // An agent that is gone: the attempt ends where the server asks for a signature, and the connection goes on.
        let (nobody, _) = tokio::io::duplex(1);
        let asked = self
            .handle
            .authenticate_publickey_with(
                self.user,
                key.clone(),
                hash,
                &mut AgentClient::connect(nobody),
            )
            .await;
        Ok(asked.is_err() && !self.handle.is_closed())
    }

    async fn offer(&mut self, key: PrivateKey) -> Result<bool, russh::Error> {
        let hash = hash_for(self.handle, key.algorithm().is_rsa()).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        Ok(self
            .handle
            .authenticate_publickey(self.user, key)
            .await?
            .success())
    }
}

/// A file with a private key.
struct File {
    path: PathBuf,
    text: Secret,
    /// The public half, where it can be told without a passphrase.
    public: Option<PublicKey>,
}

impl File {
    fn read(path: &Path) -> Option<Self> {
        let text = Secret::new(fs::read_to_string(path).ok()?);
        let beside = || {
            let name = format!("{}.pub", path.display());
            parse(&fs::read_to_string(name).ok()?).ok()
        };
        // OpenSSH's own format has the public half in the clear.
        let public = PrivateKey::from_openssh(text.expose())
            .ok()
            .map(|key| key.public_key().clone())
            .or_else(beside);
        Some(Self {
            path: path.to_owned(),
            text,
            public,
        })
    }

    /// PEM says so in its head (RFC 1421, 4.6.1.1; RFC 5958).
    fn looks_locked(&self) -> bool {
        ["ENCRYPTED", "-----BEGIN OPENSSH PRIVATE KEY-----"]
            .iter()
            .any(|mark| self.text.expose().contains(mark))
    }
}
