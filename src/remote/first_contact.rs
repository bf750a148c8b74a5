//! First contact: the machine makes a host key that never leaves it, and forgets the one we brought.
//!
//! Two scripts, each idempotent at every line: a run that is cut off is simply run again. Between them
//! the caller records the public half, so that both keys are accepted until the new one is seen.

use std::time::Duration;

use forge_driver::{Error, Kind, Result, process};

use super::keys::{parse, text};
use super::{ExecOutput, Guest};
use crate::playbook::quote;

/// Makes the key where no server reads it yet, and prints its public half.
///
/// `ssh-keygen` writes beside the final name and the rename makes it count, so that half a key is never
/// taken for one. Once installed, the installed one is the answer.
const MAKE: &str = include_str!("make-own-key.sh");

/// Installs the pending key and removes whatever first boot brought: the first host key, keys of other
/// kinds, the seed's copies in cloud-init's caches.
const INSTALL: &str = include_str!("install-own-key.sh");

/// Runs the script on standard input as root.
const AS_ROOT: &str = "if [ -w / ]; then exec sh -s; else exec sudo -n sh -s; fi";

/// Makes the guest's own ed25519 host key, if it has none yet, and returns its public half
/// (`ssh-ed25519 AAAA…`). The server still presents the first key.
///
/// # Errors
/// What the guest's shell printed.
pub async fn make_own_key(guest: &dyn Guest, deadline: Duration) -> Result<String> {
    make_below("", guest, deadline).await
}

/// Makes the guest present its own key from now on, and removes every private key that first boot
/// brought. The running connection stays. Done already: succeeds.
///
/// # Errors
/// What the guest's shell printed; repeating is safe.
pub async fn install(guest: &dyn Guest, deadline: Duration) -> Result<()> {
    install_below("", guest, deadline).await
}

async fn make_below(root: &str, guest: &dyn Guest, deadline: Duration) -> Result<String> {
    let output = guest
        .exec(AS_ROOT, below(root, MAKE).as_bytes(), deadline)
        .await?;
    let printed = success("failed to make the machine's own SSH host key", output)?;
    // The key is the last line: a login script may print before it.
    let line = printed
        .lines()
        .rfind(|line| line.starts_with("ssh-ed25519 "))
        .unwrap_or_default();
    Ok(text(&parse(line)?))
}

async fn install_below(root: &str, guest: &dyn Guest, deadline: Duration) -> Result<()> {
    let output = guest
        .exec(AS_ROOT, below(root, INSTALL).as_bytes(), deadline)
        .await?;
    success("failed to install the machine's own SSH host key", output).map(|_| ())
}

/// The script for a system whose files are below `root`: empty for the running one.
fn below(root: &str, script: &str) -> String {
    format!("forge_root={}\n{script}", quote(root))
}

fn success(what: &str, output: ExecOutput) -> Result<String> {
    if output.status == 0 {
        return Ok(output.text());
    }
    let printed = process::tail(&output.error_text(), 12);
    let why = if printed.is_empty() {
        format!("the shell ended with status {}", output.status)
    } else {
        printed
    };
    Err(Error::new(Kind::Failed, what).because(why))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::remote::testing::Shell;

    const DEADLINE: Duration = Duration::from_secs(30);
    const FIRST: &str = "FIRST-PRIVATE-KEY";

    /// The files of a machine as its first boot leaves them.
    fn booted() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        put("etc/ssh/ssh_host_ed25519_key", FIRST);
        put("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA first");
        put("etc/ssh/ssh_host_rsa_key", "rsa");
        put("etc/ssh/ssh_host_ecdsa_key", "ecdsa");
        put("etc/ssh/sshd_config", "");
        put("etc/cloud/cloud.cfg", "");
        for name in [
            "user-data.txt",
            "user-data.txt.i",
            "cloud-config.txt",
            "obj.pkl",
            "vendor-data.txt",
        ] {
            put(&format!("var/lib/cloud/instances/i1/{name}"), FIRST);
        }
        put("var/lib/cloud/seed/nocloud/user-data", FIRST);
        put("run/cloud-init/combined-cloud-config.json", FIRST);
        put("run/cloud-init/instance-data-sensitive.json", FIRST);
        folder
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("list") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                found.push(path);
            }
        }
        found
    }

    fn settled(folder: &Path, own: &str) {
        for file in files(folder) {
            let text = fs::read_to_string(&file).expect("text");
            assert!(
                !text.contains(FIRST),
                "{} holds the first key",
                file.display()
            );
        }
        let ssh = folder.join("etc/ssh");
        let mut names: Vec<_> = files(&ssh)
            .iter()
            .map(|file| file.file_name().expect("name").to_owned())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "forge_own_installed",
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "sshd_config"
            ]
        );
        let key = russh::keys::PrivateKey::read_openssh_file(ssh.join("ssh_host_ed25519_key"))
            .expect("a private key");
        assert_eq!(text(key.public_key()), own, "the halves belong together");
        let public = fs::read_to_string(ssh.join("ssh_host_ed25519_key.pub")).expect("public half");
        assert_eq!(text(&parse(&public).expect("key")), own);
        assert!(folder.join("etc/cloud/cloud-init.disabled").exists());
    }

    #[tokio::test]
    async fn the_machine_gets_its_own_key_and_forgets_the_first() {
        let folder = booted();
        let root = folder.path().display().to_string();
        let shell = Shell::dash();
        let own = make_below(&root, &shell, DEADLINE).await.expect("made");
        assert_eq!(
            make_below(&root, &shell, DEADLINE).await.expect("again"),
            own
        );
        let kept =
            fs::read_to_string(folder.path().join("etc/ssh/ssh_host_ed25519_key")).expect("key");
        assert_eq!(kept, FIRST, "the server still has the first key");
        install_below(&root, &shell, DEADLINE)
            .await
            .expect("installed");
        settled(folder.path(), &own);
        assert_eq!(
            make_below(&root, &shell, DEADLINE).await.expect("after"),
            own
        );
        install_below(&root, &shell, DEADLINE).await.expect("again");
        settled(folder.path(), &own);
    }

    #[tokio::test]
    async fn a_kill_between_any_two_lines_is_repaired_by_the_next_run() {
        let shell = Shell::dash();
        for script in [MAKE, INSTALL] {
            let lines: Vec<&str> = script.lines().collect();
            for cut in 1..lines.len() {
                let mut broken = lines.clone();
                broken.insert(cut, "kill -KILL $$");
                let broken = broken.join("\n");
                let checked = std::process::Command::new("dash")
                    .args(["-n", "-c", &broken])
                    .output()
                    .expect("dash");
                if !checked.status.success() || lines[cut - 1].ends_with('\\') {
                    continue;
                }
                let folder = booted();
                let root = folder.path().display().to_string();
                let before = if script == INSTALL {
                    Some(make_below(&root, &shell, DEADLINE).await.expect("made"))
                } else {
                    None
                };
                let _ = shell
                    .exec("", below(&root, &broken).as_bytes(), DEADLINE)
                    .await;
                let own = make_below(&root, &shell, DEADLINE)
                    .await
                    .unwrap_or_else(|error| panic!("cut {cut}: {}", error.line()));
                if let Some(before) = before {
                    assert_eq!(own, before, "cut {cut}: the key that was recorded stays");
                }
                install_below(&root, &shell, DEADLINE)
                    .await
                    .unwrap_or_else(|error| panic!("cut {cut}: {}", error.line()));
                settled(folder.path(), &own);
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_installed_without_a_pending_key() {
        let folder = booted();
        let error = install_below(
            &folder.path().display().to_string(),
            &Shell::dash(),
            DEADLINE,
        )
        .await
        .expect_err("nothing pending");
        assert_eq!(error.causes(), ["there is no pending host key"]);
    }
}
