//! `virsh`, the way to a libvirt daemon (<https://www.libvirt.org/manpages/virsh.html>).

use std::path::PathBuf;
use std::time::Duration;

use forge_driver::{DriverHome, Error, Kind, Result, process};
use tokio::process::Command;

use crate::options::Config;
use crate::ssh;
use crate::uri::Uri;

/// How long one command may take. The first one after a daemon starts waits for it to look at its QEMU.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a disk image may travel.
const TRANSFER: Duration = Duration::from_secs(1800);

/// What stands between the answers of a batch: it is no word of libvirt's.
const MARK: &str = "@forge@";

/// One libvirt daemon.
#[derive(Clone, Debug)]
pub(crate) struct Virsh {
    program: PathBuf,
    uri: Uri,
    home: DriverHome,
}

impl Virsh {
    pub(crate) fn new(config: &Config, home: &DriverHome) -> Self {
        Self {
            program: config.virsh.clone(),
            uri: config.uri.clone(),
            home: home.clone(),
        }
    }

    /// Where the daemon is.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// What one command prints, after a word that only virsh says: an answer that is empty because something else
    /// was run in its place would tell that there is nothing.
    ///
    /// # Errors
    /// What libvirt said, as a kind that can be acted on; [`Kind::Invalid`] for what virsh does not say.
    pub(crate) async fn call(&self, words: &[&str]) -> Result<String> {
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let script = format!("echo {MARK}; {}", line.join(" "));
        let what = words.first().copied().unwrap_or_default();
        let text = self.run_as(what, &[&script], None, DEADLINE).await?;
        match text.trim_start().strip_prefix(MARK) {
            Some(rest) => Ok(rest.strip_prefix('\n').unwrap_or(rest).to_owned()),
            None => Err(strange(
                format!("`virsh {what}` at `{}` gave no answer of virsh's", self.uri),
                &text,
            )),
        }
    }

    /// Whether a list has the line `wanted`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn lists(&self, words: &[&str], wanted: &str) -> Result<bool> {
        let text = self.call(words).await?;
        Ok(text.lines().any(|line| line.trim() == wanted))
    }

    /// What one command prints, with a document on its standard input, which the words name as `/dev/stdin`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn feed(&self, words: &[&str], document: &str) -> Result<String> {
        self.run(words, Some(document.as_bytes()), DEADLINE).await
    }

    /// A command that moves these bytes, which the words name as `/dev/stdin`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn send(&self, words: &[&str], bytes: &[u8]) -> Result<String> {
        self.run(words, Some(bytes), TRANSFER).await
    }

    /// A command that moves a disk image.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn transfer(&self, words: &[&str]) -> Result<String> {
        self.run(words, None, TRANSFER).await
    }

    /// What each of these commands prints, over one connection; nothing for one that fails.
    ///
    /// # Errors
    /// When the daemon cannot be asked.
    pub(crate) async fn batch(&self, commands: &[String]) -> Result<Vec<String>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut script = String::new();
        for command in commands {
            script.push_str(command);
            // The exit code is that of the last command, which cannot fail: one that does leaves no answer.
            script.push_str(&format!("; echo {MARK}; "));
        }
        let text = self.run(&[&script], None, DEADLINE).await?;
        let answers: Vec<String> = text
            .split(MARK)
            .map(|part| part.trim().to_owned())
            .collect();
        if answers.len() != commands.len() + 1 {
            let message = format!(
                "`virsh` gave {} answers to {} questions",
                answers.len() - 1,
                commands.len()
            );
            return Err(strange(message, &text));
        }
        Ok(answers[..commands.len()].to_vec())
    }

    async fn run(
        &self,
        words: &[&str],
        input: Option<&[u8]>,
        deadline: Duration,
    ) -> Result<String> {
        let what = words.first().and_then(|word| word.split(' ').next());
        self.run_as(what.unwrap_or_default(), words, input, deadline)
            .await
    }

    /// Runs virsh; an error names the command `what`.
    async fn run_as(
        &self,
        what: &str,
        words: &[&str],
        input: Option<&[u8]>,
        deadline: Duration,
    ) -> Result<String> {
        let mut connect = self.uri.to_string();
        if self.uri.over_ssh() {
            let program = ssh::program(&self.home)?;
            connect.push_str("?command=");
            connect.push_str(&ssh::escaped(&program.to_string_lossy()));
        }
        let mut command = Command::new(&self.program);
        command
            .args(["--quiet", "--connect", &connect])
            .args(words)
            .env("LC_ALL", "C")
            .env_remove("VIRSH_DEBUG")
            .env_remove("LIBVIRT_DEBUG");
        let output = process::run(command, input, deadline).await?;
        if output.status.success() {
            return Ok(output.text());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.trim().is_empty() {
            said = format!("`virsh` ended with {} and said nothing", output.status);
        }
        Err(understood(&self.uri, what, &said))
    }
}

/// The error for what virsh does not say.
fn strange(message: String, text: &str) -> Error {
    Error::new(Kind::Invalid, message)
        .because(match process::tail(text, 5).as_str() {
            "" => "it printed nothing".to_owned(),
            said => format!("it printed: {said}"),
        })
        .hint("is `--libvirt-virsh` the program of libvirt?")
}

/// The error behind what virsh said.
fn understood(uri: &Uri, what: &str, said: &str) -> Error {
    let reasons: Vec<&str> = said
        .lines()
        .map(|line| line.trim().trim_start_matches("error: "))
        // The frame that ssh draws around its warnings.
        .filter(|line| !line.trim_matches('@').is_empty())
        .collect();
    let reason = reasons.join(": ");
    let has = |word: &str| reason.contains(word);
    if has("failed to connect to the hypervisor") {
        let error = Error::new(
            Kind::Unavailable,
            format!("libvirt at `{uri}` cannot be reached"),
        )
        .because(reasons.get(1..).unwrap_or_default().join(": "));
        return if let Some(words) = uri.ssh_words().filter(|_| !has("libvirt-sock")) {
            error.hint(if has("IDENTIFICATION HAS CHANGED") {
                format!("its key is not the one that is known. When you know that the host was set up anew: `ssh-keygen -R HOST`, then connect once with `ssh {words}` and compare; else somebody is in the way")
            } else if has("Host key verification failed") {
                format!("connect once with `ssh {words}` and compare the key that it shows with that of the host: forge trusts no host key by itself")
            } else if has("Permission denied") {
                format!("`ssh -o BatchMode=yes {words} true` has to succeed: give your agent the key, or that host your public key")
            } else {
                format!("`ssh -o BatchMode=yes {words} virsh -c qemu:///system list` has to succeed")
            })
        } else if has("Permission denied") || has("authentication") {
            error.hint("your user needs the right to use libvirt: add it to the group `libvirt` and log in again")
        } else if has("No such file") || has("Connection refused") {
            error.hint("is the daemon started there? `systemctl start libvirtd`; `forge doctor` shows what is missing here")
        } else {
            error
        };
    }
    let kind = if has(" not found") {
        Kind::NotFound
    } else if has("already exists") || has("exists already") {
        Kind::Exists
    } else if has("No space left") || has("not enough free space") {
        Kind::Io
    } else if has("already in use by interface") {
        Kind::Conflict
    } else {
        Kind::Failed
    };
    let error = Error::new(kind, format!("libvirt at `{uri}` refused `{what}`")).because(reason);
    match kind {
        Kind::Io => {
            error.hint("free some space in that storage pool, then run the same command again")
        }
        Kind::Conflict => error.hint("choose another range with `--libvirt-network-cidr`; that of a network of somebody else's changes with `virsh net-edit`"),
        _ => error,
    }
}

/// The value of one line of a description such as `dominfo`: a name, a colon, blanks, the value.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// Quotes a word for a batch: virsh splits commands like a shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libvirt_said_reaches_the_user_with_a_way_out() {
        let error = understood(
            &Uri::default(),
            "list",
            "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory\n",
        );
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(
            error.message(),
            "libvirt at `qemu:///system` cannot be reached"
        );
        assert_eq!(
            error.causes(),
            [
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory"
            ]
        );
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("started"))
        );
        let far: Uri = "qemu+ssh://me@h:22/system".parse().expect("a daemon");
        for (why, hint) in [
            (
                "Cannot recv data: Host key verification failed.: Connection reset by peer",
                "no host key by itself",
            ),
            (
                "Cannot recv data: me@h: Permission denied (publickey).: Connection reset by peer",
                "`ssh -o BatchMode=yes -p 22 me@h true`",
            ),
            (
                "Cannot recv data: ssh: connect to host h port 22: Connection refused: Connection reset by peer",
                "has to succeed",
            ),
            (
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
                "the group `libvirt`",
            ),
        ] {
            let said = format!("error: failed to connect to the hypervisor\nerror: {why}");
            let error = understood(&far, "list", &said);
            assert_eq!(error.kind(), Kind::Unavailable);
            let said = error.deepest_hint().expect("a hint");
            assert!(said.contains(hint), "{why}: {said}");
        }
    }

    #[test]
    fn kinds_follow_from_the_reason() {
        for (said, kind) in [
            (
                "error: failed to get vol 'x'\nerror: Storage volume not found: no storage vol with matching path 'x'",
                Kind::NotFound,
            ),
            (
                "error: Failed to create vol d\nerror: storage volume 'd' exists already",
                Kind::Exists,
            ),
            (
                "error: cannot write data to file '/x': No space left on device",
                Kind::Io,
            ),
            (
                "error: internal error: Network is already in use by interface eth0",
                Kind::Conflict,
            ),
            (
                "error: internal error: process exited while connecting to monitor",
                Kind::Failed,
            ),
        ] {
            assert_eq!(
                understood(&Uri::default(), "x", said).kind(),
                kind,
                "{said}"
            );
        }
    }

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
