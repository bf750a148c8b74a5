//! Passphrases and other secrets that a person types: nothing of them shows.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forge::credentials::{Ask, Passphrases};
use forge::interrupt;
use forge::secret::Secret;
use forge_driver::{Context, Error, Kind, Result};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use super::report::note;

/// The variable that names the file with the passphrase.
pub const VARIABLE: &str = "FORGE_PASSPHRASE_FILE";

/// A new passphrase has at least this many characters: whoever has the file can try as many as they like.
const SHORTEST: usize = 8;
/// A terminal is read for this long.
const MOMENT: Duration = Duration::from_millis(200);
/// No secret is longer.
const LONGEST: u64 = 64 << 10;

/// The passphrases of one command: from a file, else from the terminal. Each is asked for once.
pub struct Typed {
    file: Option<PathBuf>,
    known: Mutex<Option<Secret>>,
}

impl Typed {
    /// From this file (`-` is standard input), else from the one that the environment names, else from the terminal.
    pub fn new(file: Option<PathBuf>) -> Self {
        let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        Self {
            file: file.or_else(|| variable().map(PathBuf::from)),
            known: Mutex::new(None),
        }
    }
}

impl Passphrases for Typed {
    fn passphrase(&self, what: &str, ask: Ask) -> Result<Secret> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = &*known {
            return Ok(secret.clone());
        }
        let secret = match (&self.file, ask) {
            (Some(file), _) => from_file(file, "passphrase")?,
            (None, Ask::Open) => hidden(&format!("Passphrase of {what}: "))?,
            (None, Ask::New) => {
                let first = hidden(&format!("New passphrase for {what}: "))?;
                if hidden("The same again: ")? != first {
                    return Err(Error::new(Kind::Usage, "the two passphrases differ"));
                }
                first
            }
        };
        if ask == Ask::New && secret.expose().chars().count() < SHORTEST {
            return Err(Error::new(
                Kind::Usage,
                format!("the passphrase has fewer than {SHORTEST} characters"),
            )
            .hint("whoever has the file can try as many as they like: take several words"));
        }
        Ok(known.insert(secret).clone())
    }
}

/// The first line of a file, or of standard input for `-`; `what` it holds.
///
/// # Errors
/// When there is none, or the file cannot be read.
pub fn from_file(path: &Path, what: &str) -> Result<Secret> {
    let text = if path == Path::new("-") {
        piped()?.expose().to_owned()
    } else {
        if fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o077 != 0) {
            note(&format!(
                "warning: others may read the {what}: `chmod 600 {}` keeps them out",
                path.display()
            ));
        }
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST).read_to_string(&mut text))
            .or_fail(Kind::Invalid, || {
                format!("failed to read the {what} in `{}`", path.display())
            })?;
        text
    };
    first_line(&text, what, &format!("`{}`", path.display()))
}

/// The first line of a text that was found there.
///
/// # Errors
/// [`Kind::Usage`] when it is empty.
pub fn first_line(text: &str, what: &str, found: &str) -> Result<Secret> {
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.into()),
        _ => Err(Error::new(
            Kind::Usage,
            format!("there is no {what} in {found}"),
        )),
    }
}

/// All of standard input, without the line end behind it.
///
/// # Errors
/// [`Kind::Usage`] when it is too long or no text.
pub fn piped() -> Result<Secret> {
    let mut text = String::new();
    std::io::stdin()
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .or_fail(Kind::Usage, || "failed to read standard input".to_owned())?;
    if text.len() as u64 > LONGEST {
        return Err(Error::new(
            Kind::Usage,
            "standard input has more than 64 KiB: that is no secret",
        ));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).into())
}

/// The terminal while it shows nothing, for as long as this lives: also while a panic unwinds.
struct Blind {
    terminal: File,
    before: Termios,
}

impl Blind {
    /// The terminal of this session, where somebody sits at it.
    fn enter() -> Result<Self> {
        let nobody = || {
            Error::new(Kind::Unavailable, "there is no terminal to ask on").hint(format!(
                "let `--passphrase-file` or {VARIABLE} name a file that holds it"
            ))
        };
        if !std::io::stderr().is_terminal() {
            return Err(nobody());
        }
        let terminal = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .map_err(|error| nobody().because(error))?;
        let failed = || "failed to hide what is typed".to_owned();
        let before = termios::tcgetattr(&terminal).or_fail(Kind::Io, failed)?;
        let mut blind = before.clone();
        // Bytes one by one, so that Ctrl-C is seen here and the terminal is put back before anything ends.
        blind.local_modes &= !(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        blind.special_codes[SpecialCodeIndex::VMIN] = 0;
        // In tenths of a second (termios(3)).
        blind.special_codes[SpecialCodeIndex::VTIME] = (MOMENT.as_millis() / 100) as u8;
        termios::tcsetattr(&terminal, OptionalActions::Flush, &blind).or_fail(Kind::Io, failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Blind {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
        let _ = self.terminal.write_all(b"\n");
    }
}

/// Asks for a line that does not show while it is typed.
///
/// # Errors
/// [`Kind::Unavailable`] when there is no terminal, [`Kind::Interrupted`] on Ctrl-C.
pub fn hidden(question: &str) -> Result<Secret> {
    hidden_until(question, None)
}

/// The same, and nobody waits longer than until this moment.
///
/// # Errors
/// As [`hidden`]; [`Kind::Timeout`] when nothing was entered by then.
pub fn hidden_until(question: &str, until: Option<Instant>) -> Result<Secret> {
    let mut blind = Blind::enter()?;
    let failed = || "failed to read from the terminal".to_owned();
    blind
        .terminal
        .write_all(question.as_bytes())
        .or_fail(Kind::Io, failed)?;
    let mut line = Vec::new();
    let mut gone = 0;
    loop {
        interrupt::check()?;
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Error::new(Kind::Timeout, "nothing was entered in time"));
        }
        let mut byte = [0];
        let asked = Instant::now();
        // Nothing for a moment is not the end: that is a byte of its own. A terminal that has gone has nothing at once.
        if blind.terminal.read(&mut byte).or_fail(Kind::Io, failed)? == 0 {
            gone = if asked.elapsed() < MOMENT / 2 {
                gone + 1
            } else {
                0
            };
            if gone > 20 {
                return Err(Error::new(Kind::Io, "the terminal has gone"));
            }
            continue;
        }
        match byte[0] {
            b'\r' | b'\n' => break,
            0x03 | 0x1c => {
                // No signal tells the rest of the command.
                interrupt::request();
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            0x04 if line.is_empty() => {
                return Err(Error::new(Kind::Usage, "nothing was typed"));
            }
            0x04 => break,
            0x15 => line.clear(),
            0x08 | 0x7f => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            other if (line.len() as u64) < LONGEST => line.push(other),
            _ => {}
        }
    }
    if line.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing was typed"));
    }
    String::from_utf8(line)
        .map(Secret::new)
        .map_err(|_| Error::new(Kind::Usage, "what was typed is no text"))
}
