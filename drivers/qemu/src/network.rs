//! What the machines of one network share: its record, its folder of sockets, its switch.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use forge_driver::routes::{self, Route, overlap};
use forge_driver::{Context, Error, Kind, Network, Result, atomic, process};
use ipnet::Ipv4Net;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::sockets::{Sockets, private};
use crate::switch;

/// The range of the user-mode network behind which each machine has its way out (QEMU's default).
pub(crate) const NAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// How long a switch may take to start, and how often it is tried within that.
const START_DEADLINE: Duration = Duration::from_secs(10);
const START_AGAIN: Duration = Duration::from_secs(1);

/// The networks that this store's machines are on.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    records: PathBuf,
    sockets: Sockets,
    /// The command that runs a switch; the folder is its last argument.
    command: Vec<OsString>,
}

impl Networks {
    pub(crate) fn new(home: &Path, sockets: Sockets, command: Vec<OsString>) -> Self {
        Self {
            records: home.join("networks"),
            sockets,
            command,
        }
    }

    /// An error when `network` overlaps something that is not it.
    ///
    /// # Errors
    /// [`Kind::Conflict`] with both shown.
    pub(crate) fn check(&self, network: &Network) -> Result<()> {
        check(network, &self.recorded()?, &routes::of_host()?)
    }

    /// Records the network, makes its folder and starts its switch, as far as they are missing.
    pub(crate) async fn ensure(&self, network: &Network) -> Result<()> {
        self.check(network)?;
        atomic::private_folder(&self.records)?;
        atomic::write_json(&self.record(network.id), network, "a network's record")?;
        self.serve(network.id).await
    }

    /// Makes sure that a switch serves the network.
    ///
    /// # Errors
    /// [`Kind::Timeout`] when none comes up, with what it said.
    pub(crate) async fn serve(&self, network: Uuid) -> Result<()> {
        let dir = self.sockets.network(network);
        if switch::serves(&dir) {
            return Ok(());
        }
        self.sockets.prepare()?;
        private(&dir)?;
        self.own(&dir, network)?;
        let until = Instant::now() + START_DEADLINE;
        while Instant::now() < until {
            self.spawn(&dir)?;
            let again = Instant::now() + START_AGAIN;
            while Instant::now() < again {
                if switch::serves(&dir) {
                    return Ok(());
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
        Err(Error::new(
            Kind::Timeout,
            "the switch of the network between the machines does not start",
        )
        .because(switch::last_words(&dir)))
    }

    /// The folder's name holds a part of the id only; the whole id lies in it.
    fn own(&self, dir: &Path, network: Uuid) -> Result<()> {
        let file = dir.join("id");
        let id = network.to_string();
        match fs::read_to_string(&file) {
            Ok(there) if there == id => Ok(()),
            Ok(there) => Err(Error::new(
                Kind::Conflict,
                format!(
                    "the folder `{}` belongs to the network {there}",
                    dir.display()
                ),
            )),
            Err(_) => atomic::write(&file, id.as_bytes(), 0o600),
        }
    }

    fn spawn(&self, dir: &Path) -> Result<()> {
        let failed = || "failed to start the switch of the network between the machines".to_owned();
        let log = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(dir.join("switch.log"))
            .or_fail(Kind::Io, failed)?;
        let (program, words) = self
            .command
            .split_first()
            .ok_or_else(|| Error::new(Kind::Invalid, "there is no command to run a switch with"))?;
        let mut command = std::process::Command::new(program);
        command
            .args(words)
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        process::detach(&mut command, &[]);
        let mut child = command.spawn().or_fail(Kind::Unavailable, failed)?;
        // One that finds another at work ends at once; it is collected, so that no zombie stays.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Forgets the network and ends its switch.
    pub(crate) fn release(&self, network: Uuid) -> Result<()> {
        let dir = self.sockets.network(network);
        let gone = |result: std::io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(atomic::full(
                error,
                &format!("failed to remove `{}`", path.display()),
            )),
            _ => Ok(()),
        };
        // The switch ends when its socket is gone.
        gone(fs::remove_dir_all(&dir), &dir)?;
        let record = self.record(network);
        gone(fs::remove_file(&record), &record)
    }

    fn record(&self, network: Uuid) -> PathBuf {
        self.records.join(format!("{network}.json"))
    }

    fn recorded(&self) -> Result<Vec<Network>> {
        let entries = match fs::read_dir(&self.records) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).or_fail(Kind::Io, || {
                    format!("failed to list `{}`", self.records.display())
                });
            }
        };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .map(|path| {
                let text = fs::read(&path)
                    .or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))?;
                serde_json::from_slice(&text).or_fail(Kind::Corrupt, || {
                    format!("`{}` is not a network's record", path.display())
                })
            })
            .collect()
    }
}

fn check(network: &Network, records: &[Network], routes: &[Route]) -> Result<()> {
    if records.contains(network) {
        return Ok(());
    }
    let foreign = if let Some(known) = records
        .iter()
        .find(|known| known.id != network.id && overlap(known.cidr, network.cidr))
    {
        format!(
            "another network of this store, {} (id {})",
            known.cidr, known.id
        )
    } else if overlap(network.cidr, NAT) {
        format!("{NAT}, through which every machine reaches the outside")
    } else if let Some(route) = routes.iter().find(|route| overlap(route.to, network.cidr)) {
        route.to_string()
    } else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Conflict,
        format!("the network {} of forge overlaps {foreign}", network.cidr),
    )
    .hint("choose another range with `--qemu-network-cidr`; `ip route` lists those of this host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(cidr: &str) -> Network {
        Network {
            id: Uuid::new_v4(),
            cidr: cidr.parse().expect("cidr"),
            owner: Uuid::new_v4(),
        }
    }

    fn networks(home: &Path) -> Networks {
        Networks::new(
            home,
            Sockets::new(&home.join("r")).expect("short"),
            Vec::new(),
        )
    }

    #[test]
    fn a_network_is_recognised_by_its_id_and_refused_over_another() {
        let home = tempfile::tempdir().expect("folder");
        let networks = networks(home.path());
        let ours = network("10.133.7.0/24");
        networks.check(&ours).expect("nothing there yet");
        fs::create_dir(home.path().join("networks")).expect("mkdir");
        fs::write(
            networks.record(ours.id),
            serde_json::to_vec(&ours).expect("text"),
        )
        .expect("write");
        networks.check(&ours).expect("our own");
        let error = networks
            .check(&network("10.133.0.0/16"))
            .expect_err("overlaps");
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(
            error.message().contains("10.133.0.0/16") && error.message().contains("10.133.7.0/24"),
            "{}",
            error.message()
        );
        networks.release(ours.id).expect("gone");
        networks.release(ours.id).expect("gone already");
        networks.check(&network("10.133.0.0/16")).expect("free now");
    }

    #[test]
    fn a_range_that_the_host_routes_is_refused_with_both_shown() {
        let vpn = Route {
            to: "10.0.0.0/8".parse().expect("cidr"),
            interface: "tun0".into(),
        };
        let ours = network("10.133.7.0/24");
        let error = check(&ours, &[], std::slice::from_ref(&vpn)).expect_err("overlaps");
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(
            error.message(),
            "the network 10.133.7.0/24 of forge overlaps the route of this host to 10.0.0.0/8 through `tun0`"
        );
        check(&ours, std::slice::from_ref(&ours), &[vpn]).expect("our own, whatever came up since");
    }
}
