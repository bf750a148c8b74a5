//! Where a host is that is named.

use std::net::IpAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};

/// Whoever tells addresses is given this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The address of a host by its name, IPv4 before IPv6, since most engines listen there.
///
/// # Errors
/// [`Kind::NotFound`] when it has none, [`Kind::Timeout`] when nobody tells it.
pub async fn locate(host: &str) -> Result<IpAddr> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let failed = || Error::new(Kind::NotFound, format!("the host `{host}` has no address"));
    let Ok(found) = timeout(PATIENCE, lookup_host((host, 0))).await else {
        return Err(Error::new(
            Kind::Timeout,
            format!(
                "nobody tells the address of `{host}` within {} s",
                PATIENCE.as_secs()
            ),
        ));
    };
    let found = found.map_err(|error| failed().because(error))?;
    first(found.map(|address| address.ip())).ok_or_else(failed)
}

fn first(addresses: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    addresses.min_by_key(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[tokio::test]
    async fn an_address_is_its_own_and_the_older_kind_comes_first() {
        let found = locate("2001:db8::1").await.expect("an address");
        assert_eq!(found, "2001:db8::1".parse::<IpAddr>().expect("one"));
        let six = IpAddr::from(Ipv6Addr::LOCALHOST);
        let four = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(
            first([six, four(1), four(2)].into_iter()),
            Some(four(1)),
            "and of one kind the first"
        );
        assert_eq!(first([six].into_iter()), Some(six));
    }
}
