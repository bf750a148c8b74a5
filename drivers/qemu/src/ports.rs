//! The ports of the host that a running machine forwards from.

use std::net::{Ipv4Addr, SocketAddr};

use forge_driver::ports::{free, taken};
use forge_driver::{Error, Forward, Kind, Result};

use crate::arguments::rule;
use crate::qmp::Qmp;

/// Makes a running machine forward exactly `wanted`. What it forwards now is asked of it, never
/// assumed: an earlier call may have been cut off. When one rule fails, those added by this call are
/// taken back.
///
/// # Errors
/// [`Kind::Conflict`] naming the owner of a port that is taken.
pub(crate) async fn apply(qmp: &mut Qmp, netdev: &str, wanted: &[Forward]) -> Result<()> {
    let there = active(&qmp.human("info usernet").await?);
    let new: Vec<Forward> = wanted
        .iter()
        .filter(|forward| !there.contains(forward))
        .copied()
        .collect();
    let old: Vec<Forward> = there
        .iter()
        .filter(|forward| !wanted.contains(forward))
        .copied()
        .collect();
    // A new rule may lead elsewhere from an address that an old one has: the old ones go first.
    let moved = |forward: &Forward| old.iter().any(|old| old.host == forward.host);
    free(
        &new.iter()
            .filter(|forward| !moved(forward))
            .copied()
            .collect::<Vec<_>>(),
    )?;
    for forward in &old {
        remove(qmp, netdev, *forward).await?;
    }
    let mut added = Vec::new();
    for forward in new {
        let said = qmp
            .human(&format!("hostfwd_add {netdev} {}", rule(forward)))
            .await?;
        if said.is_empty() {
            added.push(forward);
            continue;
        }
        for forward in added {
            remove(qmp, netdev, forward).await?;
        }
        return Err(
            taken(forward.host).context(format!("failed to forward `{}`: {said}", forward.host))
        );
    }
    Ok(())
}

async fn remove(qmp: &mut Qmp, netdev: &str, forward: Forward) -> Result<()> {
    let said = qmp
        .human(&format!(
            "hostfwd_remove {netdev} tcp:{}:{}",
            forward.host.ip(),
            forward.host.port()
        ))
        .await?;
    // `host forwarding rule for … removed` or `… not found`: gone either way.
    if said.contains("removed") || said.contains("not found") {
        return Ok(());
    }
    Err(Error::new(
        Kind::Failed,
        format!("failed to stop forwarding `{}`", forward.host),
    )
    .because(said))
}

/// The rules that a machine has, in the text of `info usernet`: protocol, descriptor, host address and
/// port, guest address and port, queues.
fn active(text: &str) -> Vec<Forward> {
    text.lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line
                .trim()
                .strip_prefix("TCP[HOST_FORWARD]")?
                .split_whitespace()
                .collect();
            let host: Ipv4Addr = columns.get(1)?.parse().ok()?;
            Some(Forward {
                host: SocketAddr::from((host, columns.get(2)?.parse().ok()?)),
                guest: columns.get(4)?.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_running_machine_are_read() {
        let text = "Hub -1 (outer):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
            TCP[HOST_FORWARD]  13 127.133.7.101  2222       10.0.2.15    22     0     0\n  \
            TCP[ESTABLISHED]   14     127.0.0.1  40000      10.0.2.15    22     0     0\n";
        let host = "127.133.7.101:2222".parse().expect("address");
        assert_eq!(active(text), [Forward { guest: 22, host }]);
    }
}
