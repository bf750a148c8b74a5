//! Scripts as root on a machine: directly, by `sudo` with or without a password, or by `doas`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result};

use super::{Dial, ExecOutput, Guest, Sink};
use crate::http::Stream;
use crate::secret::Secret;

/// Takes a script from standard input, as root: with `sudo` (or `doas`, where there is none) only where that is needed.
/// The script is in no argument.
const COMMAND: &str = "if [ -w / ]; then exec sh -c 'eval \"$(cat)\"'; \
elif command -v sudo >/dev/null 2>&1; then exec sudo -n sh -c 'eval \"$(cat)\"'; \
else exec doas -n sh -c 'eval \"$(cat)\"'; fi";

/// The same, with a password as the first line of standard input, whether it is needed or not. `read` takes no byte
/// more than that line from a pipe (POSIX, "read"), nor does `sudo -S`; `-k` makes it read the line in any case.
const WITH_PASSWORD: &str = "if [ -w / ]; then IFS= read -r forge_line; exec sh -c 'eval \"$(cat)\"'; \
elif sudo -n sh -c : 2>/dev/null; then IFS= read -r forge_line; exec sudo -n sh -c 'eval \"$(cat)\"'; \
else exec sudo -k -S -p '' sh -c 'eval \"$(cat)\"'; fi";

/// Whether `sudo` takes the password, which is all of its input: of a script behind one that is wrong it would take the
/// next lines for more of them, and each counts as another try.
const CHECK: &str = "if [ -w / ] || sudo -n sh -c : 2>/dev/null; then exec cat >/dev/null; \
else exec sudo -k -S -p '' sh -c :; fi";

/// The command line and the standard input that run `script` as root on a machine. A password is in the input alone.
pub fn as_root(guest: &dyn Guest, script: &str) -> (&'static str, Vec<u8>) {
    match guest.sudo_password() {
        None => (COMMAND, script.as_bytes().to_vec()),
        Some(password) => {
            let mut input = password.expose().as_bytes().to_vec();
            input.push(b'\n');
            input.extend_from_slice(script.as_bytes());
            (WITH_PASSWORD, input)
        }
    }
}

/// A machine whose `sudo` asks for this password.
pub struct WithPassword {
    /// The machine.
    pub guest: Arc<dyn Guest>,
    /// The password.
    pub password: Secret,
}

impl WithPassword {
    /// The machine, whose `sudo` takes this password.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it does not: it was tried once; or what the connection reports.
    pub async fn checked(
        guest: Arc<dyn Guest>,
        password: Secret,
        deadline: Duration,
    ) -> Result<Self> {
        let mut input = password.expose().as_bytes().to_vec();
        input.push(b'\n');
        let output = guest.exec(CHECK, &input, deadline).await?;
        if output.status == 0 {
            return Ok(Self { guest, password });
        }
        Err(
            Error::new(Kind::Refused, "`sudo` does not take the password there")
                .because(output.error_text().trim())
                .hint("it was tried once; nothing was changed"),
        )
    }
}

#[async_trait]
impl Guest for WithPassword {
    async fn dial(&self, to: &Dial, deadline: Duration) -> Result<Box<dyn Stream>> {
        self.guest.dial(to, deadline).await
    }

    fn sudo_password(&self) -> Option<&Secret> {
        Some(&self.password)
    }

    async fn exec(&self, command: &str, input: &[u8], deadline: Duration) -> Result<ExecOutput> {
        self.guest.exec(command, input, deadline).await
    }

    async fn stream(
        &self,
        command: &str,
        input: &[u8],
        deadline: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<ExecOutput> {
        let mut pass = |bytes: &[u8]| -> ControlFlow<()> { sink(bytes) };
        self.guest.stream(command, input, deadline, &mut pass).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_first_line_is_the_password_and_the_rest_the_script() {
        // Without root, or with it: the words are those that the shell gets, with stand-ins for what asks.
        let folder = tempfile::tempdir().expect("a folder");
        let sudo = folder.path().join("sudo");
        // Written by a child: what this process holds open for writing cannot be run (ETXTBSY).
        let text = "#!/bin/sh\n[ \"$1\" != -n ] || exit 1\nIFS= read -r line\necho \"sudo $1 $2: $line\"\nshift 4\nexec \"$@\"\n";
        let made = Command::new("sh")
            .args(["-c", "printf '%s' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&sudo)
            .arg(text)
            .status()
            .expect("sh");
        assert!(made.success());
        let path = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        // Nobody may write there.
        let line = WITH_PASSWORD.replace("[ -w / ]", "false");
        let mut child = Command::new("sh")
            .args(["-c", &line])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(b"s3cret word\necho \"the script: $#\"\n")
            .expect("written");
        let output = child.wait_with_output().expect("ends");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "sudo -k -S: s3cret word\nthe script: 0\n"
        );
    }

    #[test]
    fn a_password_is_tried_once_and_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        // One that takes three lines for three tries, as `sudo` does, and asks always.
        let text = "#!/bin/sh\n[ \"$1\" != -n ] || exit 1\nfor _ in 1 2 3; do\n  IFS= read -r line || break\n  echo \"$line\" >>\"$TRIES\"\n  \
                    [ \"$line\" != right ] || { shift 4; exec \"$@\"; }\ndone\nexit 1\n";
        let made = Command::new("sh")
            .args(["-c", "printf '%s' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(folder.path().join("sudo"))
            .arg(text)
            .status()
            .expect("sh");
        assert!(made.success());
        let tries = folder.path().join("tries");
        let path = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        for (password, taken) in [("wrong", false), ("right", true)] {
            let mut child = Command::new("sh")
                .args(["-c", &CHECK.replace("[ -w / ]", "false")])
                .env("PATH", &path)
                .env("TRIES", &tries)
                .stdin(Stdio::piped())
                .spawn()
                .expect("sh");
            let line = format!("{password}\n");
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(line.as_bytes()).expect("written");
            drop(stdin);
            assert_eq!(child.wait().expect("ends").success(), taken, "{password}");
        }
        let tried = std::fs::read_to_string(&tries).expect("tries");
        assert_eq!(tried, "wrong\nright\n");
    }
}
