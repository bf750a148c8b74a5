//! Machines that come from another store.

use std::net::{Ipv4Addr, SocketAddr};

use forge_driver::{Error, Forward, Kind, Network, Result, routes};

use super::{
    Bind, Ledger, Placement, Taken, bindable, forwarded, ledger_path, network as of_range,
    overlaps, port_for,
};
use crate::store::{Store, read_json, write_json};

/// Allocates the place of a machine that comes from another store. On the network between machines it keeps its address,
/// which its guest was told; where the host reaches it is decided anew. The caller holds the lock of the addresses and
/// writes the machine's record before it lets go.
///
/// # Errors
/// When that address or a range that overlaps is taken here, or no port can be bound.
pub fn move_in(store: &Store, there: &Placement, taken: &Taken) -> Result<Placement> {
    let path = ledger_path(store);
    let mut ledger: Ledger = read_json(&path)?.unwrap_or_default();
    let mut here = there.clone();
    if let Some(nic) = &mut here.nic {
        nic.network = of_range(&mut ledger, nic.network.cidr, store.id(), taken)?;
        if taken.internal.contains(&nic.address) {
            return Err(Error::new(
                Kind::Precheck,
                format!("the address {} belongs to another machine of this store", nic.address),
            )
            .hint("the guest keeps the address that it was made with: import it into a store of its own"));
        }
    }
    if there.ssh.is_some() || there.engine.is_some() {
        let (host, ssh, engine) = forwarded(&mut ledger, store.id(), taken)?;
        (here.loopback, here.ssh, here.engine) = (host, Some(ssh), Some(engine));
    }
    write_json(&path, &ledger)?;
    Ok(here)
}

/// Records the network of a machine that another store made and that stays where it is.
///
/// # Errors
/// When its range overlaps another network of this store.
pub fn join(store: &Store, network: &Network, taken: &Taken) -> Result<()> {
    let path = ledger_path(store);
    let mut ledger: Ledger = read_json(&path)?.unwrap_or_default();
    if ledger.networks.iter().any(|known| known.id == network.id) {
        return Ok(());
    }
    ledger.drop_unused(taken);
    for known in &ledger.networks {
        if routes::overlap(known.cidr, network.cidr) {
            return Err(
                overlaps(network.cidr, known.cidr).hint("import it into a store of its own")
            );
        }
    }
    ledger.networks.push(network.clone());
    write_json(&path, &ledger)
}

/// Where the host reaches a port that was published for a machine at another address: at the same number of `address` where
/// it can, else as [`port_for`] has it.
///
/// # Errors
/// [`Kind::Conflict`] when no port is free.
pub fn published_at(address: Ipv4Addr, forward: &Forward, taken: &Taken) -> Result<Forward> {
    let same = SocketAddr::from((address, forward.host.port()));
    let host = if !taken.ports.contains(&same) && bindable(same) == Bind::Free {
        same
    } else {
        port_for(address, forward.guest, taken)?
    };
    Ok(Forward {
        guest: forward.guest,
        host,
    })
}
