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

/// What stands in the generated script where the names of machines belong …
const MARK: &str = "__machines__";
/// … and where they belong with a colon behind them.
const PLACE: &str = "__places__";

/// What a command wants to know of the machines that there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Their names.
    Names,
    /// Their names before the paths that are there.
    Places,
}

impl Asks {
    /// What a command wants.
    fn of(command: &Command) -> Option<Self> {
        match command.get_name() {
            "create" => None,
            "scp" | "mount" => Some(Self::Places),
            _ => command
                .get_arguments()
                .any(|argument| Self::Names.by(argument))
                .then_some(Self::Names),
        }
    }

    /// Whether this argument takes it.
    fn by(self, argument: &clap::Arg) -> bool {
        let id = argument.get_id().as_str();
        argument.is_positional() && (self == Self::Places || ["name", "names"].contains(&id))
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Names => MARK,
            Self::Places => PLACE,
        }
    }
}

/// A command without what its help does not show: nobody is offered what nobody is told of.
fn shown(command: &Command) -> Command {
    // A script is made once in a process: what is leaked is as large as the names are.
    let leaked = |text: &str| &*text.to_owned().leak();
    let options = command.get_arguments().filter(|one| !one.is_hide_set());
    let inner = command.get_subcommands().filter(|one| !one.is_hide_set());
    let aliases: Vec<&str> = command.get_visible_aliases().map(leaked).collect();
    let mut whole = Command::new(leaked(command.get_name()))
        .args(options.cloned())
        .subcommands(inner.map(shown))
        .visible_aliases(aliases)
        .disable_help_flag(command.is_disable_help_flag_set())
        .disable_version_flag(command.is_disable_version_flag_set())
        .disable_help_subcommand(command.is_disable_help_subcommand_set());
    if let Some(about) = command.get_about() {
        whole = whole.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        whole = whole.version(leaked(version));
    }
    whole
}

/// The script for a shell.
fn script(shell: Shell, whole: Command) -> Result<String> {
    let name = whole.get_name().to_owned();
    let whole = shown(&whole);
    let asking: Vec<(String, Asks)> = whole
        .get_subcommands()
        .filter_map(|command| Some((command.get_name().to_owned(), Asks::of(command)?)))
        .collect();
    let mut marked = whole.mut_subcommands(|command| {
        let Some(asks) = Asks::of(&command) else {
            return command;
        };
        command.mut_args(|argument| {
            if asks.by(&argument) {
                argument
                    .default_value(None)
                    .value_parser(PossibleValuesParser::new([asks.mark()]))
            } else {
                argument
            }
        })
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

/// A name for functions.
fn word(name: &str) -> String {
    name.replace('-', "_")
}

/// Options are offered only once a dash is typed: else a lone machine's name could not be completed.
fn bash(name: &str, text: &str) -> String {
    let (word, generated) = (word(name), name.replace('-', "__"));
    let text = text.replace(MARK, &format!("$(_{word}_machines)"));
    let text = text.replace(PLACE, &format!("$(_{word}_places)"));
    format!(
        r#"{text}
_{word}_machines() {{
    "${{COMP_WORDS[0]/#\~/$HOME}}" ls -q 2>/dev/null
}}

_{word}_places() {{
    local name
    while read -r name; do
        printf '%s:\n' "$name"
    done < <(_{word}_machines)
}}

_{word}_offer() {{
    # What follows a colon is a path of a machine.
    if [[ ${{COMP_WORDS[COMP_CWORD]}} == : || ${{COMP_WORDS[COMP_CWORD - 1]}} == : ]]; then
        # … and no file of this host.
        compopt +o bashdefault +o default 2>/dev/null
        COMPREPLY=()
        return
    fi
    _{generated} "$@"
    [[ $2 == -* ]] && return
    local candidate words=()
    for candidate in "${{COMPREPLY[@]}}"; do
        [[ $candidate == -* ]] || words+=("$candidate")
    done
    [[ ${{#words[@]}} -eq 0 ]] || COMPREPLY=("${{words[@]}}")
    if [[ ${{words[0]}} == *: ]]; then
        compopt -o nospace 2>/dev/null
    fi
}}

complete -F _{word}_offer -o bashdefault -o default {name}
"#
    )
}

fn zsh(name: &str, text: &str) -> String {
    let word = word(name);
    let text = text.replace(&format!("({MARK})"), &format!("_{word}_machines"));
    let text = text.replace(&format!("({PLACE})"), &format!("_{word}_places"));
    let function = format!(
        r#"_{word}_machines() {{
    local -a machines
    machines=(${{(f)"$({name} ls -q 2>/dev/null)"}})
    _describe -t machines machine machines
}}
_{word}_places() {{
    local -a machines
    if compset -P '*:'; then
        _message 'a path there'
        return
    fi
    machines=(${{(f)"$({name} ls -q 2>/dev/null)"}})
    _describe -t machines machine machines -q -S :
    _files
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

fn fish(name: &str, text: &str, asking: &[(String, Asks)]) -> String {
    let using = format!("__fish_{}_using_subcommand", word(name));
    let lines: String = asking
        .iter()
        .map(|(command, asks)| {
            let (only, behind) = match asks {
                Asks::Names => ("-f ", ""),
                // A file of this host may stand there, too.
                Asks::Places => ("", " | string replace -r '\\$' ':'"),
            };
            format!(
                "complete -c {name} -n \"{using} {command}\" {only}-a \"({name} ls -q 2>/dev/null{behind})\"\n"
            )
        })
        .collect();
    format!("{text}{lines}")
}

fn powershell(name: &str, text: &str, asking: &[(String, Asks)]) -> String {
    asking.iter().fold(text.to_owned(), |text, (command, asks)| {
        let offer = match asks {
            Asks::Names => "$_",
            Asks::Places => "\"${_}:\"",
        };
        let case = format!("        '{name};{command}' {{\n");
        let names = format!(
            "            & '{name}' ls -q 2>$null | ForEach-Object {{ [CompletionResult]::new({offer}, $_, [CompletionResultType]::ParameterValue, $_) }}\n"
        );
        text.replacen(&case, &format!("{case}{names}"), 1)
    })
}
