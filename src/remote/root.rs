//! Scripts as root on a machine: directly, by `sudo` with or without a password, or by `doas`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::Result;

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
elif sudo -n true 2>/dev/null; then IFS= read -r forge_line; exec sudo -n sh -c 'eval \"$(cat)\"'; \
else exec sudo -k -S -p '' sh -c 'eval \"$(cat)\"'; fi";

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
}
