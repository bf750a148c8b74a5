//! What this host has for the driver.

use std::path::Path;
use std::time::Duration;

use forge_driver::{DriverHome, Finding, process};
use tokio::process::Command;

use crate::disk::CONVERTER;
use crate::manage::{Manage, OLDEST, UNKNOWN, without_module};
use crate::options::Config;

/// The packages of VirtualBox and of its kernel module, where a distribution has them.
const PACKAGES: [&str; 2] = ["virtualbox", "virtualbox-dkms"];

/// How long apt may take to tell what it offers.
const ANSWER: Duration = Duration::from_secs(30);

/// Everything that decides whether machines can be made here: VBoxManage of a version that will do, the kernel
/// module, and the program that reads base images.
pub async fn findings(config: &Config, home: &DriverHome) -> Vec<Finding> {
    let what = format!("`{}`", config.vboxmanage.display());
    if process::which(&config.vboxmanage).is_none() {
        // Debian has it outside its releases only, Ubuntu within.
        let (detail, packages) = if offered().await {
            ("not installed", &PACKAGES[..])
        } else {
            (
                "not installed, and no package is offered here: https://www.virtualbox.org/wiki/Linux_Downloads",
                &[][..],
            )
        };
        return vec![finding(what, Err(detail.into()), packages), converter()];
    }
    let version = match Manage::new(&config.vboxmanage, &home.runtime)
        .version()
        .await
    {
        Ok((version, word)) if version >= UNKNOWN => Ok(format!(
            "VirtualBox {word}, newer than any that forge was tried with"
        )),
        Ok((version, word)) if version >= OLDEST => Ok(format!("VirtualBox {word}")),
        Ok((_, word)) => Err(format!(
            "VirtualBox {word} is too old, {OLDEST} is the oldest that will do"
        )),
        Err(error) => Err(error.line()),
    };
    let mut found = vec![finding(what, version, &[])];
    if cfg!(target_os = "linux") {
        let module = if without_module() {
            Err("not loaded: `sudo modprobe vboxdrv`, or `sudo /sbin/vboxconfig` after a new kernel".into())
        } else {
            Ok("loaded".into())
        };
        found.push(finding("VirtualBox's kernel module".into(), module, &[]));
    }
    found.push(converter());
    found
}

/// What a quick look at this host tells about the driver: VBoxManage and the kernel module are there, or which is not.
///
/// # Errors
/// What is missing, in a few words.
pub fn ready() -> Result<&'static str, String> {
    let program = Config::default().vboxmanage;
    if process::which(&program).is_none() {
        return Err(format!("`{}` is not installed", program.display()));
    }
    if without_module() {
        return Err("VirtualBox's kernel module is not loaded".to_owned());
    }
    Ok("VirtualBox is installed")
}

/// The sources of this system have VirtualBox's packages.
async fn offered() -> bool {
    let mut command = Command::new("apt-cache");
    command.args(["policy", PACKAGES[0]]).env("LC_ALL", "C");
    process::run(command, None, ANSWER)
        .await
        .is_ok_and(|output| candidate(&output.text()))
}

/// Whether `apt-cache policy` names a version that can be installed.
fn candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

fn converter() -> Finding {
    let there = process::which(Path::new(CONVERTER)).is_some();
    let state = if there {
        Ok("installed".to_owned())
    } else {
        Err("not installed".to_owned())
    };
    finding(format!("`{CONVERTER}`"), state, &["qemu-utils"])
}

fn finding(what: String, state: Result<String, String>, packages: &[&'static str]) -> Finding {
    let ok = state.is_ok();
    Finding {
        what,
        ok,
        detail: state.unwrap_or_else(|detail| detail),
        packages: if ok { Vec::new() } else { packages.to_vec() },
    }
}

#[cfg(test)]
mod tests {
    use forge_driver::assets::Assets;

    use super::*;

    fn home(folder: &Path) -> DriverHome {
        DriverHome {
            dir: folder.join("drivers/virtualbox"),
            store: folder.to_owned(),
            owner: uuid::Uuid::nil(),
            runtime: folder.join("run/store"),
            assets: Assets::default(),
            token: forge_driver::Token::default(),
        }
    }

    #[test]
    fn what_apt_offers_is_read() {
        assert!(candidate(
            "virtualbox:\n  Installed: (none)\n  Candidate: 7.0.20-dfsg-1\n"
        ));
        assert!(!candidate(
            "virtualbox:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!candidate(""));
    }

    #[tokio::test]
    async fn a_missing_or_old_virtualbox_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("VBoxManage");
        let config = Config {
            vboxmanage: program.clone(),
            ..Config::default()
        };
        let found = findings(&config, &home(folder.path())).await;
        assert!(!found[0].ok && found[0].detail.contains("not installed"));
        for (says, ok, told) in [
            ("6.0.24r139119", false, "too old"),
            ("7.1.4r165100", true, "VirtualBox 7.1.4r165100"),
            ("8.0.0r170000", true, "newer than any"),
            ("good morning", false, "good morning"),
        ] {
            // By a child: what this process has written may still be open in a child of another test, and then cannot
            // be run.
            let script = format!("#!/bin/sh\necho '{says}'\n");
            let written = std::process::Command::new("sh")
                .args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
                .arg(&program)
                .arg(script)
                .status();
            assert!(written.expect("sh").success());
            let found = findings(&config, &home(folder.path())).await;
            assert_eq!(found[0].ok, ok, "{says}");
            assert!(found[0].detail.contains(told), "{}", found[0].detail);
        }
    }
}
