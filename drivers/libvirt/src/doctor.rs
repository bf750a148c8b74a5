//! What this host has for the driver.

use std::os::unix::net::UnixStream;
use std::path::Path;

use forge_driver::{DriverHome, Error, Finding, Kind, process};

use crate::options::Config;
use crate::storage::Pool;
use crate::virsh::Virsh;

/// The Debian packages of the daemon: with its networks' DHCP server and the program that runs guests, which
/// it only recommends.
const DAEMON: [&str; 4] = [
    "libvirt-daemon-system",
    "dnsmasq-base",
    "iptables",
    "qemu-system-x86",
];

/// Everything that decides whether machines can be made here: virsh, and a daemon that answers it.
pub async fn findings(config: &Config, home: &DriverHome) -> Vec<Finding> {
    let program = config.virsh.display();
    if process::which(&config.virsh).is_none() {
        return vec![missing(
            format!("`{program}`"),
            "not installed".into(),
            &[&["libvirt-clients"], &DAEMON[..]].concat(),
        )];
    }
    let mut found = vec![there(format!("`{program}`"), "installed".into())];
    let what = format!("libvirt at `{}`", config.uri);
    let virsh = Virsh::new(config, home);
    let answer = virsh.call(&["version", "--daemon"]).await;
    let answers = answer.is_ok();
    found.push(match answer {
        Ok(text) => there(what, versions(&text)),
        Err(error) => {
            // Where the daemon is there and does not answer, a package does not help.
            let installed = ["/usr/sbin/libvirtd", "/usr/sbin/virtqemud"]
                .iter()
                .any(|path| process::which(path.as_ref()).is_some());
            let helps = !installed && !config.uri.over_ssh();
            missing(what, told(&error), if helps { &DAEMON } else { &[] })
        }
    });
    if answers {
        found.push(pool(config, &virsh).await);
        found.push(accelerator(&virsh).await);
        found.extend(server(config));
    }
    found
}

/// The pool that disks go to.
async fn pool(config: &Config, virsh: &Virsh) -> Finding {
    let what = format!("storage pool `{}` at `{}`", config.pool, config.uri);
    let pool = Pool {
        virsh,
        name: &config.pool,
    };
    match pool.check().await {
        Ok(None) => there(
            what,
            "not there: forge makes it with the first machine".into(),
        ),
        Ok(Some(seen)) => {
            let folder = seen.target.display();
            match seen.available {
                Some(bytes) => there(what, format!("{folder}, {} GiB free", bytes >> 30)),
                None => there(
                    what,
                    format!("{folder}, stopped: forge starts it with the first machine"),
                ),
            }
        }
        Err(error) => missing(what, told(&error), &[]),
    }
}

/// How guests can run. Without KVM they are slow, and run.
async fn accelerator(virsh: &Virsh) -> Finding {
    let detail = match virsh.call(&["domcapabilities", "--virttype", "kvm"]).await {
        Ok(_) => "offered: the first machine tries it, and is emulated where a guest does not boot".to_owned(),
        Err(error) if matches!(error.kind(), Kind::Timeout | Kind::Unavailable) => told(&error),
        Err(_) => "not offered, so machines are emulated, which is slow: is virtualisation switched on in the firmware of that host, and is `/dev/kvm` there?".to_owned(),
    };
    there(format!("KVM at `{}`", virsh.uri()), detail)
}

/// The DHCP server of the networks that forge makes, where it can be looked for.
fn server(config: &Config) -> Option<Finding> {
    if !config.network.own() || config.uri.over_ssh() {
        return None;
    }
    let what = "`dnsmasq`".to_owned();
    // What Debian keeps out of the path of a plain user.
    let found = ["dnsmasq", "/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq"]
        .iter()
        .any(|path| process::which(path.as_ref()).is_some());
    Some(if found {
        there(what, "installed".to_owned())
    } else {
        let why = "not installed: libvirt's networks give out addresses by it".to_owned();
        missing(what, why, &["dnsmasq-base"])
    })
}

/// An error with its remedy, on one line.
fn told(error: &Error) -> String {
    let hint = error.deepest_hint().map(|hint| format!("; {hint}"));
    format!("{}{}", error.line(), hint.unwrap_or_default())
}

fn there(what: String, detail: String) -> Finding {
    Finding {
        what,
        ok: true,
        detail,
        packages: Vec::new(),
    }
}

/// What a quick look at this host tells about the driver: virsh and the socket of a daemon are there, or which is not.
///
/// # Errors
/// What is missing, in a few words.
pub fn ready() -> Result<&'static str, String> {
    let virsh = Config::default().virsh;
    if process::which(&virsh).is_none() {
        return Err(format!("`{}` is not installed", virsh.display()));
    }
    listening(Path::new("/run/libvirt"))
}

/// A daemon answers below `folder`: one for everything, or one for each driver
/// (<https://libvirt.org/daemons.html>). A socket alone says little: it stays when its daemon is killed.
fn listening(folder: &Path) -> Result<&'static str, String> {
    let mut why = "no daemon of libvirt is started".to_owned();
    for socket in ["libvirt-sock", "virtqemud-sock"] {
        match UnixStream::connect(folder.join(socket)) {
            Ok(_) => return Ok("libvirt's daemon is there"),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                why = "libvirt's daemon does not let this user in".to_owned();
            }
            Err(_) => {}
        }
    }
    Err(why)
}

fn missing(what: String, detail: String, packages: &[&'static str]) -> Finding {
    Finding {
        what,
        ok: false,
        detail,
        packages: packages.to_vec(),
    }
}

/// The lines that tell what runs, of those that `virsh version --daemon` prints.
fn versions(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Running hypervisor: ")
                .or(line.strip_prefix("Running against daemon: "))
        })
        .map(str::trim)
        .collect();
    match lines[..] {
        [hypervisor, daemon] => format!("libvirt {daemon}, {hypervisor}"),
        _ => "answers".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_packages() {
        let config = Config {
            virsh: "/nonexistent/virsh".into(),
            ..Config::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        let home = DriverHome {
            dir: folder.path().to_owned(),
            store: folder.path().to_owned(),
            owner: uuid::Uuid::nil(),
            runtime: folder.path().to_owned(),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        };
        let found = findings(&config, &home).await;
        assert_eq!(found.len(), 1);
        assert!(!found[0].ok && found[0].what.contains("/nonexistent/virsh"));
        assert!(found[0].packages.contains(&"libvirt-clients"));
        assert!(found[0].packages.contains(&"libvirt-daemon-system"));
    }

    #[test]
    fn a_socket_without_a_daemon_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("virtqemud-sock");
        assert!(listening(folder.path()).is_err());
        let daemon = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        assert!(listening(folder.path()).is_ok());
        drop(daemon);
        assert!(socket.exists());
        assert!(listening(folder.path()).is_err());
    }

    #[test]
    fn versions_are_told_in_one_line() {
        let text = "Compiled against library: libvirt 9.0.0\nUsing API: QEMU 9.0.0\nRunning hypervisor: QEMU 10.0.2\nRunning against daemon: 9.0.0\n";
        assert_eq!(versions(text), "libvirt 9.0.0, QEMU 10.0.2");
        assert_eq!(versions("?"), "answers");
    }
}
