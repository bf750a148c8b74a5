//! Machines for tests: a shell on this one, and a real OpenSSH server on a loopback address.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result};
use forge_lab::openssh::{serve, user};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::ssh::Target;
use super::{Dial, ExecOutput, Expect, Guest, KeyPair, Sink, generate_key};
use crate::http::Stream;

/// A shell on this machine that takes scripts from its standard input.
pub(crate) struct Shell {
    argv: Vec<String>,
    path: Option<String>,
}

impl Shell {
    /// Debian's `sh`.
    pub(crate) fn dash() -> Self {
        Self {
            argv: vec!["dash".to_owned()],
            path: None,
        }
    }

    /// Busybox: its shell, and its programs alone, linked into `folder`.
    pub(crate) fn busybox(folder: &Path) -> Self {
        let busybox = Path::new("/bin/busybox");
        let busybox = if busybox.exists() {
            busybox
        } else {
            Path::new("/usr/bin/busybox")
        };
        for applet in [
            "sh",
            "cat",
            "sha256sum",
            "stat",
            "mv",
            "rm",
            "mkdir",
            "chmod",
            "chown",
            "timeout",
            "sleep",
            "sync",
            "cp",
            "cut",
            "grep",
            "id",
            "mktemp",
            "tail",
            "tee",
        ] {
            std::os::unix::fs::symlink(busybox, folder.join(applet)).expect("link");
        }
        Self {
            argv: vec![folder.join("sh").display().to_string()],
            path: Some(folder.display().to_string()),
        }
    }

    /// The same shell, which finds the programs of this folder first.
    pub(crate) fn with_first(self, folder: &str) -> Self {
        let path = self
            .path
            .clone()
            .unwrap_or_else(|| "/usr/bin:/bin".to_owned());
        self.with_path(format!("{folder}:{path}"))
    }

    /// The same shell with another search path.
    pub(crate) fn with_path(mut self, path: String) -> Self {
        self.path = Some(path);
        self
    }
}

#[async_trait]
impl Guest for Shell {
    async fn dial(&self, to: &Dial, _: Duration) -> Result<Box<dyn Stream>> {
        Err(Error::new(
            Kind::Unavailable,
            format!("{to:?} is not reached through a shell"),
        ))
    }

    async fn exec(&self, command: &str, input: &[u8], deadline: Duration) -> Result<ExecOutput> {
        let mut stdout = Vec::new();
        let mut keep = |bytes: &[u8]| {
            stdout.extend_from_slice(bytes);
            std::ops::ControlFlow::Continue(())
        };
        let mut output = self.stream(command, input, deadline, &mut keep).await?;
        output.stdout = stdout;
        Ok(output)
    }

    async fn stream(
        &self,
        _: &str,
        input: &[u8],
        deadline: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<ExecOutput> {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .args(["-c", "eval \"$(cat)\""])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().expect("the shell starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input).await.expect("the script is taken");
        drop(stdin);
        let mut stdout = child.stdout.take().expect("piped");
        let mut stderr = child.stderr.take().expect("piped");
        let work = async {
            let mut buffer = [0; 4096];
            while let Ok(count) = stdout.read(&mut buffer).await {
                if count == 0 || sink(&buffer[..count]).is_break() {
                    break;
                }
            }
            let mut errors = Vec::new();
            let _ = stderr.read_to_end(&mut errors).await;
            let status = child.wait().await.expect("waits");
            ExecOutput {
                status: status.code().unwrap_or(255),
                stdout: Vec::new(),
                stderr: errors,
            }
        };
        timeout(deadline, work)
            .await
            .map_err(|_| Error::new(Kind::Timeout, "the shell did not end in time"))
    }
}

/// An OpenSSH server of the test's own on 127.0.0.1, run as the current user.
pub(crate) struct Sshd {
    _folder: TempDir,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its host key.
    pub(crate) host: KeyPair,
    /// The key that it lets in.
    pub(crate) client: KeyPair,
    child: Child,
}

impl Sshd {
    /// Starts a server and waits until it listens.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (host, client) = (
            generate_key("host").expect("key"),
            generate_key("client").expect("key"),
        );
        for (name, text) in [
            ("host", host.private_openssh.expose()),
            ("host.pub", &host.public_openssh),
            ("authorized_keys", &client.public_openssh),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        let address = TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("its address");
        Self {
            child: serve(folder.path(), address, ""),
            _folder: folder,
            address,
            host,
            client,
        }
    }

    /// How to log in to it.
    pub(crate) fn target(&self) -> Target {
        Target {
            address: self.address,
            user: user(),
            key: self.client.private_openssh.clone(),
            expect: Expect {
                keys: vec![self.host.public_openssh.clone()],
                ..Expect::default()
            },
        }
    }

    /// Ends the server itself; sessions are processes of their own.
    pub(crate) fn stop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
