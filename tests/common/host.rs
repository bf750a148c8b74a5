//! A host that was there before forge: a real OpenSSH server of the test's own, with a home and a root folder of its own,
//! and in the place of an engine a TLS server with what was put there.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forge_lab::openssh::{fingerprint, key, serve, user};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A host of somebody else's.
pub struct Host {
    folder: tempfile::TempDir,
    /// The port of its SSH server at 127.0.0.1.
    pub port: u16,
    /// The port of its engine there.
    pub engine: u16,
    child: Option<Child>,
    over: Arc<AtomicBool>,
}

impl Host {
    /// A host with a host key of this type (`ed25519`, `ecdsa`, `rsa`), which lets the key `user` in.
    pub fn with_key(kind: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("forge-host-")
            // Not below TMPDIR, which may be closed to the user that `ask_for` runs commands as.
            .tempdir_in("/tmp")
            .expect("a folder");
        let at = folder.path().to_owned();
        for name in ["home", "home/.ssh", "root", "root/etc", "bin"] {
            fs::create_dir(at.join(name)).expect("a folder");
        }
        let over = Arc::new(AtomicBool::new(false));
        let host = Self {
            port: free_port(),
            engine: engine(&at.join("root/etc/docker"), &over),
            folder,
            child: None,
            over,
        };
        key(&at.join("host"), kind, "");
        key(&at.join("user"), "ed25519", "");
        host.let_in("user");
        // Who may become root here is not asked.
        script(
            &at.join("bin/sudo"),
            "#!/bin/sh\n[ \"$1\" != -n ] || shift\nexec \"$@\"\n",
        );
        host.started()
    }

    /// The usual one.
    pub fn new() -> Self {
        Self::with_key("ed25519")
    }

    /// Its files.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets another key in, whose files are called so.
    pub fn let_in(&self, name: &str) {
        let public = fs::read_to_string(self.at(&format!("{name}.pub"))).expect("a key");
        let path = self.at("home/.ssh/authorized_keys");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, before + &public).expect("written");
    }

    /// Starts its SSH server again, with these lines of configuration besides.
    pub fn restart_with(&mut self, extra: &str) {
        self.stop();
        fs::write(self.at("more"), extra).expect("written");
        *self = std::mem::replace(self, Self::nowhere()).started();
    }

    /// From now on `sudo` asks its user for this password, and its user is nobody who may write everywhere, whoever runs
    /// the tests.
    pub fn ask_for(&mut self, password: &str) {
        fs::write(self.at("password"), format!("{password}\n")).expect("written");
        script(
            &self.at("bin/sudo"),
            "#!/bin/sh\n[ \"$1\" != -n ] || exit 1\nIFS= read -r line\n\
             [ \"$line\" = \"$(cat \"$FORGE_FAKE_ROOT/../password\")\" ] || { echo 'Sorry, try again.' >&2; exit 1; }\n\
             shift 4\nexec \"$@\"\n",
        );
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let command = self.at("bin/as-nobody");
        script(
            &command,
            "#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
        );
        let given = Command::new("chown")
            .args(["-R", "65534:65534"])
            .arg(self.folder.path())
            .status()
            .expect("chown");
        assert!(given.success());
        self.restart_with(&format!("ForceCommand {}", command.display()));
    }

    fn nowhere() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            port: 0,
            engine: 0,
            child: None,
            over: Arc::new(AtomicBool::new(false)),
        }
    }

    fn started(mut self) -> Self {
        let at = self.folder.path().display();
        let more = fs::read_to_string(self.at("more")).unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let settings = format!(
            "{more}\nAuthorizedKeysFile {at}/home/.ssh/authorized_keys\nPrintLastLog no\nLogLevel VERBOSE\n\
             SetEnv HOME={at}/home FORGE_FAKE_ROOT={at}/root PATH={at}/bin:{path}\n",
        );
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        self.child = Some(serve(self.folder.path(), address, &settings));
        self
    }

    /// Ends its SSH server; sessions are processes of their own.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What its SSH server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// How many have been let in.
    pub fn entered(&self) -> usize {
        self.log().matches("Accepted publickey").count()
    }

    /// The lines of forge's own among the keys that it lets in.
    pub fn own_lines(&self) -> usize {
        let authorized = self.authorized();
        authorized
            .lines()
            .filter(|line| line.contains(" forge "))
            .count()
    }

    /// Nobody gave a user's name, nor a key.
    pub fn nobody_tried(&self) {
        let log = self.log();
        for word in [
            "Accepted",
            "Failed",
            "preauth] user",
            "Postponed",
            "authenticating user",
        ] {
            assert!(!log.contains(word), "{log}");
        }
    }

    /// The fingerprint of its host key.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.at("host.pub"))
    }

    /// The keys that it lets in.
    pub fn authorized(&self) -> String {
        fs::read_to_string(self.at("home/.ssh/authorized_keys")).unwrap_or_default()
    }

    /// The options that lead to it, by the key `user`.
    pub fn options(&self) -> String {
        format!(
            "--driver generic --generic-ip-address 127.0.0.1 --generic-ssh-port {} --generic-engine-port {} --generic-ssh-user {} \
             --generic-ssh-key {} --generic-ssh-config none",
            self.port,
            self.engine,
            user(),
            self.at("user").display()
        )
    }

    /// The same, and it is trusted.
    pub fn trusted(&self) -> String {
        format!(
            "{} --generic-host-key {}",
            self.options(),
            self.fingerprint()
        )
    }

    /// A line of `known_hosts` for it.
    pub fn known(&self, key: &str) -> String {
        let public = fs::read_to_string(self.at(&format!("{key}.pub"))).expect("a key");
        format!("[127.0.0.1]:{} {public}", self.port)
    }

    /// A configuration of `ssh` that takes known hosts from this text.
    pub fn config(&self, known_hosts: &str) -> PathBuf {
        let (known, config) = (self.at("known_hosts"), self.at("config"));
        fs::write(&known, known_hosts).expect("written");
        let text = format!(
            "Host *\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n",
            known.display()
        );
        fs::write(&config, text).expect("written");
        config
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.stop();
    }
}

/// A program, written by a child: what this process holds open for writing cannot be run (ETXTBSY).
pub fn script(path: &Path, text: &str) {
    let made = Command::new("sh")
        .args(["-c", "printf '%s' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .arg(text)
        .status()
        .expect("sh");
    assert!(made.success());
    assert!(fs::metadata(path).expect("there").permissions().mode() & 0o111 != 0);
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A TLS server that shows what lies in `folder` and asks for a certificate of that authority, as `dockerd --tlsverify`.
fn engine(folder: &Path, over: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    listener.set_nonblocking(true).expect("set");
    let (folder, over) = (folder.to_owned(), over.clone());
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let folder = folder.clone();
                    // A caller without a certificate is let go.
                    std::thread::spawn(move || answer(stream, &folder));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    port
}

fn answer(stream: TcpStream, folder: &Path) -> Option<()> {
    if !folder.join("enabled").exists() {
        return None;
    }
    stream.set_nonblocking(false).ok()?;
    let tls = folder.join("tls");
    let config = forge_lab::engine::config(
        CertificateDer::from_pem_file(tls.join("ca.pem")).ok()?,
        CertificateDer::from_pem_file(tls.join("server.pem")).ok()?,
        PrivateKeyDer::from_pem_file(tls.join("server-key.pem")).ok()?,
    )?;
    forge_lab::engine::answer(config, stream)
}
