//! forge's own key on a host: one line among those of its user, told by the claim in its comment.

use std::fs;
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result, process};

use crate::machine::{Forge, Record};
use crate::playbook::quote;
use crate::remote::{ExecOutput, Guest};

/// Appends the line, once, whatever the file looks like. OpenSSH refuses keys whose file others may write
/// (sshd_config(5), StrictModes).
const LET_IN: &str = r#"set -eu
umask 077
folder=$HOME/.ssh
file=$folder/authorized_keys
[ -d "$folder" ] || mkdir "$folder"
[ -f "$file" ] || : >>"$file"
if ! grep -qxF "$line" "$file"; then
  if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then
    echo >>"$file"
  fi
  printf '%s\n' "$line" >>"$file"
fi
"#;

/// Takes the line away; the file appears whole, with the owner and the mode that it had.
const SHUT_OUT: &str = r#"set -eu
umask 077
file=$HOME/.ssh/authorized_keys
if [ -e "$file" ] && grep -qxF "$line" "$file"; then
  file=$(readlink -f "$file")
  cp -p "$file" "$file.forge"
  grep -vxF "$line" "$file" >"$file.forge" || [ $? = 1 ]
  mv -f "$file.forge" "$file"
fi
"#;

/// The line of a machine.
///
/// # Errors
/// When its key cannot be read.
pub(super) fn line(forge: &Forge, record: &Record) -> Result<String> {
    let path = forge
        .store
        .machine_dir(&record.name)
        .join(format!("{}.pub", record.ssh.key));
    let text = fs::read_to_string(&path)
        .or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))?;
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(kind), Some(key)) => Ok(format!("{kind} {key} forge {}", record.claim)),
        _ => Err(Error::new(
            Kind::Corrupt,
            format!("`{}` is no public key", path.display()),
        )),
    }
}

/// Lets the key in. In already: succeeds.
pub(super) async fn let_in(guest: &dyn Guest, line: &str, deadline: Duration) -> Result<()> {
    let output = run(guest, LET_IN, line, deadline).await?;
    success(
        "failed to add forge's key to ~/.ssh/authorized_keys there",
        &output,
    )
}

/// Shuts the key out; connections that are open stay. Gone already: succeeds.
pub(super) async fn shut_out(guest: &dyn Guest, line: &str, deadline: Duration) -> Result<()> {
    let output = run(guest, SHUT_OUT, line, deadline).await?;
    success(
        "failed to take forge's key out of ~/.ssh/authorized_keys there",
        &output,
    )
}

/// As the user, by `sh`, whatever their own shell is.
async fn run(
    guest: &dyn Guest,
    script: &str,
    line: &str,
    deadline: Duration,
) -> Result<ExecOutput> {
    let script = format!("line={}\n{script}", quote(line));
    guest.exec("sh -s", script.as_bytes(), deadline).await
}

fn success(what: &str, output: &ExecOutput) -> Result<()> {
    if output.status == 0 {
        return Ok(());
    }
    let why = process::tail(&output.error_text(), 5);
    Err(Error::new(Kind::Failed, what).because(why))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::remote::testing::Shell;

    const LINE: &str = "ssh-ed25519 AAAA forge 7e4b";

    /// The script, in a home of its own.
    async fn at(home: &Path, script: &str) -> ExecOutput {
        let script = format!("HOME={}\n{script}", quote(&home.display().to_string()));
        run(&Shell::dash(), &script, LINE, Duration::from_secs(20))
            .await
            .expect("runs")
    }

    #[tokio::test]
    async fn the_line_is_there_once_and_the_others_stay() {
        for before in [
            "",
            "ssh-rsa BBBB me\n",
            "# no end of line",
            "ssh-rsa BBBB me\n\nx\n",
        ] {
            let home = tempfile::tempdir().expect("a folder");
            let file = home.path().join(".ssh/authorized_keys");
            if !before.is_empty() {
                fs::create_dir(home.path().join(".ssh")).expect("mkdir");
                fs::write(&file, before).expect("write");
                fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
            }
            for _ in 0..2 {
                success("let in", &at(home.path(), LET_IN).await).expect("let in");
                let text = fs::read_to_string(&file).expect("text");
                assert!(text.starts_with(before), "{text}");
                assert_eq!(
                    text.lines().filter(|line| *line == LINE).count(),
                    1,
                    "{text}"
                );
            }
            for _ in 0..2 {
                success("shut out", &at(home.path(), SHUT_OUT).await).expect("shut out");
                let text = fs::read_to_string(&file).expect("text");
                assert_eq!(text.trim_end(), before.trim_end());
            }
            let mode = fs::metadata(&file).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, if before.is_empty() { 0o600 } else { 0o640 });
            let left = fs::read_dir(home.path().join(".ssh"))
                .expect("list")
                .count();
            assert_eq!(left, 1, "nothing else is left");
        }
    }

    #[tokio::test]
    async fn a_key_that_was_never_let_in_is_shut_out_all_the_same() {
        let home = tempfile::tempdir().expect("a folder");
        success("", &at(home.path(), SHUT_OUT).await).expect("nothing to do");
        assert!(!home.path().join(".ssh").exists());
    }
}
