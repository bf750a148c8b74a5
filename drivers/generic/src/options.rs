//! What a user can say of a host.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgMatches, Args};
use forge_driver::options::{Origin, Origins};
use forge_driver::{ENGINE_PORT, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// What a user can say of a host that is there already. Names are those that docker-machine gave the driver of the same
/// name, where it had them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Driver generic")]
pub struct Options {
    /// Adopt this host: its address, its name, or the name that it has in the configuration of `ssh`
    #[arg(
        id = "generic_ip_address",
        long = "generic-ip-address",
        value_name = "HOST",
        env = "GENERIC_IP_ADDRESS",
        hide_env_values = true
    )]
    pub ip_address: Option<String>,
    /// Log in as this user; another one than root needs `sudo` there [default: as `ssh` is configured, else root]
    #[arg(
        id = "generic_ssh_user",
        long = "generic-ssh-user",
        value_name = "USER",
        env = "GENERIC_SSH_USER",
        hide_env_values = true
    )]
    pub ssh_user: Option<String>,
    /// Log in with this private key, and no other; its passphrase is asked for, unless an agent holds it [default: those of the agent, then those that `ssh` would take]
    #[arg(
        id = "generic_ssh_key",
        long = "generic-ssh-key",
        value_name = "FILE",
        env = "GENERIC_SSH_KEY",
        hide_env_values = true
    )]
    pub ssh_key: Option<PathBuf>,
    /// Find its SSH server at this port [default: as `ssh` is configured, else 22]
    #[arg(
        id = "generic_ssh_port",
        long = "generic-ssh-port",
        value_name = "PORT",
        env = "GENERIC_SSH_PORT",
        hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub ssh_port: Option<u16>,
    /// Let its engine answer at this port [default: 2376]
    #[arg(
        id = "generic_engine_port",
        long = "generic-engine-port",
        value_name = "PORT",
        env = "GENERIC_ENGINE_PORT",
        hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub engine_port: Option<u16>,
    /// Trust the host by this fingerprint of its key, as `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it there; may be given several times [default: what `known_hosts` says, else the answer at the terminal]
    #[arg(
        id = "generic_host_key",
        long = "generic-host-key",
        value_name = "SHA256:…",
        env = "GENERIC_HOST_KEY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub host_key: Vec<String>,
    /// Reach it through this host, which has to be known to `ssh` [default: as `ssh` is configured]
    #[arg(
        id = "generic_jump",
        long = "generic-jump",
        value_name = "[USER@]HOST[:PORT]",
        env = "GENERIC_JUMP",
        hide_env_values = true
    )]
    pub jump: Option<String>,
    /// Read the password that `sudo` asks for from the first line of this file [default: asked for at the terminal, where it is needed]
    #[arg(
        id = "generic_sudo_password_file",
        long = "generic-sudo-password-file",
        value_name = "FILE",
        env = "FORGE_SUDO_PASSWORD_FILE",
        hide_env_values = true,
        conflicts_with = "generic_sudo_password_stdin"
    )]
    pub sudo_password_file: Option<PathBuf>,
    /// Read the password that `sudo` asks for from the first line of standard input
    #[arg(
        id = "generic_sudo_password_stdin",
        long = "generic-sudo-password-stdin"
    )]
    pub sudo_password_stdin: bool,
    /// Go by this configuration of `ssh`, or by `none` [default: ~/.ssh/config, then /etc/ssh/ssh_config]
    #[arg(
        id = "generic_ssh_config",
        long = "generic-ssh-config",
        value_name = "FILE",
        env = "GENERIC_SSH_CONFIG",
        hide_env_values = true
    )]
    pub ssh_config: Option<PathBuf>,
}

/// Where a host is: what is recorded. How its user logs in there the first time is not: forge has a key of its own
/// afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host, as its user named it.
    pub host: String,
    /// What it is called on the network, when the configuration of `ssh` says another name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The user; `None` until it is settled.
    pub ssh_user: Option<String>,
    /// The port of its SSH server; `None` until it is settled.
    pub ssh_port: Option<u16>,
    /// The port of its engine.
    pub engine_port: u16,
    /// The host that it is reached through.
    pub jump: Option<JumpHost>,
}

impl Config {
    /// What the options come to, and where each value came from.
    ///
    /// # Errors
    /// [`Kind::Usage`] for words that are no host, no jump host or no fingerprint.
    pub fn resolve(options: &Options, matches: Option<&ArgMatches>) -> Result<(Self, Origins)> {
        let host = options.ip_address.clone().unwrap_or_default();
        if host.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                "the driver `generic` has to be told which host: `--generic-ip-address` is missing",
            )
            .hint("`--generic-ip-address 192.0.2.10 --generic-ssh-user admin`"));
        }
        check_host("--generic-ip-address", &host)?;
        if let Some(user) = &options.ssh_user {
            check_user("--generic-ssh-user", user)?;
        }
        for print in &options.host_key {
            check_fingerprint(print)?;
        }
        let jump = match options.jump.as_deref() {
            None | Some("") | Some("none") => None,
            Some(text) => Some(text.parse()?),
        };
        let origins = [
            ("generic-ip-address", true),
            ("generic-ssh-user", options.ssh_user.is_some()),
            ("generic-ssh-port", options.ssh_port.is_some()),
            ("generic-engine-port", options.engine_port.is_some()),
            ("generic-jump", options.jump.is_some()),
        ]
        .into_iter()
        .map(|(flag, given)| (flag, Origin::of(matches, flag, given)))
        .collect();
        let config = Self {
            host,
            hostname: None,
            ssh_user: options.ssh_user.clone(),
            ssh_port: options.ssh_port,
            engine_port: options.engine_port.unwrap_or(ENGINE_PORT),
            jump,
        };
        Ok((config, origins))
    }

    /// The name or the address that leads there.
    #[must_use]
    pub fn target(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.host)
    }

    /// Its name, where it is one that leads there from here.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let name = self.target();
        let leads = self.jump.is_none() && name.parse::<IpAddr>().is_err() && !name.contains(':');
        leads.then(|| name.to_owned())
    }

    /// The port of its SSH server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ssh_port.unwrap_or(forge_driver::SSH_PORT)
    }
}

/// A host that another one is reached through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JumpHost {
    /// Its name or address.
    pub host: String,
    /// The user there; `None` until it is settled.
    pub user: Option<String>,
    /// The port of its SSH server; `None` until it is settled.
    pub port: Option<u16>,
}

impl FromStr for JumpHost {
    type Err = Error;

    /// `[USER@]HOST[:PORT]`, as ssh(1) has it for `-J`; an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let flag = "--generic-jump";
        let wrong = || {
            Error::new(Kind::Usage, format!("`{flag} {text}` is not [USER@]HOST[:PORT]"))
                .hint("one host can be between; `ssh` reaches that one through others, when it is configured so")
        };
        if text.contains(',') {
            return Err(wrong());
        }
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, text),
        };
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
                match after.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if after.is_empty() => (host, None),
                    None => return Err(wrong()),
                }
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(wrong()),
            },
        };
        check_host(flag, host)?;
        if let Some(user) = &user {
            check_user(flag, user)?;
        }
        Ok(Self {
            host: host.to_owned(),
            user,
            port,
        })
    }
}

/// Refuses what cannot be a host's name or address. Such a word stands in the command lines of other programs, so it is
/// never one that looks like an option of theirs.
fn check_host(flag: &str, host: &str) -> Result<()> {
    let fits = !host.starts_with('-')
        && host.len() <= 253
        && !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:%".contains(c));
    if fits {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("`{flag} {host}` is neither a name nor an address"),
    )
    .hint("the user and the ports have options of their own: `--generic-ssh-user`, `--generic-ssh-port`, `--generic-engine-port`"))
}

fn check_user(flag: &str, user: &str) -> Result<()> {
    let fits = !user.is_empty()
        && !user.starts_with('-')
        && user.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if fits {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("`{flag} {user}` is no user"),
    ))
}

/// Refuses what cannot be a fingerprint: 43 digits of base64 after `SHA256:`.
fn check_fingerprint(text: &str) -> Result<()> {
    let digits = text.strip_prefix("SHA256:").unwrap_or_default();
    let fits = digits.len() == 43
        && digits
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '/');
    if fits {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("`--generic-host-key {text}` is not a fingerprint of a host key"),
    )
    .hint("at the host, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it: `SHA256:` and 43 characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(host: &str) -> Options {
        Options {
            ip_address: Some(host.to_owned()),
            ..Options::default()
        }
    }

    #[test]
    fn what_is_not_said_is_left_open() {
        let (config, origins) = Config::resolve(&options("n1.example"), None).expect("resolved");
        assert_eq!(config.engine_port, 2376);
        assert_eq!((config.ssh_user.as_ref(), config.ssh_port), (None, None));
        assert_eq!(origins["generic-ssh-user"], Origin::Default);
        assert_eq!(origins["generic-ip-address"], Origin::Flag);
    }

    #[test]
    fn words_that_are_none_are_refused() {
        for host in ["", "-oProxyCommand=x", "a b", "user@n1", "n1/x", "ssh://n1"] {
            let error = Config::resolve(&options(host), None).expect_err(host);
            assert_eq!(error.kind(), Kind::Usage, "{host}");
        }
        for print in ["", "SHA256:", "MD5:00:11", "SHA256:tooshort"] {
            let options = Options {
                host_key: vec![print.to_owned()],
                ..options("n1")
            };
            assert!(Config::resolve(&options, None).is_err(), "{print}");
        }
    }

    #[test]
    fn a_jump_host_is_written_as_for_ssh() {
        let jump = |text: &str| text.parse::<JumpHost>();
        let whole = jump("admin@gate.example:2222").expect("a jump host");
        assert_eq!(whole.host, "gate.example");
        assert_eq!(
            (whole.user.as_deref(), whole.port),
            (Some("admin"), Some(2222))
        );
        assert_eq!(jump("gate").expect("a jump host").port, None);
        assert_eq!(jump("[2001:db8::1]:22").expect("six").host, "2001:db8::1");
        for text in [
            "", "a,b", "gate:0", "gate:x", "-x", "@gate", "[::1", "[::1]x",
        ] {
            assert!(jump(text).is_err(), "{text}");
        }
    }
}
