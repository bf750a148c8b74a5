//! The words that follow the machine on the line of `ssh`, as OpenSSH reads them, for where there is no OpenSSH.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use forge_driver::{Error, Kind, Result};

use crate::remote::Forward;

/// OpenSSH's options (ssh(1)); those before a colon want a value. The list is that of `getopt` in OpenSSH's ssh.c.
const OPTIONS: &str = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVw:W:XYy";

/// Whether a word is an option, or several, and not a command.
pub fn is_option(word: &OsStr) -> bool {
    let bytes = word.as_bytes();
    bytes.len() > 1 && bytes[0] == b'-' && bytes != b"--"
}

/// When a session has a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// Where standard input is one and no command is given.
    #[default]
    Shell,
    /// `-t`: where standard input is one.
    Wished,
    /// `-tt`: always.
    Forced,
    /// `-T`: never.
    Never,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `-t`, `-T`
    pub terminal: Terminal,
    /// `-N`: no session, for forwarded ports alone.
    pub no_session: bool,
    /// `-n`: nothing on standard input.
    pub no_input: bool,
    /// `-v`
    pub verbose: bool,
    /// `-l`
    pub user: Option<String>,
    /// `-L`
    pub forwards: Vec<Forward>,
    /// The line that the remote shell is given: the words with blanks between, as ssh(1) does.
    pub command: Option<Vec<u8>>,
}

impl Asked {
    /// Reads the words behind the machine's name.
    ///
    /// # Errors
    /// [`Kind::Usage`] for an option that this program has not, by its name.
    pub fn read(words: &[OsString]) -> Result<Self> {
        let mut asked = Self::default();
        let mut words = words.iter();
        let mut command: Vec<&[u8]> = Vec::new();
        while let Some(word) = words.next() {
            if !is_option(word) {
                if word != "--" {
                    command.push(word.as_bytes());
                }
                break;
            }
            let mut letters = &word.as_bytes()[1..];
            while let Some((letter, rest)) = letters.split_first() {
                letters = rest;
                let letter = char::from(*letter);
                if !wants_value(letter)? {
                    asked.switch(letter)?;
                    continue;
                }
                let value = if letters.is_empty() {
                    let next = words.next().ok_or_else(|| {
                        Error::new(
                            Kind::Usage,
                            format!("the option `-{letter}` of ssh wants a value"),
                        )
                    })?;
                    next.as_bytes()
                } else {
                    std::mem::take(&mut letters)
                };
                asked.value(letter, OsStr::from_bytes(value))?;
            }
        }
        command.extend(words.map(|word| word.as_bytes()));
        asked.command = (!command.is_empty()).then(|| command.join(&b' '));
        Ok(asked)
    }

    fn switch(&mut self, letter: char) -> Result<()> {
        match letter {
            't' if self.terminal == Terminal::Wished => self.terminal = Terminal::Forced,
            't' => self.terminal = Terminal::Wished,
            'T' => self.terminal = Terminal::Never,
            'N' => self.no_session = true,
            'n' => self.no_input = true,
            'v' => self.verbose = true,
            // What they ask for is so.
            '2' | '4' | 'a' | 'k' | 'q' | 'x' => {}
            _ => return Err(lacking(letter)),
        }
        Ok(())
    }

    fn value(&mut self, letter: char, value: &OsStr) -> Result<()> {
        let text = || {
            let text = OsString::from_vec(value.as_bytes().to_vec());
            text.into_string().map_err(|_| {
                Error::new(Kind::Usage, format!("the value of `-{letter}` is no text"))
            })
        };
        match letter {
            'l' => self.user = Some(text()?),
            'L' => self.forwards.push(text()?.parse()?),
            _ => return Err(lacking(letter)),
        }
        Ok(())
    }
}

/// Whether the option wants a value.
fn wants_value(letter: char) -> Result<bool> {
    let unknown = || Error::new(Kind::Usage, format!("`-{letter}` is not an option of ssh"));
    let at = match letter {
        ':' => None,
        letter => OPTIONS.find(letter),
    };
    let rest = &OPTIONS[at.ok_or_else(unknown)? + 1..];
    Ok(rest.starts_with(':'))
}

fn lacking(letter: char) -> Error {
    Error::new(
        Kind::Usage,
        format!("the option `-{letter}` of ssh needs OpenSSH's own program"),
    )
    .hint(
        "install openssh-client; it is used where it is installed and `--native-ssh` is not given",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Asked> {
        let words: Vec<OsString> = line.split_terminator(' ').map(OsString::from).collect();
        Asked::read(&words)
    }

    fn asked(line: &str) -> Asked {
        read(line).unwrap_or_else(|error| panic!("{line}: {}", error.line()))
    }

    #[test]
    fn words_are_read_as_openssh_reads_them() {
        assert_eq!(asked(""), Asked::default());
        for (line, command) in [
            ("ls -l", Some("ls -l")),
            ("-- ls -l", Some("ls -l")),
            ("-q -- -x", Some("-x")),
            ("-qn ls -- -D 1", Some("ls -- -D 1")),
            ("- x", Some("- x")),
            ("-N", None),
            ("--", None),
        ] {
            let read = asked(line).command;
            assert_eq!(read.as_deref(), command.map(str::as_bytes), "{line}");
        }
        let two = asked("-NL 8080:web:80 -L[::1]:1:[::2]:3 -lroot -vT");
        assert_eq!(two.forwards.len(), 2);
        assert_eq!(two.user.as_deref(), Some("root"));
        assert!(two.no_session && two.verbose && two.terminal == Terminal::Never);
        assert_eq!(asked("-t").terminal, Terminal::Wished);
        assert_eq!(asked("-tt ls").terminal, Terminal::Forced);
        assert_eq!(asked("-t -t").terminal, Terminal::Forced);
    }

    #[test]
    fn what_is_lacking_is_named() {
        for (line, letter) in [
            ("-D 1080", 'D'),
            ("-A", 'A'),
            ("-NR 1:x:2", 'R'),
            ("-C ls", 'C'),
            ("-X", 'X'),
            ("-o Port=7 ls", 'o'),
            ("-p 7", 'p'),
            ("-W x:1", 'W'),
        ] {
            let error = read(line).expect_err(line);
            assert_eq!(error.kind(), Kind::Usage, "{line}");
            assert!(
                error.message().contains(&format!("`-{letter}`")),
                "{}",
                error.message()
            );
            assert!(
                error
                    .deepest_hint()
                    .is_some_and(|hint| hint.contains("openssh-client"))
            );
        }
        for line in ["-z", "-:", "-L", "-L 80", "-L x:y:z"] {
            assert_eq!(read(line).expect_err(line).kind(), Kind::Usage, "{line}");
        }
    }
}
