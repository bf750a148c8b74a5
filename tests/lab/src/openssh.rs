//! OpenSSH servers of the tests' own, and their keys.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes a key pair, which nobody has to unlock unless a passphrase is given.
pub fn key(path: &Path, kind: &str, passphrase: &str) {
    key_with(path, kind, &["-N", passphrase]);
}

/// The same by these options of `ssh-keygen` besides.
pub fn key_with(path: &Path, kind: &str, options: &[&str]) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-C", ""])
        // Shorter RSA keys are made sooner.
        .args(
            (kind == "rsa")
                .then_some(["-b", "2048"])
                .into_iter()
                .flatten(),
        )
        .args(options)
        .arg("-f")
        .arg(path)
        .status()
        .expect("ssh-keygen is installed (openssh-client)");
    assert!(made.success());
}

/// The fingerprint of a key.
pub fn fingerprint(path: &Path) -> String {
    let output = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(path)
        .output()
        .expect("ssh-keygen is installed (openssh-client)");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .nth(1)
        .expect("a fingerprint")
        .to_owned()
}

/// The current user's name.
pub fn user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    let fields = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|field| *field == uid));
    fields.expect("the user has an entry")[0].to_owned()
}

/// Starts a server at `address` that shows the key `host` of `folder`, lets in who is in its `authorized_keys` and logs
/// to its `log`, and waits until it listens. Of each setting the first one counts (sshd_config(5)): these win over what
/// all servers of tests have. It goes on until it is killed.
pub fn serve(folder: &Path, address: SocketAddr, settings: &str) -> Child {
    // sshd refuses to run as root without its folder for separated privileges (sshd(8), FILES).
    if rustix::process::geteuid().is_root() {
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
    }
    let at = folder.display();
    let config = folder.join("sshd_config");
    fs::write(
        &config,
        format!(
            "{settings}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized_keys\nListenAddress {address}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n\
             Subsystem sftp internal-sftp\n",
        ),
    )
    .expect("written");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("a log");
    let child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("sshd is installed (openssh-server)");
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "sshd listens in time");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}
