//! The address of a machine that another server than forge's choice gave it.

use std::net::Ipv4Addr;

use forge_driver::{Claim, Mac};

/// The sources in the order in which they are believed: the DHCP server's leases know best, the guest's agent
/// tells what the guest has, and the host's table of neighbours what it has heard.
const SOURCES: [&str; 3] = ["lease", "agent", "arp"];

/// The commands that ask for the address of a running machine, one for each source.
pub(crate) fn questions(claim: Claim) -> Vec<String> {
    SOURCES
        .iter()
        .map(|source| format!("domifaddr {claim} --source {source}"))
        .collect()
}

/// The first address in the answers that belongs to the machine's own interface.
pub(crate) fn first(answers: &[String], mac: Mac) -> Option<Ipv4Addr> {
    answers.iter().find_map(|answer| of(answer, mac))
}

/// Reads a table of interfaces: name, hardware address, protocol, address with prefix. An agent lists all that
/// the guest has, its engine's bridges among them, and further addresses of an interface without the name.
fn of(table: &str, mac: Mac) -> Option<Ipv4Addr> {
    let mac = mac.to_string();
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words
            .iter()
            .position(|word| word.eq_ignore_ascii_case(&mac))?;
        let [protocol, address] = words.get(at + 1..at + 3)? else {
            return None;
        };
        let address: Ipv4Addr = address.split('/').next()?.parse().ok()?;
        let usable = *protocol == "ipv4" && !address.is_link_local() && !address.is_unspecified();
        usable.then_some(address)
    })
}

/// The address that this host has heard the machine from: what the third source tells of the host of the daemon,
/// which some versions of libvirt cannot read (9.0 says `wrong nlmsg len`).
pub(crate) fn heard(mac: Mac) -> Option<Ipv4Addr> {
    neighbour(&std::fs::read_to_string("/proc/net/arp").ok()?, mac)
}

/// Reads the table of neighbours (proc_pid_net(5)): address, type, flags, hardware address, mask, interface. An
/// entry without the flag 2 has not been confirmed.
fn neighbour(table: &str, mac: Mac) -> Option<Ipv4Addr> {
    let mac = mac.to_string();
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, flags, theirs, ..] = words[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        let known = flags & 2 != 0 && theirs.eq_ignore_ascii_case(&mac);
        known.then(|| address.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> Mac {
        "52:54:00:aa:bb:01".parse().expect("an address")
    }

    #[test]
    fn an_address_is_that_of_the_machine_s_own_interface() {
        let agent = " lo         00:00:00:00:00:00    ipv4         127.0.0.1/8\n \
             enp1s0     52:54:00:AA:bb:01    ipv6         fe80::1/64\n \
             enp1s0     52:54:00:AA:bb:01    ipv4         192.168.1.7/24\n \
             docker0    02:42:7c:00:00:01    ipv4         172.17.0.1/16\n";
        let arp = " vnet3      52:54:00:aa:bb:01    ipv4         192.168.1.9/0\n";
        let none = String::new();
        assert_eq!(
            first(&[none.clone(), agent.into(), arp.into()], mac()),
            Some(Ipv4Addr::new(192, 168, 1, 7))
        );
        assert_eq!(
            first(&[none.clone(), none.clone(), arp.into()], mac()),
            Some(Ipv4Addr::new(192, 168, 1, 9))
        );
        let local = " vnet3 52:54:00:aa:bb:01 ipv4 169.254.7.7/16\n";
        for text in ["", "garbage", local, " vnet0 52:54:00:aa:bb:01 ipv4"] {
            assert_eq!(first(&[text.to_owned()], mac()), None, "{text}");
        }
    }

    #[test]
    fn a_neighbour_is_heard_once_it_has_answered() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.55.0.51       0x1         0x0         52:54:00:aa:bb:01     *        br0\n\
            10.55.0.52       0x1         0x2         52:54:00:aa:bb:01     *        br0\n";
        assert_eq!(neighbour(table, mac()), Some(Ipv4Addr::new(10, 55, 0, 52)));
        assert_eq!(neighbour("", mac()), None);
    }

    #[test]
    fn leases_are_asked_first() {
        let asked = questions(Claim::random());
        assert!(asked[0].ends_with("--source lease") && asked[2].ends_with("--source arp"));
    }
}
