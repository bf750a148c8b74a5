//! How `ssh` is configured for a host: what was not said on the command line.
//!
//! OpenSSH itself is asked (`ssh -G`), since nobody else evaluates `Match exec`, `Include` and tokens as it does. It opens
//! no connection for that. Where there is none, what was said counts alone, and its well-known files.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Error, Kind, Result, atomic, process};
use tokio::process::Command;

use crate::remote::known_hosts::Known;
use crate::remote::login::Identities;

/// `ssh -G` opens no connection; a `Match exec` may take a moment.
const DEADLINE: Duration = Duration::from_secs(20);
/// The files that `ssh` takes keys from when nothing else is said (ssh_config(5), IdentityFile), newest kinds first.
const KEYS: [&str; 4] = ["id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk"];
/// The user on a host for whom nobody named one: docker-machine's.
pub const ROOT: &str = "root";

/// What is said of a host on a command line.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The host.
    pub host: String,
    /// The user there.
    pub user: Option<String>,
    /// The port of its SSH server.
    pub port: Option<u16>,
    /// The key that its user logs in with.
    pub key: Option<PathBuf>,
    /// The configuration of `ssh` to go by.
    pub config: Option<PathBuf>,
    /// The user where neither the command line nor the configuration names one; the one of this process otherwise.
    pub usual: Option<&'static str>,
}

/// A way to a host, as far as `ssh` is configured for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The name or the address that it is reached by.
    pub hostname: String,
    /// The user there.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// The name that `known_hosts` and certificates have for it.
    pub alias: Option<String>,
    /// What its user logs in with.
    pub identities: Identities,
    /// The files that say which host keys are its.
    pub known_hosts: Vec<PathBuf>,
    /// The host that it is reached through.
    pub jump: Option<String>,
    /// It is reached by what a program says, and not by a connection.
    pub command: Option<String>,
}

impl Way {
    /// The name that `known_hosts` and certificates have for it: what is reached, and not the word that was said
    /// (`get_hostfile_hostname_ipaddr` in OpenSSH's sshconnect.c).
    pub fn known_as(&self) -> String {
        match &self.alias {
            Some(alias) => alias.clone(),
            None => self.hostname.to_lowercase(),
        }
    }

    /// The port beside that name: an alias stands for host and port (ssh_config(5), HostKeyAlias).
    pub fn known_port(&self) -> u16 {
        match &self.alias {
            Some(_) => forge_driver::SSH_PORT,
            None => self.port,
        }
    }

    /// What the `known_hosts` files say of it.
    pub fn known(&self) -> Known {
        let files = self
            .known_hosts
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok());
        Known::read(files, &self.known_as(), self.known_port())
    }
}

/// The way to a host: what was said, then what `ssh` is configured to do, then what is usual.
///
/// # Errors
/// What `ssh` says of its configuration.
pub async fn settle(said: &Said) -> Result<Way> {
    let mut way = match process::which(Path::new("ssh")) {
        Some(ssh) => asked(&ssh, said).await?,
        None => usual(said),
    };
    if let Some(key) = &said.key {
        way.identities.files = vec![key.clone()];
        way.identities.only_files = true;
    }
    Ok(way)
}

async fn asked(ssh: &Path, said: &Said) -> Result<Way> {
    let failed = || format!("failed to read how `ssh` is configured for `{}`", said.host);
    let folder =
        tempfile::tempdir().map_err(|error| Error::new(Kind::Io, failed()).because(error))?;
    let file = folder.path().join("config");
    atomic::write(&file, configuration(said).as_bytes(), 0o600)?;
    let mut command = Command::new(ssh);
    command.arg("-G").arg("-F").arg(&file);
    if let Some(user) = &said.user {
        command.args(["-l", user]);
    }
    if let Some(port) = said.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", &said.host]);
    let output = process::run(command, None, DEADLINE)
        .await?
        .success(&failed())?;
    Ok(read(&output.text(), said))
}

/// Where two files say the same, the first one counts: so what is usual stands at the end, and counts only where the
/// user's own files and the system's say nothing (ssh_config(5)).
fn configuration(said: &Said) -> String {
    let mut text = match &said.config {
        // As for `ssh -F`.
        Some(path) if path.as_os_str() == "none" => String::new(),
        Some(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("Include \"{}\"\n", path.display())
        }
        None => "Include ~/.ssh/config\nInclude /etc/ssh/ssh_config\n".to_owned(),
    };
    if let Some(user) = said.usual {
        text.push_str(&format!("Host *\n  User {user}\n"));
    }
    text
}

/// Without OpenSSH.
fn usual(said: &Said) -> Way {
    let ssh = home().join(".ssh");
    let me = || env::var("USER").unwrap_or_else(|_| ROOT.to_owned());
    Way {
        hostname: said.host.clone(),
        user: said
            .user
            .clone()
            .unwrap_or_else(|| said.usual.map_or_else(me, str::to_owned)),
        port: said.port.unwrap_or(forge_driver::SSH_PORT),
        identities: Identities {
            agent: agent(None),
            files: KEYS.iter().map(|name| ssh.join(name)).collect(),
            only_files: false,
        },
        known_hosts: vec![
            ssh.join("known_hosts"),
            ssh.join("known_hosts2"),
            "/etc/ssh/ssh_known_hosts".into(),
            "/etc/ssh/ssh_known_hosts2".into(),
        ],
        ..Way::default()
    }
}

fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// The agent's socket: as configured, else that of the environment.
fn agent(configured: Option<&str>) -> Option<PathBuf> {
    let variable = |name: &str| {
        env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    match configured {
        None | Some("SSH_AUTH_SOCK") => variable("SSH_AUTH_SOCK"),
        Some("none") => None,
        Some(text) => match text.strip_prefix('$') {
            Some(name) => variable(name),
            None => Some(path(text)),
        },
    }
}

/// A file as a configuration names it.
pub(super) fn path(text: &str) -> PathBuf {
    match text.strip_prefix("~/") {
        Some(rest) => home().join(rest),
        None => PathBuf::from(text),
    }
}

/// What `ssh -G` printed: a line for each setting, its name in lower case.
fn read(text: &str, said: &Said) -> Way {
    let values = |name: &str| {
        let name = name.to_owned();
        text.lines().filter_map(move |line| {
            let (key, value) = line.split_once(' ')?;
            (key == name).then(|| value.trim())
        })
    };
    let first = |name: &str| values(name).next().filter(|value| !value.is_empty());
    let not_none = |value: &&str| !value.eq_ignore_ascii_case("none");
    let hostname = first("hostname").unwrap_or(&said.host).to_owned();
    let user = first("user").unwrap_or(ROOT).to_owned();
    let expand = |file: &str| {
        let file = file
            .replace("%d", &home().display().to_string())
            .replace("%h", &hostname)
            .replace("%r", &user)
            .replace("%%", "%");
        path(&file)
    };
    let known_hosts = ["userknownhostsfile", "globalknownhostsfile"]
        .into_iter()
        .flat_map(values)
        .flat_map(str::split_whitespace)
        .filter(not_none)
        .map(|file| expand(file.trim_matches('"')))
        .collect();
    Way {
        alias: first("hostkeyalias").map(str::to_owned),
        identities: Identities {
            agent: agent(first("identityagent")),
            files: values("identityfile")
                .filter(not_none)
                .map(expand)
                .collect(),
            only_files: first("identitiesonly") == Some("yes"),
        },
        known_hosts,
        jump: first("proxyjump").filter(not_none).map(str::to_owned),
        command: first("proxycommand").filter(not_none).map(str::to_owned),
        port: first("port")
            .and_then(|port| port.parse().ok())
            .unwrap_or(forge_driver::SSH_PORT),
        hostname,
        user,
    }
}

/// A file as [`path`] reads it, from any folder; one in the user's home is named by that alone.
pub(super) fn shown(file: &Path) -> String {
    if file.as_os_str() == "none" {
        return "none".to_owned();
    }
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    match file.strip_prefix(home()) {
        Ok(rest) => format!("~/{}", rest.display()),
        Err(_) => file.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(config: &Path) -> Said {
        Said {
            host: "web".to_owned(),
            config: Some(config.to_owned()),
            usual: Some(ROOT),
            ..Said::default()
        }
    }

    #[tokio::test]
    async fn openssh_says_how_it_is_configured_and_the_command_line_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        std::fs::write(
            &file,
            "Host web\n  HostName 192.0.2.7\n  Port 2222\n  User admin\n  IdentityFile /keys/%h-%r\n  IdentitiesOnly yes\n  \
             HostKeyAlias web.example\n  UserKnownHostsFile /known/one /known/two\n  ProxyJump gate@192.0.2.1:2200\nHost other\n  User else\n",
        )
        .expect("written");
        let way = settle(&said(&file)).await.expect("settled");
        assert_eq!(
            (way.hostname.as_str(), way.user.as_str(), way.port),
            ("192.0.2.7", "admin", 2222)
        );
        assert_eq!(way.alias.as_deref(), Some("web.example"));
        assert_eq!(
            way.identities.files,
            [PathBuf::from("/keys/192.0.2.7-admin")]
        );
        assert!(way.identities.only_files);
        assert_eq!(
            way.known_hosts[..2],
            [PathBuf::from("/known/one"), PathBuf::from("/known/two")]
        );
        // Some versions of OpenSSH write every host in brackets.
        let jump = way.jump.expect("a jump host").replace(['[', ']'], "");
        assert_eq!(jump, "gate@192.0.2.1:2200");
        let way = settle(&Said {
            user: Some("me".into()),
            port: Some(22),
            key: Some("mine".into()),
            ..said(&file)
        })
        .await
        .expect("settled");
        assert_eq!((way.user.as_str(), way.port), ("me", 22));
        assert_eq!(way.identities.files, [PathBuf::from("mine")]);
    }

    #[tokio::test]
    async fn a_host_that_no_configuration_names_is_roots() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        std::fs::write(&file, "").expect("written");
        let way = settle(&said(&file)).await.expect("settled");
        assert_eq!(
            (way.hostname.as_str(), way.user.as_str(), way.port),
            ("web", "root", 22)
        );
        assert!((way.jump, way.command, way.alias) == (None, None, None));
        assert!(way.identities.files.len() > 2, "{:?}", way.identities);
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_configuration_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        std::fs::write(&file, "Nonsense yes\n").expect("written");
        let error = settle(&said(&file)).await.expect_err("nonsense");
        assert!(error.line().contains("onsense"), "{}", error.line());
    }

    #[test]
    fn a_host_is_known_by_what_is_reached_and_not_by_the_word() {
        let mut way = Way {
            hostname: "Web.Example".into(),
            port: 2222,
            ..Way::default()
        };
        assert_eq!(
            (way.known_as(), way.known_port()),
            ("web.example".into(), 2222)
        );
        way.alias = Some("web".into());
        assert_eq!((way.known_as(), way.known_port()), ("web".into(), 22));
    }

    #[test]
    fn a_file_in_the_home_is_named_by_that_alone() {
        let file = home().join(".ssh/work");
        assert_eq!(shown(&file), "~/.ssh/work");
        assert_eq!(path(&shown(&file)), file);
        assert_eq!(shown(Path::new("none")), "none");
        assert_eq!(shown(Path::new("/etc/ssh/gates")), "/etc/ssh/gates");
    }

    #[test]
    fn without_openssh_the_well_known_files_count() {
        let way = usual(&Said {
            host: "web".into(),
            usual: Some(ROOT),
            ..Said::default()
        });
        assert_eq!((way.user.as_str(), way.port), ("root", 22));
        assert!(way.known_hosts[0].ends_with(".ssh/known_hosts"));
    }
}
