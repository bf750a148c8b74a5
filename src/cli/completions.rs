//! `forge completions`
//!
//! What a shell completes follows from the tree of commands alone, but for the names of machines: for those the scripts
//! ask `forge ls -q`, which reads the store and calls no driver.

use std::io::Write;

use clap::builder::PossibleValuesParser;
use clap::{Args, Command, ValueEnum};
use clap_complete::aot;
use forge_driver::{Error, Kind, Result};

use super::{Outcome, Session, tree};

/// Print what makes a shell complete commands, options and the names of machines
///
/// bash: `forge completions bash > ~/.local/share/bash-completion/completions/forge`. zsh: into a file `_forge` in a folder of
/// $fpath. fish: `forge completions fish > ~/.config/fish/completions/forge.fish`. PowerShell: into a file that $PROFILE reads.
#[derive(Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// A shell that can be taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash, from 4 on
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    #[value(alias = "pwsh")]
    Powershell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let text = script(self.shell, tree::everything(session.persona()))?;
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::new(Kind::Io, "failed to print the script").because(error))
            }
            _ => Ok(Outcome::Done),
        }
    }
}

/// What stands in the generated script where the names of machines belong.
const MARK: &str = "__machines__";

/// The script for a shell.
fn script(shell: Shell, whole: Command) -> Result<String> {
    let name = whole.get_name().to_owned();
    let asking: Vec<String> = whole
        .get_subcommands()
        .filter(|command| asks_for_machines(command))
        .map(|command| command.get_name().to_owned())
        .collect();
    let mut marked = whole.mut_subcommands(|command| {
        if asks_for_machines(&command) {
            command.mut_args(|argument| {
                if names_machines(&argument) {
                    argument
                        .default_value(None)
                        .value_parser(PossibleValuesParser::new([MARK]))
                } else {
                    argument
                }
            })
        } else {
            command
        }
    });
    let generator = match shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
        Shell::Powershell => aot::Shell::PowerShell,
    };
    let mut bytes = Vec::new();
    aot::generate(generator, &mut marked, &name, &mut bytes);
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::new(Kind::Invalid, "the script is no text").because(error))?;
    Ok(match shell {
        Shell::Bash => bash(&name, &text),
        Shell::Zsh => zsh(&name, &text),
        Shell::Fish => fish(&name, &text, &asking),
        Shell::Powershell => powershell(&name, &text, &asking),
    })
}

/// Whether a command is about machines that there are.
fn asks_for_machines(command: &Command) -> bool {
    command.get_name() != "create" && command.get_arguments().any(names_machines)
}

fn names_machines(argument: &clap::Arg) -> bool {
    argument.is_positional() && ["name", "names"].contains(&argument.get_id().as_str())
}

/// A name for functions.
fn word(name: &str) -> String {
    name.replace('-', "_")
}

/// Options are offered only once a dash is typed: else a lone machine's name could not be completed.
fn bash(name: &str, text: &str) -> String {
    let (word, generated) = (word(name), name.replace('-', "__"));
    let text = text.replace(MARK, &format!("$(_{word}_machines)"));
    format!(
        r#"{text}
_{word}_machines() {{
    "${{COMP_WORDS[0]/#\~/$HOME}}" ls -q 2>/dev/null
}}

_{word}_offer() {{
    _{generated} "$@"
    [[ $2 == -* ]] && return
    local candidate words=()
    for candidate in "${{COMPREPLY[@]}}"; do
        [[ $candidate == -* ]] || words+=("$candidate")
    done
    [[ ${{#words[@]}} -eq 0 ]] || COMPREPLY=("${{words[@]}}")
}}

complete -F _{word}_offer -o bashdefault -o default {name}
"#
    )
}

fn zsh(name: &str, text: &str) -> String {
    let word = word(name);
    let text = text.replace(&format!("({MARK})"), &format!("_{word}_machines"));
    let function = format!(
        r#"_{word}_machines() {{
    local -a machines
    machines=(${{(f)"$({name} ls -q 2>/dev/null)"}})
    _describe -t machines machine machines
}}
"#
    );
    // The script ends by running itself: what it calls has to be there before.
    match text.split_once("\nautoload -U is-at-least\n") {
        Some((before, after)) => {
            format!("{before}\nautoload -U is-at-least\n\n{function}{after}")
        }
        None => text,
    }
}

fn fish(name: &str, text: &str, asking: &[String]) -> String {
    let using = format!("__fish_{}_using_subcommand", word(name));
    let lines: String = asking
        .iter()
        .map(|command| {
            format!(
                "complete -c {name} -n \"{using} {command}\" -f -a \"({name} ls -q 2>/dev/null)\"\n"
            )
        })
        .collect();
    format!("{text}{lines}")
}

fn powershell(name: &str, text: &str, asking: &[String]) -> String {
    asking.iter().fold(text.to_owned(), |text, command| {
        let case = format!("        '{name};{command}' {{\n");
        let names = format!(
            "            & '{name}' ls -q 2>$null | ForEach-Object {{ [CompletionResult]::new($_, $_, [CompletionResultType]::ParameterValue, $_) }}\n"
        );
        text.replacen(&case, &format!("{case}{names}"), 1)
    })
}
