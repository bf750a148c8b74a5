//! First contact: the machine makes a host key that never leaves it, and forgets the one we brought.
//!
//! Two scripts, each idempotent at every line: a run that is cut off is simply run again. Between them
//! the caller records the public half, so that both keys are accepted until the new one is seen.

use std::time::Duration;

use forge_driver::{Error, Kind, Result, process};

use super::keys::{parse, text};
use super::{ExecOutput, Guest};

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
    let output = guest.exec(AS_ROOT, MAKE.as_bytes(), deadline).await?;
    let printed = success("failed to make the machine's own SSH host key", output)?;
    // The key is the last line: a login script may print before it.
    let line = printed.lines().rfind(|line| line.starts_with("ssh-ed25519 ")).unwrap_or_default();
    Ok(text(&parse(line)?))
}

/// Makes the guest present its own key from now on, and removes every private key that first boot
/// brought. The running connection stays. Done already: succeeds.
///
/// # Errors
/// What the guest's shell printed; repeating is safe.
pub async fn install(guest: &dyn Guest, deadline: Duration) -> Result<()> {
    let output = guest.exec(AS_ROOT, INSTALL.as_bytes(), deadline).await?;
    success("failed to install the machine's own SSH host key", output).map(|_| ())
}

fn success(what: &str, output: ExecOutput) -> Result<String> {
    if output.status == 0 {
        return Ok(output.text());
    }
    let printed = process::tail(&output.error_text(), 12);
    let why = if printed.is_empty() { format!("the shell ended with status {}", output.status) } else { printed };
    Err(Error::new(Kind::Failed, what).because(why))
}
