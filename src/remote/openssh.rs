//! OpenSSH's programs, led to one machine: by a file of configuration that says all of it, and by nothing else.
//!
//! The user's own configuration and known hosts are not read, and no key of theirs is tried: the machine's address, its
//! user, its key and the host keys that are accepted come from its record. A host between is entered as its user: for
//! that one alone their configuration is read, behind what the record says.

mod words;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Error, Kind, Result};

pub use words::{Asked, Terminal, is_option};

/// What OpenSSH has to know of a machine.
#[derive(Clone, Debug)]
pub struct Login {
    /// The machine's name, by which it is called on the command line.
    pub name: String,
    /// The address and port of its SSH server.
    pub address: SocketAddr,
    /// The user to log in as.
    pub user: String,
    /// The file of the key to log in with.
    pub key: PathBuf,
    /// The file of the host keys that are accepted.
    pub known_hosts: PathBuf,
    /// The name that certificates and that file have for it, where it is not its address.
    pub alias: Option<String>,
    /// The host that it is reached through; its keys are in that file, too.
    pub jump: Option<Between>,
}

/// A host that a machine is reached through, as its user enters it.
#[derive(Clone, Debug)]
pub struct Between {
    /// Its name, as its user said it.
    pub name: String,
    /// The name or address that it is reached by.
    pub host: String,
    /// The port of its SSH server.
    pub port: u16,
    /// The user there.
    pub user: String,
    /// The name that the file of known hosts has for it, where it is not its address.
    pub alias: Option<String>,
    /// The configuration of `ssh` to go by, where one was named; `none` is none.
    pub config: Option<String>,
}

impl Between {
    /// The section of the host between: what is not said here, its user's configuration says.
    fn section(&self, known_hosts: &Path) -> Result<String> {
        let known = path(known_hosts)?;
        let mut text = format!(
            "Host {}\n  HostName {}\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n",
            self.name, self.host
        );
        if let Some(alias) = &self.alias {
            text.push_str(&format!("  HostKeyAlias {alias}\n"));
        }
        match self.config.as_deref() {
            Some("none") => {}
            Some(file) => text.push_str(&format!("  Include \"{}\"\n", plain(Path::new(file))?)),
            None => text.push_str("  Include ~/.ssh/config\n  Include /etc/ssh/ssh_config\n"),
        }
        Ok(text)
    }
}

impl Login {
    /// The machine's sections of a configuration file (ssh_config(5)).
    ///
    /// # Errors
    /// When a path cannot be said in such a file.
    pub fn section(&self) -> Result<String> {
        self.section_with("")
    }

    /// The same, with more lines for the machine.
    fn section_with(&self, lines: &str) -> Result<String> {
        let (mut more, mut between) = (lines.to_owned(), String::new());
        if let Some(alias) = &self.alias {
            more.push_str(&format!("  HostKeyAlias {alias}\n"));
        }
        if let Some(jump) = &self.jump {
            let Between {
                name, port, user, ..
            } = jump;
            let shown = if name.contains(':') {
                format!("[{name}]")
            } else {
                name.clone()
            };
            // The program that is started for it reads this file, and its section.
            more.push_str(&format!("  ProxyJump {user}@{shown}:{port}\n"));
            between = jump.section(&self.known_hosts)?;
        }
        Ok(format!(
            "Host {name}\n  HostName {host}\n  Port {port}\n  User {user}\n  IdentityFile {key}\n  IdentitiesOnly yes\n  \
             PreferredAuthentications publickey\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n{more}{between}",
            name = self.name,
            host = self.address.ip(),
            port = self.address.port(),
            user = self.user,
            key = path(&self.key)?,
            known = path(&self.known_hosts)?,
        ))
    }

    /// What a session of forge's own is besides: it ends when the machine is gone (as often and as late as a
    /// connection of this program), and says errors alone. Options on the command line win over it.
    ///
    /// # Errors
    /// As [`Login::section`].
    pub fn own_section(&self) -> Result<String> {
        self.section_with("  ServerAliveInterval 15\n  ServerAliveCountMax 8\n  LogLevel ERROR\n")
    }

    /// What no option behind it takes back (of each setting the first one counts, ssh_config(5)): which host keys are
    /// accepted; and how long a connection may take.
    ///
    /// # Errors
    /// As [`Login::section`].
    pub fn pins(&self, patience: Duration) -> Result<Vec<OsString>> {
        let settings = [
            "StrictHostKeyChecking=yes".to_owned(),
            format!("UserKnownHostsFile={}", path(&self.known_hosts)?),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("ConnectTimeout={}", patience.as_secs().max(1)),
        ];
        let words = settings
            .into_iter()
            .flat_map(|setting| ["-o".to_owned(), setting]);
        Ok(words.map(OsString::from).collect())
    }
}

/// A path as a word of a configuration file. `%` begins a token there and is doubled (ssh_config(5), "TOKENS"); what
/// would end the word or is replaced by a variable's value cannot be said in all versions.
fn path(path: &Path) -> Result<String> {
    Ok(format!("\"{}\"", plain(path)?.replace('%', "%%")))
}

/// The same, before it is made a word.
fn plain(path: &Path) -> Result<&str> {
    let refused = || {
        Error::new(
            Kind::Invalid,
            format!("OpenSSH cannot be told of the file `{}`", path.display()),
        )
        .hint(
            "keep the store at a path without quotes, backslashes and `${`, or add `--native-ssh`",
        )
    };
    let text = path.to_str().ok_or_else(refused)?;
    if text.contains(['"', '\'', '\\']) || text.contains("${") || text.contains(char::is_control) {
        return Err(refused());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(folder: &str) -> Login {
        Login {
            name: "n1".to_owned(),
            address: "127.133.7.1:2222".parse().expect("an address"),
            user: "forge".to_owned(),
            key: Path::new(folder).join("id_ed25519"),
            known_hosts: Path::new(folder).join("known_hosts"),
            alias: None,
            jump: None,
        }
    }

    #[test]
    fn paths_are_words_of_their_own() {
        let section = login("/a b/100%").section().expect("a section");
        assert!(
            section.contains("  IdentityFile \"/a b/100%%/id_ed25519\"\n"),
            "{section}"
        );
        for folder in ["/a\"b", "/a\\b", "/a'b", "/${HOME}", "/a\nb"] {
            let error = login(folder).section().expect_err(folder);
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn the_host_between_is_entered_as_its_user_does_and_is_no_other_one() {
        let mut login = login("/x");
        login.jump = Some(Between {
            name: "gate".to_owned(),
            host: "192.0.2.1".to_owned(),
            port: 2200,
            user: "me".to_owned(),
            alias: Some("gate.example".to_owned()),
            config: None,
        });
        let section = login.own_section().expect("a section");
        let (machine, gate) = section.split_once("Host gate\n").expect("two");
        assert!(machine.contains("  ProxyJump me@gate:2200\n"), "{machine}");
        assert!(machine.contains("  ServerAliveInterval 15\n"), "{machine}");
        assert_eq!(
            gate,
            "  HostName 192.0.2.1\n  UserKnownHostsFile \"/x/known_hosts\"\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  HostKeyAlias gate.example\n  Include ~/.ssh/config\n  Include /etc/ssh/ssh_config\n"
        );
    }

    #[test]
    fn host_keys_are_pinned_before_all_else() {
        let pins = login("/x").pins(Duration::from_secs(30)).expect("words");
        assert_eq!(pins[..2], ["-o", "StrictHostKeyChecking=yes"]);
        assert!(
            pins.contains(&"UserKnownHostsFile=\"/x/known_hosts\"".into()),
            "{pins:?}"
        );
        assert!(pins.contains(&"ConnectTimeout=30".into()), "{pins:?}");
    }
}
