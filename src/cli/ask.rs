//! What only a person knows, asked for at the terminal: whether a host key is the right one, what opens a key.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;

use async_trait::async_trait;
use forge::machine::adopt::Ask;
use forge::playbook::quote;
use forge::remote::login::Unlock;
use forge::secret::Secret;
use forge_driver::{Context, Error, Kind, Result};

/// Whoever sits at the terminal of this command, if anybody does.
pub struct Person;

#[async_trait]
impl Unlock for Person {
    async fn passphrase(&self, _: &Path) -> Option<Secret> {
        None
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
            let mut answer = String::new();
            let read = std::io::stdin().read_line(&mut answer);
            let answer = answer.trim();
            read.is_ok() && (answer.eq_ignore_ascii_case("yes") || answer == fingerprint)
        });
        Some(asked.await.unwrap_or(false))
    }

    fn again(&self, option: &str) -> String {
        let words: Vec<String> = std::env::args().map(|word| quote(&word)).collect();
        format!("{} {option}", words.join(" "))
    }
}

/// The first line of a file, or of standard input: what `sudo` asks for.
///
/// # Errors
/// When there is none.
pub fn first_line(path: Option<&Path>) -> Result<Secret> {
    let (shown, text) = match path {
        Some(path) => {
            let shown = format!("`{}`", path.display());
            let text = fs::read_to_string(path).or_fail(Kind::Io, || {
                format!("failed to read the password in {shown}")
            })?;
            (shown, text)
        }
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_line(&mut text)
                .or_fail(Kind::Io, || {
                    "failed to read the password from standard input".to_owned()
                })?;
            ("standard input".to_owned(), text)
        }
    };
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(Error::new(
            Kind::Usage,
            format!("there is no password in {shown}"),
        )),
    }
}
