//! A real OpenSSH server in the place of a machine: the fake provider's machines have none.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use forge_lab::openssh::{key, serve, user};
use serde_json::Value;

use super::Lab;

/// A server at the address of a machine, that lets in the machine's key and runs commands as the current user.
pub struct Sshd {
    folder: PathBuf,
    address: SocketAddr,
    child: Child,
}

impl Sshd {
    /// Makes `name` of the fake provider a machine that answers SSH: its record names the server's host key and the
    /// user that a command has there.
    pub fn of(lab: &Lab, name: &str) -> Self {
        lab.forge(&format!("create {name}")).ok();
        let folder = lab.folder().join(format!("sshd-{name}"));
        fs::create_dir(&folder).expect("a folder");
        let host_key = make_key(&folder, "host");
        let mut record = lab.record(name);
        let address = record["instance"]["endpoints"]["ssh"].as_str();
        let address = address
            .and_then(|text| text.parse().ok())
            .expect("an address");
        record["ssh"]["user"] = user().into();
        record["ssh"]["own_host_key"] = host_key.into();
        put(lab, name, &record);
        let key = lab.home.join("machines").join(name).join("id_ed25519.pub");
        fs::copy(key, folder.join("authorized_keys")).expect("copied");
        let child = serve(&folder, address, "");
        Self {
            folder,
            address,
            child,
        }
    }

    /// The server shows another host key from now on, and notes in the file `ran` what it runs.
    pub fn with_another_key(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        fs::remove_file(self.folder.join("host")).expect("removed");
        make_key(&self.folder, "host");
        self.child = serve(&self.folder, self.address, "");
    }

    /// The server listens there from now on, and nowhere else.
    pub fn move_to(&mut self, address: SocketAddr) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        self.address = address;
        self.child = serve(&self.folder, address, "");
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the record of a machine.
pub fn put(lab: &Lab, name: &str, record: &Value) {
    let path = lab.home.join("machines").join(name).join("machine.json");
    fs::write(path, record.to_string()).expect("written");
}

/// The public half of a new key.
fn make_key(folder: &Path, name: &str) -> String {
    key(&folder.join(name), "ed25519", "");
    let text = fs::read_to_string(folder.join(format!("{name}.pub"))).expect("a key");
    text.trim().to_owned()
}

/// A folder for PATH that has these programs of this host alone.
pub fn programs(lab: &Lab, names: &[&str]) -> PathBuf {
    let folder = lab.folder().join(format!("programs-{}", names.join("-")));
    fs::create_dir(&folder).expect("a folder");
    for name in names {
        let path = forge_driver::process::which(Path::new(name));
        std::os::unix::fs::symlink(path.expect(name), folder.join(name)).expect("a link");
    }
    folder
}

/// Ends a process of a test by its number.
pub fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}
