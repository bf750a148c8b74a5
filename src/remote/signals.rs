//! Signals of this process, for a command on a machine.

use std::io;
use std::time::Duration;

use forge_driver::{Context, Kind, Result};
use futures_util::future::select_all;
use russh::Sig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::Guest;
use super::ssh::SshGuest;

/// A signal that can be caught.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caught {
    /// Its name, without `SIG`.
    name: &'static str,
    /// Its number (signal(7)).
    pub(super) number: i32,
    /// Whether the process is to end, in whatever state.
    pub(super) ends: bool,
    /// What it says.
    pub(super) meaning: &'static str,
}

/// SSH has no words for USR2 and others (RFC 4254, section 6.10).
const ALL: [Caught; 5] = [
    caught("HUP", 1, true, "the terminal was closed"),
    caught("INT", 2, false, "interrupted"),
    caught("QUIT", 3, false, "interrupted"),
    caught("USR1", 10, false, "signalled"),
    caught("TERM", 15, true, "terminated"),
];

const fn caught(name: &'static str, number: i32, ends: bool, meaning: &'static str) -> Caught {
    Caught {
        name,
        number,
        ends,
        meaning,
    }
}

/// The signals of this process from now on.
pub(super) struct Signals(Vec<(Signal, Caught)>);

impl Signals {
    /// Catches them.
    pub(super) fn all() -> io::Result<Self> {
        let mut streams = Vec::new();
        for each in ALL {
            streams.push((signal(SignalKind::from_raw(each.number))?, each));
        }
        Ok(Self(streams))
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Caught {
        let each = self.0.iter_mut().map(|(stream, caught)| {
            Box::pin(async move {
                stream.recv().await;
                *caught
            })
        });
        select_all(each).await.0
    }
}

/// Waits until this process is sent a signal that asks it to end, and gives the exit code for it.
///
/// # Errors
/// When signals cannot be caught.
pub async fn signalled() -> Result<u8> {
    let mut signals = Signals::all().or_fail(Kind::Io, || "failed to catch signals".to_owned())?;
    let caught = signals.next().await;
    Ok(u8::try_from(128 + caught.number).unwrap_or(255))
}

/// A delivery may take this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A signal on its way to the other side.
pub(super) struct Delivery {
    task: JoinHandle<bool>,
    caught: Caught,
}

impl Delivery {
    /// Waits for the end of the one that is under way, for ever where there is none. One that could not be delivered
    /// comes back, in SSH's words.
    pub(super) async fn ended(under_way: &mut Option<Self>) -> Option<Sig> {
        let Some(delivery) = under_way else {
            return std::future::pending().await;
        };
        let delivered = (&mut delivery.task).await.unwrap_or(false);
        (!delivered).then_some(match delivery.caught.name {
            "HUP" => Sig::HUP,
            "INT" => Sig::INT,
            "QUIT" => Sig::QUIT,
            "USR1" => Sig::USR1,
            _ => Sig::TERM,
        })
    }
}

impl SshGuest {
    /// Begins to send a signal to all that runs in the other sessions of this connection. SSH's own request for it is
    /// refused by OpenSSH where root logs in (session.c, `session_signal_req`), so a second session does it: those of one
    /// connection have one parent, and each leads a process group.
    pub(super) fn deliver(&self, caught: Caught) -> Delivery {
        let script = format!(
            "exec sh -c 'sent=1; for file in $(grep -ls \"^PPid:[[:blank:]]*$PPID$\" /proc/[0-9]*/status); do \
             pid=${{file#/proc/}}; pid=${{pid%/status}}; [ \"$pid\" = $$ ] || {{ kill -{} \"-$pid\" && sent=0; }}; done; \
             exit $sent'",
            caught.name
        );
        let guest = self.clone();
        let task = tokio::spawn(async move {
            let sent = guest.exec(&script, b"", PATIENCE).await;
            sent.is_ok_and(|output| output.status == 0)
        });
        Delivery { task, caught }
    }
}
