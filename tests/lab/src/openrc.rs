//! A host whose services are OpenRC's: Debian's packages in a virtual machine of the test's own, which forge has not made.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cache;
use crate::openssh;
use crate::run::{Ran, run};
use crate::steps::wait;

/// The port of its SSH server on this host.
pub const SSH_PORT: &str = "2222";
/// It boots in half a minute on two idle processors.
const BOOT: Duration = Duration::from_secs(300);

/// A running host; it goes when it is dropped.
pub struct OpenRc {
    folder: tempfile::TempDir,
    address: String,
    machine: Child,
}

impl OpenRc {
    /// Boots a fresh host and waits until one may log in.
    pub fn boot() -> Self {
        let image = image();
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        // An address of its own, so that several tests may do this at once.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = format!("127.118.{high}.{low}");
        openssh::key(&path("key"), "ed25519", "");
        openssh::key(&path("host"), "ed25519", "");
        let own = path("own");
        for (from, to) in [
            ("key.pub", "root/.ssh/authorized_keys"),
            ("host", "etc/ssh/ssh_host_ed25519_key"),
            ("host.pub", "etc/ssh/ssh_host_ed25519_key.pub"),
        ] {
            let to = own.join(to);
            fs::create_dir_all(to.parent().expect("a folder")).expect("mkdir");
            fs::copy(path(from), to).expect("copied");
        }
        tool(
            Command::new("tar")
                .args(["--owner=0", "--group=0", "--mode=go=", "-cf"])
                .arg(path("own.tar"))
                .arg("-C")
                .arg(&own)
                .args(["root/.ssh", "etc/ssh/ssh_host_ed25519_key"])
                .arg("etc/ssh/ssh_host_ed25519_key.pub"),
        );
        // A disk is whole sectors.
        let tar = fs::File::options().write(true).open(path("own.tar"));
        let tar = tar.expect("the tar");
        let length = tar.metadata().expect("its length").len();
        tar.set_len(length.next_multiple_of(1 << 20))
            .expect("grown");
        tool(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                .arg(image.join("disk.qcow2"))
                .arg(path("disk.qcow2")),
        );
        let drive =
            |name: &str, rest: &str| format!("file={},if=virtio,{rest}", path(name).display());
        let net = format!(
            "user,id=n,hostfwd=tcp:{address}:{SSH_PORT}-:22,hostfwd=tcp:{address}:2376-:2376"
        );
        let log = fs::File::create(path("qemu.log")).expect("a log");
        let machine = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "1024",
            ])
            .args(["-nodefaults", "-display", "none", "-kernel"])
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initrd.img"))
            .args([
                "-append",
                "root=LABEL=openrc rw console=ttyS0 net.ifnames=0 apparmor=0 quiet",
            ])
            .args(["-drive", &drive("disk.qcow2", "format=qcow2,cache=unsafe")])
            .args(["-drive", &drive("own.tar", "format=raw,readonly=on")])
            .args(["-netdev", &net, "-device", "virtio-net-pci,netdev=n"])
            .args(["-device", "virtio-rng-pci", "-serial"])
            .arg(format!("file:{}", path("console").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("QEMU starts");
        let host = Self {
            folder,
            address,
            machine,
        };
        host.up();
        host
    }

    /// Waits until one may log in.
    pub fn up(&self) {
        wait("a host with OpenRC", BOOT, || {
            let ran = self.run("true");
            if ran.code == 0 {
                return Ok(());
            }
            let console = fs::read(self.folder.path().join("console")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            Err(format!("{ran}\n--- console\n{console}"))
        });
    }

    /// Where it answers, with [`SSH_PORT`] and the engine's own port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The private key that its root lets in.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// The fingerprint of its host key.
    pub fn fingerprint(&self) -> String {
        openssh::fingerprint(&self.folder.path().join("host.pub"))
    }

    /// What root's shell there makes of this, as successful as it was.
    pub fn run(&self, script: &str) -> Ran {
        let known = self.folder.path().join("known_hosts");
        let line = fs::read_to_string(self.folder.path().join("host.pub")).expect("a key");
        let line = format!("[{}]:{SSH_PORT} {line}", self.address);
        fs::write(&known, line).expect("written");
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
        ])
        .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg("-i")
        .arg(self.key())
        .args(["-p", SSH_PORT, &format!("root@{}", self.address), "sh -s"]);
        run(&mut ssh, script.as_bytes(), Duration::from_secs(240))
    }

    /// What it prints, once it has succeeded.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.run(script).ok().text()
    }
}

impl Drop for OpenRc {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

/// The folder with disk, kernel and first root file system: made once.
fn image() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("openrc-image");
    let mut hasher = DefaultHasher::new();
    fs::read(&script).expect("the script").hash(&mut hasher);
    let (cache, _lock) = cache::locked();
    let folder = cache.join(format!("openrc-{:016x}", hasher.finish()));
    if !folder.join("disk.qcow2").exists() {
        // What older scripts made serves nobody any more.
        for entry in fs::read_dir(&cache).expect("the cache").flatten() {
            if entry.file_name().to_string_lossy().starts_with("openrc-") {
                // What a build that was killed left belongs to others, and stays where it may not be removed.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        eprintln!("making the disk of a host with OpenRC (about a minute, once)");
        let mut make = Command::new(&script);
        run(make.arg(&folder), b"", Duration::from_secs(900)).ok();
    }
    folder
}

#[track_caller]
fn tool(command: &mut Command) {
    run(command, b"", Duration::from_secs(60)).ok();
}
