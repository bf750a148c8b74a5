//! Where a libvirt daemon is (<https://libvirt.org/uri.html>).

use std::fmt;
use std::str::FromStr;

use forge_driver::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// The address of a daemon: of this host, or of one that SSH leads to.
///
/// It holds nothing but plain names, so it goes into command lines, URIs and file names as it is. Parameters
/// are refused: they could switch off the check of the host's key (`no_verify`) or run another program
/// (`command`), and what is needed of them forge adds itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uri {
    /// `[user@]host[:port]`; none for this host.
    remote: Option<Remote>,
    session: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Remote {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl Uri {
    /// Whether SSH leads there.
    #[must_use]
    pub fn over_ssh(&self) -> bool {
        self.remote.is_some()
    }

    /// Whether it is a user's own daemon, which has no rights on the host's networks.
    #[must_use]
    pub fn session(&self) -> bool {
        self.session
    }

    /// The words after `ssh` that lead to the host; none for this host.
    pub(crate) fn ssh_words(&self) -> Option<String> {
        let remote = self.remote.as_ref()?;
        let port = remote.port.map(|port| format!("-p {port} "));
        let user = remote.user.as_ref().map(|user| format!("{user}@"));
        Some(format!(
            "{}{}{}",
            port.unwrap_or_default(),
            user.unwrap_or_default(),
            remote.host.trim_matches(['[', ']'])
        ))
    }

    /// A name for a folder of what is noted of this daemon.
    pub(crate) fn folder(&self) -> String {
        self.to_string().replace('/', "_")
    }
}

impl Default for Uri {
    /// The daemon of this host.
    fn default() -> Self {
        Self {
            remote: None,
            session: false,
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remote {
            None => f.write_str("qemu://")?,
            Some(remote) => {
                f.write_str("qemu+ssh://")?;
                if let Some(user) = &remote.user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&remote.host)?;
                if let Some(port) = remote.port {
                    write!(f, ":{port}")?;
                }
            }
        }
        f.write_str(if self.session { "/session" } else { "/system" })
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: &str| {
            Error::new(
                Kind::Usage,
                format!(
                    "`--libvirt-uri {}` is not one that forge can use",
                    text.escape_debug()
                ),
            )
            .because(reason.to_owned())
            .hint("it is `qemu:///system`, `qemu:///session` or `qemu+ssh://[USER@]HOST[:PORT]/system` (or `/session`)")
        };
        if text.contains(['?', '#']) {
            return Err(refused("it has parameters: forge adds what is needed"));
        }
        let (rest, remote) = match (
            text.strip_prefix("qemu://"),
            text.strip_prefix("qemu+ssh://"),
        ) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => {
                return Err(refused(
                    "it begins with neither `qemu://` nor `qemu+ssh://`",
                ));
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let session = match path {
            "system" => false,
            "session" => true,
            _ => return Err(refused("it ends with neither `/system` nor `/session`")),
        };
        let remote = match (remote, authority) {
            (false, "") => None,
            (false, _) => return Err(refused("a host is reached by `qemu+ssh://`")),
            (true, authority) => Some(Remote::parse(authority).map_err(refused)?),
        };
        Ok(Self { remote, session })
    }
}

impl Remote {
    fn parse(authority: &str) -> Result<Self, &'static str> {
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let plain = |text: &str, others: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        if user.is_some_and(|user| !plain(user, "-._")) {
            return Err("its user is not a name of letters, digits, `-`, `.` and `_`");
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !place.ends_with(']') => (host, Some(port)),
            _ => (place, None),
        };
        let literal = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        if !literal && !plain(host, "-.") {
            return Err("its host is not a name of letters, digits, `-` and `.`, nor an address");
        }
        let port = match port.map(str::parse::<u16>) {
            Some(Ok(port)) if port > 0 => Some(port),
            None => None,
            Some(_) => return Err("its port is not a number from 1 to 65535"),
        };
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        })
    }
}

impl TryFrom<String> for Uri {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.line())
    }
}

impl From<Uri> for String {
    fn from(uri: Uri) -> Self {
        uri.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_here_and_elsewhere_are_told_apart() {
        for (text, ssh, session, words) in [
            ("qemu:///system", false, false, None),
            ("qemu:///session", false, true, None),
            ("qemu+ssh://host2/system", true, false, Some("host2")),
            (
                "qemu+ssh://me@h.example:2222/session",
                true,
                true,
                Some("-p 2222 me@h.example"),
            ),
            (
                "qemu+ssh://me@[fd00::1]:22/system",
                true,
                false,
                Some("-p 22 me@fd00::1"),
            ),
        ] {
            let uri: Uri = text.parse().expect(text);
            assert_eq!(uri.to_string(), text);
            assert_eq!((uri.over_ssh(), uri.session()), (ssh, session), "{text}");
            assert_eq!(uri.ssh_words().as_deref(), words, "{text}");
            assert!(!uri.folder().contains('/'));
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for text in [
            "",
            "xen:///",
            "qemu:///",
            "qemu:///system/x",
            "qemu://host/system",
            "qemu+tcp://host/system",
            "qemu+ssh:///system",
            "qemu+ssh://host",
            "qemu+ssh://host/",
            "qemu+ssh://host/system?no_verify=1",
            "qemu:///system?command=/bin/sh",
            "qemu+ssh://host/system#x",
            "qemu+ssh://-oProxyCommand=x/system",
            "qemu+ssh://-l@host/system",
            "qemu+ssh://me@-host/system",
            "qemu+ssh://$(id)/system",
            "qemu+ssh://a;b/system",
            "qemu+ssh://a b/system",
            "qemu+ssh://a'b/system",
            "qemu+ssh://a%20b/system",
            "qemu+ssh://me:secret@host/system",
            "qemu+ssh://host:0/system",
            "qemu+ssh://host:70000/system",
            "qemu+ssh://[fe80/system",
        ] {
            let error = text.parse::<Uri>().expect_err(text);
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(
                error
                    .deepest_hint()
                    .is_some_and(|hint| hint.contains("qemu+ssh"))
            );
        }
    }
}
