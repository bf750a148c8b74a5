//! Ports of this host that lead through a machine (`ssh -L`).

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::signals::Signals;
use super::ssh::SshGuest;

/// So many connections go through one forwarded port at a time; further ones wait.
const AT_ONCE: usize = 64;

/// What is dialled there answers within this time.
const DIAL: Duration = Duration::from_secs(60);

/// A port of this host, and where connections to it lead from the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The address of this host that listens.
    pub bind: IpAddr,
    /// Its port.
    pub port: u16,
    /// The host, as the machine calls it.
    pub host: String,
    /// The port there.
    pub host_port: u16,
}

impl FromStr for Forward {
    type Err = Error;

    /// `[bind_address:]port:host:hostport` (ssh(1), `-L`), IPv6 addresses in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                Kind::Usage,
                format!("`{text}` does not say what to forward"),
            )
            .hint(
                "`-L PORT:HOST:PORT`, or `-L ADDRESS:PORT:HOST:PORT` with an address of this host",
            )
        };
        let parts = parts(text);
        let (bind, rest) = match parts.as_slice() {
            [bind, rest @ ..] if rest.len() == 3 => (*bind, rest),
            rest if rest.len() == 3 => ("localhost", rest),
            _ => return Err(wrong()),
        };
        let bind = match bind {
            "localhost" => [127, 0, 0, 1].into(),
            "" | "*" => [0, 0, 0, 0].into(),
            address => address.parse().map_err(|_| wrong())?,
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (port(rest[0]), rest[1], port(rest[2])) {
            (Some(port), host, Some(host_port)) if !host.is_empty() => Ok(Self {
                bind,
                port,
                host: host.to_owned(),
                host_port,
            }),
            _ => Err(wrong()),
        }
    }
}

/// The parts between the colons that are not in brackets, without the brackets.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|letter| {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ':' && depth == 0
    })
    .map(|part| {
        let inner = part
            .strip_prefix('[')
            .and_then(|part| part.strip_suffix(']'));
        inner.unwrap_or(part)
    })
    .collect()
}

impl Forward {
    /// Takes the port; it leads somewhere once [`Forward::serve`] runs.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn listen(&self) -> Result<TcpListener> {
        TcpListener::bind((self.bind, self.port))
            .await
            .map_err(|error| {
                let taken = error.kind() == std::io::ErrorKind::AddrInUse;
                let failed = Error::new(
                    if taken { Kind::Conflict } else { Kind::Io },
                    format!("failed to listen at port {} of {}", self.port, self.bind),
                );
                failed.because(error)
            })
    }

    /// Leads connections through the machine, for as long as it is polled. One that finds nobody there is closed.
    pub async fn serve(&self, listener: TcpListener, guest: &SshGuest) {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
                return;
            };
            let Ok((mut here, _)) = listener.accept().await else {
                // Out of descriptors: some will be closed.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let dialled = guest.dial_named(&self.host, self.host_port);
            tokio::spawn(async move {
                if let Ok(Ok(mut there)) = tokio::time::timeout(DIAL, dialled).await {
                    // Either side may close it at any moment.
                    let _ = copy_bidirectional(&mut here, &mut there).await;
                }
                drop(turn);
            });
        }
    }
}

impl SshGuest {
    /// Waits until this process is sent a signal, and gives the exit code for it.
    ///
    /// # Errors
    /// When the connection is lost before.
    pub async fn hold(&self) -> Result<i32> {
        let failed = || format!("the connection to `{}` ended", self.address);
        let mut signals = Signals::all().or_fail(Kind::Io, failed)?;
        let gone = async {
            while !self.is_closed() {
                sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            caught = signals.next() => Ok(128 + caught.number),
            () = gone => Err(Error::new(Kind::Unavailable, failed())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_forward_is_read_as_openssh_reads_it() {
        let read = |text: &str| -> Forward { text.parse().expect(text) };
        let plain = read("8080:web:80");
        assert_eq!(
            (plain.bind.to_string().as_str(), plain.port),
            ("127.0.0.1", 8080)
        );
        assert_eq!((plain.host.as_str(), plain.host_port), ("web", 80));
        assert_eq!(read("*:1:h:2").bind.to_string(), "0.0.0.0");
        assert_eq!(read(":1:h:2").bind.to_string(), "0.0.0.0");
        assert_eq!(read("127.5.6.7:1:h:2").bind.to_string(), "127.5.6.7");
        let six = read("[::1]:1:[fe80::2]:3");
        assert_eq!(
            (six.bind.to_string().as_str(), six.host.as_str()),
            ("::1", "fe80::2")
        );
        for wrong in [
            "",
            "80",
            "80:h",
            "0:h:1",
            "1:h:70000",
            "1::2",
            "x:1:h:2",
            "1:2:3:4:5",
            "/s:h:1",
        ] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
