//! The DHCP servers of networks: dnsmasq, with exactly what the real VBoxManage lists.
//!
//! As with VirtualBox a server runs while a machine of its network does, and reads its configuration when it
//! starts: what is changed later counts after `dhcpserver restart` (VirtualBox: DHCPServerImpl.cpp).

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::disks::run;
use crate::network::{self, Segment, exists, ip};
use crate::{Result, real};

/// A server as `list dhcpservers` shows it.
#[derive(Debug, PartialEq)]
struct Server {
    address: Ipv4Addr,
    lower: Ipv4Addr,
    upper: Ipv4Addr,
    mask: Ipv4Addr,
    /// Addresses that belong to a MAC.
    fixed: Vec<(String, Ipv4Addr)>,
}

/// Starts the server of a segment when there is one, it is enabled and does not run. The caller holds the lock.
pub fn ensure(segment: &Segment) -> Result<()> {
    let folder = segment.folder()?;
    if pid(&folder).is_some() {
        return Ok(());
    }
    match parse(&real::ask(&["list", "dhcpservers"])?, &segment.name) {
        Some(server) => start(segment, &folder, &server),
        None => Ok(()),
    }
}

fn start(segment: &Segment, folder: &Path, server: &Server) -> Result<()> {
    let space = format!("vbd-{}", segment.mark);
    let bits = u32::from(server.mask).count_ones();
    let address = format!("{}/{bits}", server.address);
    if !exists(&space) {
        ip(&["netns", "add", &space])?;
        ip(&[
            "link", "add", &space, "type", "veth", "peer", "name", "eth0", "netns", &space,
        ])?;
        ip(&["link", "set", &space, "master", &segment.bridge, "up"])?;
    }
    ip(&["-n", &space, "addr", "flush", "dev", "eth0"])?;
    ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
    ip(&["-n", &space, "link", "set", "eth0", "up"])?;
    let mut config = format!(
        "port=0\ninterface=eth0\nuser=root\ngroup=root\nno-ping\ndhcp-authoritative\n\
         dhcp-range={},{},{},10m\ndhcp-option=3\ndhcp-option=6\n\
         dhcp-leasefile={leases}\npid-file={pid}\nlog-facility={log}\n",
        server.lower,
        server.upper,
        server.mask,
        leases = folder.join("leases").display(),
        pid = folder.join("pid").display(),
        log = folder.join("log").display(),
    );
    for (mac, address) in &server.fixed {
        config.push_str(&format!("dhcp-host={mac},{address}\n"));
    }
    let file = folder.join("dnsmasq.conf");
    fs::write(&file, config)?;
    let file = format!("--conf-file={}", file.display());
    run(Command::new("ip").args(["netns", "exec", &space, "dnsmasq", &file])).map(drop)
}

/// Ends the server in this folder, if there is one, and takes its name space away.
pub fn stop(folder: &Path, mark: &str) -> Result<()> {
    end(folder)?;
    let space = format!("vbd-{mark}");
    if exists(&space) {
        ip(&["link", "delete", &space])?;
        ip(&["netns", "delete", &space])?;
    }
    Ok(())
}

fn end(folder: &Path) -> Result<bool> {
    let Some(pid) = pid(folder) else {
        return Ok(false);
    };
    kill_process(pid, Signal::TERM)?;
    let until = Instant::now() + Duration::from_secs(10);
    while test_kill_process(pid).is_ok() {
        if Instant::now() > until {
            return Err("dnsmasq does not end".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_file(folder.join("pid"));
    Ok(true)
}

/// The process of the server in this folder, when it lives.
fn pid(folder: &Path) -> Option<Pid> {
    let text = fs::read_to_string(folder.join("pid")).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    test_kill_process(pid).is_ok().then_some(pid)
}

/// `dhcpserver …`: what needs the process is answered here, the rest by the real one.
pub fn serve(words: &[OsString], action: &str, given: &[&str]) -> Result<u8> {
    let network = network(given);
    let (Some(network), "start" | "restart" | "stop" | "findlease" | "remove") = (network, action)
    else {
        return real::exec(words);
    };
    let segment = Segment::named(&network);
    let folder = segment.folder()?;
    match action {
        "findlease" => {
            let home = std::env::var_os("VBOX_USER_HOME").ok_or("no VBOX_USER_HOME")?;
            let leases = fs::read_to_string(folder.join("leases")).unwrap_or_default();
            let file = Path::new(&home).join(format!("{network}-Dhcpd.leases"));
            fs::write(file, database(&leases))?;
            real::exec(words)
        }
        "start" => {
            let code = real::tell(words)?;
            let _held = network::hold()?;
            if code == 0 && exists(&segment.bridge) {
                ensure(&segment)?;
            }
            Ok(code)
        }
        "restart" => {
            let held = network::hold()?;
            if !end(&folder)? {
                drop(held);
                return real::exec(words);
            }
            ensure(&segment)?;
            Ok(0)
        }
        _ => {
            let code = real::tell(words)?;
            if code == 0 {
                let _held = network::hold()?;
                end(&folder)?;
            }
            Ok(code)
        }
    }
}

/// The network that the words name: `--network N`, `--netname=N`, `--interface I`.
fn network(given: &[&str]) -> Option<String> {
    let mut words = given.iter();
    while let Some(word) = words.next() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (*word, None),
        };
        let interface = matches!(
            key,
            "--interface" | "--ifname" | "--if-name" | "--trunk-name"
        );
        if interface || matches!(key, "--network" | "--netname" | "--net-name") {
            let value = value.or_else(|| words.next().copied())?;
            return Some(match interface {
                true => format!("HostInterfaceNetworking-{value}"),
                false => value.to_owned(),
            });
        }
    }
    None
}

/// The enabled server of a network in `list dhcpservers`.
fn parse(said: &str, network: &str) -> Option<Server> {
    let mut lines = said
        .lines()
        .skip_while(|line| line.strip_prefix("NetworkName:").map(str::trim) != Some(network))
        .skip(1)
        .take_while(|line| !line.starts_with("NetworkName:"));
    let mut head = |key: &str| {
        lines
            .find_map(|line| line.strip_prefix(key))?
            .trim()
            .parse()
            .ok()
    };
    let (address, lower, upper) = (
        head("Dhcpd IP:")?,
        head("LowerIPAddress:")?,
        head("UpperIPAddress:")?,
    );
    let mask = head("NetworkMask:")?;
    let enabled = lines.find_map(|line| line.strip_prefix("Enabled:"))?;
    if enabled.trim() != "Yes" || Ipv4Addr::is_unspecified(&address) {
        return None;
    }
    let mut fixed = Vec::new();
    let mut owner = None;
    for line in lines {
        if let Some(whose) = line.strip_prefix("Individual Config:") {
            // `MAC 08:00:27:…`, or `VM NIC: <uuid> slot 1, MAC 08:00:27:…`, which has none when the VM is gone.
            owner = whose
                .rsplit_once("MAC ")
                .map(|(_, mac)| mac.trim().to_owned())
                .filter(|mac| mac.len() == 17 && mac.contains(':'));
        } else if let Some(address) = line.trim().strip_prefix("Fixed Address:")
            && let (Some(mac), Ok(address)) = (owner.take(), address.trim().parse())
        {
            fixed.push((mac, address));
        }
    }
    Some(Server {
        address,
        lower,
        upper,
        mask,
        fixed,
    })
}

/// dnsmasq's leases as VirtualBox's server writes them, for `findlease`.
fn database(leases: &str) -> String {
    let mut text = "<?xml version=\"1.0\"?>\n<Leases version=\"1.0\">\n".to_owned();
    for lease in leases.lines() {
        let words: Vec<&str> = lease.split_whitespace().collect();
        if let [expires, mac, address, ..] = words.as_slice()
            && let Ok(expires) = expires.parse::<u64>()
        {
            text.push_str(&format!(
                "  <Lease mac=\"{mac}\" network=\"0.0.0.0\" state=\"acked\">\n    \
                 <Address value=\"{address}\"/>\n    \
                 <Time issued=\"{}\" expiration=\"600\"/>\n  </Lease>\n",
                expires.saturating_sub(600)
            ));
        }
    }
    text.push_str("</Leases>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = include_str!("dhcpservers.txt");

    #[test]
    fn a_server_has_what_the_list_says() {
        let server = parse(SAID, "forge").expect("a server");
        let address = |last| Ipv4Addr::new(10, 133, 7, last);
        assert_eq!(server.address, address(99));
        assert_eq!((server.lower, server.upper), (address(110), address(200)));
        assert_eq!(server.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(
            server.fixed,
            [
                ("08:00:27:aa:bb:03".to_owned(), address(101)),
                ("08:00:27:aa:bb:02".to_owned(), address(102)),
            ]
        );
        assert_eq!(
            parse(SAID, "other").map(|server| server.fixed.len()),
            Some(0)
        );
        assert_eq!(parse(SAID, "bad"), None);
        assert_eq!(parse(SAID, "nobody"), None);
    }

    #[test]
    fn a_network_is_named_in_many_ways() {
        assert_eq!(network(&["--network", "forge"]).as_deref(), Some("forge"));
        assert_eq!(
            network(&["--netname=forge", "--x"]).as_deref(),
            Some("forge")
        );
        assert_eq!(
            network(&["--interface", "vboxnet0"]).as_deref(),
            Some("HostInterfaceNetworking-vboxnet0")
        );
        assert_eq!(network(&["--mac-address", "x"]), None);
    }

    #[test]
    fn leases_are_written_as_virtualbox_does() {
        let text = database("1700000600 08:00:27:aa:bb:02 10.133.7.102 n1 *\n");
        assert!(text.contains("mac=\"08:00:27:aa:bb:02\""), "{text}");
        assert!(text.contains("issued=\"1700000000\""), "{text}");
    }
}
