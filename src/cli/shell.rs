//! Environment variables in the words of each shell, as docker-machine printed them.

use std::path::Path;

use clap::ValueEnum;

/// A shell that `forge env` speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash, zsh, dash and every other POSIX shell
    #[value(alias = "zsh", alias = "sh", alias = "dash", alias = "ksh")]
    Bash,
    /// fish
    Fish,
    /// PowerShell
    #[value(alias = "pwsh")]
    Powershell,
    /// Windows' cmd
    Cmd,
    /// tcsh and csh
    #[value(alias = "csh")]
    Tcsh,
    /// Emacs
    Emacs,
}

impl Shell {
    /// The user's shell, as `$SHELL` says.
    pub fn of_user() -> Self {
        let path = std::env::var("SHELL").unwrap_or_default();
        match Path::new(&path).file_name().and_then(|name| name.to_str()) {
            Some("fish") => Self::Fish,
            Some("tcsh" | "csh") => Self::Tcsh,
            Some("pwsh" | "powershell") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// The line that sets a variable.
    pub fn set(self, name: &str, value: &str) -> String {
        let posix = escaped(value, &['\\', '"', '$', '`'], '\\');
        match self {
            Self::Bash => format!("export {name}=\"{posix}\""),
            Self::Fish => format!(
                "set -gx {name} \"{}\";",
                escaped(value, &['\\', '"', '$'], '\\')
            ),
            Self::Powershell => format!(
                "$Env:{name} = \"{}\"",
                escaped(value, &['`', '"', '$'], '`')
            ),
            Self::Cmd => format!("SET {name}={value}"),
            Self::Tcsh => format!("setenv {name} \"{posix}\";"),
            Self::Emacs => format!(
                "(setenv \"{name}\" \"{}\")",
                escaped(value, &['\\', '"'], '\\')
            ),
        }
    }

    /// The line that unsets a variable.
    pub fn unset(self, name: &str) -> String {
        match self {
            Self::Bash => format!("unset {name}"),
            Self::Fish => format!("set -e {name};"),
            Self::Powershell => format!("Remove-Item Env:\\\\{name}"),
            Self::Cmd => format!("SET {name}="),
            Self::Tcsh => format!("unsetenv {name};"),
            Self::Emacs => format!("(setenv \"{name}\" nil)"),
        }
    }

    /// A line that ends by itself, for lines of several kinds: an `eval $(…)` without quotes makes one line of all, in
    /// which `unset A` would take the words of the next for names of its own.
    pub fn ended(self, line: &str) -> String {
        match self {
            Self::Bash => format!("{line};"),
            _ => line.to_owned(),
        }
    }

    /// Two lines of comment that say how to use the rest.
    pub fn hint(self, command: &str) -> String {
        let how = "Run this command to configure your shell: ";
        match self {
            Self::Bash => format!("# {how}\n# eval $({command})"),
            Self::Fish => format!("# {how}\n# eval ({command})"),
            Self::Powershell => format!("# {how}\n# & {command} | Invoke-Expression"),
            Self::Cmd => {
                format!("REM {how}\nREM \t@FOR /f \"tokens=*\" %i IN ('{command}') DO @%i")
            }
            Self::Tcsh => format!(": {how}\n: eval `{command}`"),
            Self::Emacs => format!(
                ";; {how}\n;; (with-temp-buffer (shell-command \"{command}\" (current-buffer)) (eval-buffer))"
            ),
        }
    }
}

/// The command line as it was given, for a hint that repeats it: on one line, whatever is in it, since shells are to
/// evaluate what is around it.
pub fn command_line() -> String {
    let words = std::env::args_os();
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// A word in quotes where blanks or backslashes would make several of it; docker-machine did so with the first one.
fn quoted(word: &str) -> String {
    let word: String = word
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if word.contains([' ', '\\']) {
        format!("\"{word}\"")
    } else {
        word
    }
}

/// The shell of this name. docker-machine printed the lines of a POSIX shell for every name that it did not know.
///
/// # Errors
/// None: the signature is that of a parser of values.
pub fn of_any_name(name: &str) -> Result<Shell, std::convert::Infallible> {
    Ok(Shell::from_str(name, false).unwrap_or(Shell::Bash))
}

fn escaped(value: &str, special: &[char], mark: char) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        if special.contains(&c) {
            text.push(mark);
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_has_its_own_words() {
        assert_eq!(Shell::Bash.set("K", "v"), "export K=\"v\"");
        assert_eq!(Shell::Fish.set("K", "v"), "set -gx K \"v\";");
        assert_eq!(Shell::Powershell.set("K", "v"), "$Env:K = \"v\"");
        assert_eq!(Shell::Cmd.set("K", "v"), "SET K=v");
        assert_eq!(Shell::Tcsh.set("K", "v"), "setenv K \"v\";");
        assert_eq!(Shell::Emacs.unset("K"), "(setenv \"K\" nil)");
        assert_eq!(Shell::Bash.unset("K"), "unset K");
    }

    #[test]
    fn a_value_cannot_run_anything() {
        assert_eq!(
            Shell::Bash.set("K", "a$(id)`id`\""),
            "export K=\"a\\$(id)\\`id\\`\\\"\""
        );
    }

    #[test]
    fn a_word_of_the_hint_stays_one_word_on_one_line() {
        assert_eq!(quoted("docker-machine"), "docker-machine");
        assert_eq!(quoted("/opt/my tools/forge"), "\"/opt/my tools/forge\"");
        assert_eq!(quoted("a\nrm -r b"), "\"a rm -r b\"");
    }

    #[test]
    fn a_shell_of_any_other_name_is_a_posix_one() {
        for (name, shell) in [
            ("fish", Shell::Fish),
            ("zsh", Shell::Bash),
            ("xonsh", Shell::Bash),
            ("", Shell::Bash),
        ] {
            assert_eq!(of_any_name(name), Ok(shell), "{name}");
        }
    }

    #[test]
    fn the_hint_of_a_posix_shell_is_two_comments() {
        assert_eq!(
            Shell::Bash.hint("forge env n1"),
            "# Run this command to configure your shell: \n# eval $(forge env n1)"
        );
    }
}
