//! Machines of VirtualBox that another program made and that somebody handed over: their power is switched and they are
//! asked how they are. Nothing else of them is ever changed, and none is removed.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use forge_driver::{Claim, DriverHome, Power, Result, SSH_PORT, State};

use crate::info::{self, Info};
use crate::machine;
use crate::manage::Manage;

/// The way to such machines: each is known by its UUID alone.
#[derive(Clone, Debug)]
pub struct Adopted {
    manage: Manage,
}

/// What was seen of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its power state.
    pub state: State,
    /// Where a port of this host leads to its SSH.
    pub ssh: Option<SocketAddr>,
    /// Its address on a host-only network, as far as somebody knows it.
    pub address: Option<IpAddr>,
}

/// VirtualBox, for machines that forge makes and for these alike.
const PROGRAM: &str = "VBoxManage";

impl Adopted {
    /// With what is found in the path.
    #[must_use]
    pub fn open(home: &DriverHome) -> Self {
        Self {
            manage: Manage::new(Path::new(PROGRAM), &home.runtime),
        }
    }

    /// The machine of this name whose settings lie below `folder`.
    ///
    /// # Errors
    /// When VirtualBox cannot be asked.
    pub async fn find(&self, name: &str, folder: &Path) -> Result<Option<Claim>> {
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let listed = info::machines(&self.manage).await?;
        for machine in listed.iter().filter(|machine| machine.name == name) {
            let Ok(claim) = machine.id.parse() else {
                continue;
            };
            let info = info::show(&self.manage, claim).await?;
            if info.is_some_and(|info| real(&info.settings).starts_with(real(folder))) {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// How a machine is; `None` when VirtualBox has none of this UUID.
    ///
    /// # Errors
    /// When VirtualBox cannot be asked.
    pub async fn look(&self, claim: Claim) -> Result<Option<Seen>> {
        let Some(info) = info::find(&self.manage, claim).await? else {
            return Ok(None);
        };
        let address = match info.state {
            State::Running => self.address(claim, &info).await?,
            _ => None,
        };
        let ssh = info
            .forwards
            .values()
            .find(|forward| forward.guest == SSH_PORT);
        Ok(Some(Seen {
            state: info.state,
            ssh: ssh.map(|forward| forward.host),
            address,
        }))
    }

    /// Switches a machine on or off. Already there: succeeds.
    ///
    /// # Errors
    /// What VirtualBox said.
    pub async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let id = claim.to_string();
        let state = info::find(&self.manage, claim)
            .await?
            .map_or(State::Absent, |info| info.state);
        match (power, state) {
            (Power::On, State::Running | State::Starting | State::Stopping) => Ok(()),
            (Power::On, State::Paused) => self
                .manage
                .call(&["controlvm", &id, "resume"])
                .await
                .map(drop),
            (Power::On, _) => self.manage.start(&id, "headless").await,
            (Power::Kill, State::Saved) => self.manage.call(&["discardstate", &id]).await.map(drop),
            (_, State::Stopped | State::Saved) => Ok(()),
            (Power::Shutdown, _) => {
                if state == State::Paused {
                    self.manage.call(&["controlvm", &id, "resume"]).await?;
                }
                self.manage
                    .call(&["controlvm", &id, "acpipowerbutton"])
                    .await
                    .map(drop)
            }
            (Power::Kill, _) => machine::off(&self.manage, claim).await.map(drop),
        }
    }

    /// Its address on its host-only network: what the network's server gave it, else what its guest tells. That neither
    /// knows one is no error: the guest may be on its way up.
    async fn address(&self, claim: Claim, info: &Info) -> Result<Option<IpAddr>> {
        let Some((number, interface)) = (1..=8).find_map(|number| {
            let interface = info.values.get(&format!("hostonlyadapter{number}"))?;
            Some((number, interface.clone()))
        }) else {
            return Ok(None);
        };
        if let Some(mac) = info.values.get(&format!("macaddress{number}")) {
            let interface = format!("--interface={interface}");
            let mac = format!("--mac-address={}", spelled(mac));
            let lease = self
                .manage
                .call(&["dhcpserver", "findlease", &interface, &mac])
                .await;
            if let Some(address) = lease.ok().and_then(|text| after(&text, "IP Address:")) {
                return Ok(Some(address));
            }
        }
        // Guest properties count interfaces from 0.
        let property = format!("/VirtualBox/GuestInfo/Net/{}/V4/IP", number - 1);
        let told = self
            .manage
            .call(&["guestproperty", "get", &claim.to_string(), &property])
            .await;
        Ok(told.ok().and_then(|text| after(&text, "Value:")))
    }
}

/// `080027C0FFEE` as VirtualBox wants it back.
fn spelled(mac: &str) -> String {
    let digits: Vec<char> = mac.chars().collect();
    let pairs: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
    pairs.join(":").to_lowercase()
}

/// The address behind a label.
fn after(text: &str, label: &str) -> Option<IpAddr> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(label))?;
    let address: IpAddr = line.trim().parse().ok()?;
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_both_sources() {
        let lease =
            "IP Address:  192.168.99.100\nMAC Address: 08:00:27:c0:ff:ee\nState:       acked\n";
        assert_eq!(
            after(lease, "IP Address:"),
            Some([192, 168, 99, 100].into())
        );
        assert_eq!(
            after("Value: 192.168.99.101\n", "Value:"),
            Some([192, 168, 99, 101].into())
        );
        assert_eq!(after("No value set!\n", "Value:"), None);
        assert_eq!(after("Value: 0.0.0.0\n", "Value:"), None);
    }

    #[test]
    fn hardware_addresses_are_spelled_with_colons() {
        assert_eq!(spelled("080027C0FFEE"), "08:00:27:c0:ff:ee");
    }
}
