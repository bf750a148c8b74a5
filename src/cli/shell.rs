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
    fn the_hint_of_a_posix_shell_is_two_comments() {
        assert_eq!(
            Shell::Bash.hint("forge env n1"),
            "# Run this command to configure your shell: \n# eval $(forge env n1)"
        );
    }
}
