//! What only a person knows: an answer to a question, whether a host key is the right one, what opens a key.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use forge::interrupt;
use forge::machine::adopt::Ask;
use forge::playbook::quote;
use forge::remote::login::Unlock;
use forge::secret::Secret;
use forge_driver::{Error, Kind, Result};

use super::passphrase;

/// No answer is longer.
const LONGEST: u64 = 1024;
/// An interruption is heard within this time.
const LISTEN: Duration = Duration::from_millis(100);

/// A line of standard input, be that a terminal or not; `None` at its end. Waits for as long as it takes, but not for
/// longer than until the user interrupts.
///
/// # Errors
/// [`Kind::Interrupted`], or what reading comes to.
pub fn line() -> Result<Option<String>> {
    let (sender, receiver) = sync_channel(1);
    // It may never end; the process then ends without it.
    std::thread::spawn(move || {
        let mut answer = String::new();
        let read = std::io::stdin().lock().take(LONGEST).read_line(&mut answer);
        // Nobody listens any more when the user has interrupted.
        let _ = sender.send(read.map(|count| (count > 0).then_some(answer)));
    });
    loop {
        match receiver.recv_timeout(LISTEN) {
            Ok(read) => {
                return read.map_err(|error| {
                    Error::new(Kind::Io, "standard input cannot be read").because(error)
                });
            }
            Err(RecvTimeoutError::Timeout) => interrupt::check()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Asks yes or no. A line of any standard input is an answer; its end is none.
///
/// # Errors
/// [`Kind::Usage`] when there is no answer, [`Kind::Failed`] when it is no, and as [`line`].
pub fn confirm(question: &str) -> Result<()> {
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let answer = line();
    // What a terminal shows of an answer ends the line.
    let ended = matches!(&answer, Ok(Some(line)) if line.ends_with('\n'));
    if !(std::io::stdin().is_terminal() && ended) {
        let _ = writeln!(std::io::stderr());
    }
    match answer? {
        None => Err(
            Error::new(Kind::Usage, "nothing was changed: there was no answer")
                .hint("give `--yes` when that is what you want"),
        ),
        Some(line) if is_yes(&line) => Ok(()),
        Some(_) => Err(Error::new(
            Kind::Failed,
            "nothing was changed: the answer was not yes",
        )),
    }
}

/// Whether an answer says yes.
pub fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Whoever sits at the terminal of this command, if anybody does. Each passphrase is asked for once.
#[derive(Default)]
pub struct Person {
    known: Mutex<BTreeMap<PathBuf, Secret>>,
}

impl Person {
    fn known(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Secret>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is typed unseen, away from those who must not wait.
///
/// # Errors
/// As [`passphrase::hidden_until`].
pub async fn hidden(question: String, until: Option<Instant>) -> Result<Secret> {
    let asked = tokio::task::spawn_blocking(move || passphrase::hidden_until(&question, until));
    asked
        .await
        .map_err(|error| Error::new(Kind::Io, "the terminal cannot be read").because(error))?
}

#[async_trait]
impl Unlock for Person {
    async fn passphrase(
        &self,
        file: &Path,
        attempt: usize,
        until: tokio::time::Instant,
    ) -> Result<Secret> {
        if attempt == 0
            && let Some(known) = self.known().get(file)
        {
            return Ok(known.clone());
        }
        let again = if attempt == 0 {
            ""
        } else {
            "That does not open it. "
        };
        let question = format!("{again}Passphrase of `{}`: ", file.display());
        let typed = hidden(question, Some(until.into_std())).await;
        let secret = typed.map_err(|error| match error.kind() {
            Kind::Unavailable => {
                Error::new(Kind::Unavailable, "there is no terminal to ask for it")
            }
            _ => error,
        })?;
        self.known().insert(file.to_owned(), secret.clone());
        Ok(secret)
    }
}

#[async_trait]
impl Ask for Person {
    async fn host_key(&self, host: &str, kind: &str, fingerprint: &str) -> Option<bool> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let question = format!(
            "Nobody says whose host key this is: {fingerprint} ({kind}) of `{host}`.\n\
             Compare it with the one that `ssh-keygen -lf` prints at the host. Is it the same? [yes, or the fingerprint] "
        );
        let fingerprint = fingerprint.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let _ = write!(std::io::stderr(), "{question}");
            let answer = line().ok().flatten().unwrap_or_default();
            let answer = answer.trim();
            answer.eq_ignore_ascii_case("yes") || answer == fingerprint
        });
        Some(asked.await.unwrap_or(false))
    }

    fn again(&self, option: &str) -> String {
        let words = std::env::args_os().map(|word| quote(&word.to_string_lossy()));
        let words: Vec<String> = words.collect();
        format!("{} {option}", words.join(" "))
    }
}
