//! Command lines as docker-machine read them, in the form that the parser of this program reads.
//!
//! docker-machine's were read by Go's package `flag` (<https://pkg.go.dev/flag#hdr-Command_line_flag_syntax>): one dash is
//! as good as two before a name of any length, a switch may be given a value (`--debug=true`), and the word after an
//! option that wants a value is its value, whatever it begins with.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// A command line, rewritten.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Its words.
    pub words: Vec<OsString>,
    /// The command that it names, the innermost one; empty where it names none.
    pub command: String,
}

/// Rewrites a command line, the program's name first, for the parser of `whole`. Words that it does not know stay as
/// they are: the parser judges them. So does all that follows `--` or the machine of an `ssh`: it is for another program.
pub fn rewritten(whole: &Command, words: Vec<OsString>) -> Rewritten {
    let mut words = words.into_iter();
    let mut done: Vec<OsString> = words.next().into_iter().collect();
    let mut command = whole;
    let mut named = "";
    while let Some(word) = words.next() {
        if word == "--" {
            done.push(word);
            break;
        }
        let Some(flag) = flag(&word) else {
            let inner = command.find_subcommand(&word);
            done.push(word);
            match inner {
                Some(inner) => {
                    command = inner;
                    named = inner.get_name();
                }
                None if named == "ssh" => break,
                None => {}
            }
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        match Known::find(whole, command, name) {
            Some(known) => done.extend(known.said(value, &mut words)),
            None => done.push(word),
        }
    }
    done.extend(words);
    Rewritten {
        words: done,
        command: named.to_owned(),
    }
}

/// Puts `--` behind the machine of an `ssh`: what follows it is for another program, also where it looks like an option
/// of this one.
pub fn sealed(whole: &Command, mut words: Vec<OsString>) -> Vec<OsString> {
    let mut command = whole;
    let mut at = 1;
    while let Some(word) = words.get(at) {
        at += 1;
        if word == "--" {
            break;
        }
        if flag(word).is_some() {
            at += usize::from(wants_next(whole, command, word));
        } else if command.get_name() == "ssh" {
            // Its help is this program's all the same.
            if words.get(at).is_some_and(|word| word != "--help") {
                words.insert(at, "--".into());
            }
            break;
        } else {
            match whole.find_subcommand(word) {
                Some(inner) if inner.get_name() == "ssh" => command = inner,
                _ => break,
            }
        }
    }
    words
}

/// Whether an option, as the parser reads it, takes the next word for its value.
fn wants_next(whole: &Command, command: &Command, word: &OsStr) -> bool {
    let Some(text) = word.to_str() else {
        return false;
    };
    let takes = |name: &str| {
        let globals = whole
            .get_arguments()
            .filter(|option| option.is_global_set());
        let option = command
            .get_arguments()
            .chain(globals)
            .find(|option| form(option, name).is_some());
        option.is_some_and(|option| {
            option.get_action().takes_values() && !option.is_require_equals_set()
        })
    };
    match text.strip_prefix("--") {
        Some(long) => !long.contains('=') && takes(long),
        None => {
            let letters = text.trim_start_matches('-');
            let taking = letters
                .char_indices()
                .find(|(_, letter)| takes(&letter.to_string()));
            // What follows it in the same word is the value.
            taking.is_some_and(|(at, letter)| at + letter.len_utf8() == letters.len())
        }
    }
}

/// What follows the dash, or the two, of a word that begins so.
fn flag(word: &OsStr) -> Option<&str> {
    let rest = word.to_str()?.strip_prefix('-')?;
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    (!rest.is_empty()).then_some(rest)
}

/// An option that the parser knows.
struct Known {
    /// As the parser reads it: `--name`, or `-n`.
    form: String,
    takes: Takes,
}

/// What an option wants besides its name.
#[derive(Clone, Copy)]
enum Takes {
    /// Nothing: it is a switch.
    Nothing,
    /// Whether, after `=`; a switch that can be switched off.
    Whether,
    /// A value.
    Value,
}

impl Known {
    /// The option of this name: of the command, or of all commands.
    fn find(whole: &Command, command: &Command, name: &str) -> Option<Self> {
        let switch = |form: &str| {
            Some(Self {
                form: form.to_owned(),
                takes: Takes::Nothing,
            })
        };
        match name {
            "help" => return switch("--help"),
            "h" => return switch("-h"),
            "version" | "v" if command.get_name() == whole.get_name() => {
                return switch("--version");
            }
            _ => {}
        }
        let global = whole
            .get_arguments()
            .filter(|option| option.is_global_set());
        let (form, option) = command
            .get_arguments()
            .chain(global)
            .find_map(|option| Some((form(option, name)?, option)))?;
        let takes = if !option.get_action().takes_values() {
            Takes::Nothing
        } else if option.is_require_equals_set() {
            Takes::Whether
        } else {
            Takes::Value
        };
        Some(Self { form, takes })
    }

    /// The words for it, with the value that stood behind `=`, or else the next word where it wants one.
    fn said(
        self,
        value: Option<&str>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Option<OsString> {
        let form = self.form;
        let with = |value: &str| Some(OsString::from(format!("{form}={value}")));
        match (self.takes, value) {
            (Takes::Nothing | Takes::Whether, None) => Some(form.into()),
            (Takes::Nothing, Some(value)) => match truth(value) {
                Some(true) => Some(form.into()),
                Some(false) => None,
                None => with(value),
            },
            (Takes::Whether, Some(value)) => match truth(value) {
                Some(truth) => with(&truth.to_string()),
                None => with(value),
            },
            (Takes::Value, Some(value)) => with(value),
            (Takes::Value, None) => {
                let mut word = OsString::from(form);
                if let Some(value) = rest.next() {
                    word.push("=");
                    word.push(value);
                }
                Some(word)
            }
        }
    }
}

/// How the parser reads `option` when it is called `name`; `None` when it is not.
fn form(option: &Arg, name: &str) -> Option<String> {
    let long = option.get_long() == Some(name)
        || option
            .get_all_aliases()
            .is_some_and(|aliases| aliases.contains(&name));
    if long {
        return Some(format!("--{name}"));
    }
    let mut letters = name.chars();
    let short = option.get_short()? == letters.next()? && letters.next().is_none();
    short.then(|| format!("-{name}"))
}

/// A truth as Go writes it (`strconv.ParseBool`).
pub fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn whole() -> Command {
        let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let option = |name: &'static str| Arg::new(name).long(name);
        Command::new("docker-machine")
            .arg(switch("debug").short('D').global(true))
            .arg(option("storage-path").short('s').global(true))
            .subcommand(
                Command::new("create")
                    .arg(Arg::new("names").num_args(1..))
                    .arg(option("driver").short('d'))
                    .arg(option("engine-label").action(ArgAction::Append))
                    .arg(option("virtualbox-cpu-count").visible_alias("virtualbox-cpus"))
                    .arg(
                        option("virtualbox-no-dns-proxy")
                            .num_args(0..=1)
                            .require_equals(true),
                    ),
            )
            .subcommand(
                Command::new("rm")
                    .arg(Arg::new("names").num_args(1..))
                    .arg(switch("yes").short('y'))
                    .arg(switch("force").short('f')),
            )
            .subcommand(
                Command::new("ssh")
                    .arg(Arg::new("name"))
                    .arg(switch("tty").short('t')),
            )
            .subcommand(
                Command::new("cluster").subcommand(Command::new("up").arg(switch("dry-run"))),
            )
    }

    fn split(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_go_reads_becomes_what_the_parser_reads() {
        for (before, after) in [
            (
                "create -driver none -engine-label a=b n1",
                "create --driver=none --engine-label=a=b n1",
            ),
            ("create -d virtualbox n1", "create -d=virtualbox n1"),
            ("create --d=virtualbox n1", "create -d=virtualbox n1"),
            (
                "create n1 -virtualbox-cpu-count -1",
                "create n1 --virtualbox-cpu-count=-1",
            ),
            (
                "create --virtualbox-cpus -1 n1",
                "create --virtualbox-cpus=-1 n1",
            ),
            (
                "create -virtualbox-no-dns-proxy n1",
                "create --virtualbox-no-dns-proxy n1",
            ),
            (
                "create --virtualbox-no-dns-proxy=T n1",
                "create --virtualbox-no-dns-proxy=true n1",
            ),
            ("create --driver", "create --driver"),
            ("rm --y --force=true n1", "rm -y --force n1"),
            ("rm -f=0 -y=1 n1", "rm -y n1"),
            ("-debug=false -s /x rm n1", "-s=/x rm n1"),
            ("rm -storage-path /x -D n1", "rm --storage-path=/x -D n1"),
            ("-v", "--version"),
            ("-version", "--version"),
            ("-help", "--help"),
            ("rm -h", "rm -h"),
            ("cluster up -dry-run", "cluster up --dry-run"),
        ] {
            let line = split(&format!("docker-machine {before}"));
            let expected = split(&format!("docker-machine {after}"));
            assert_eq!(rewritten(&whole(), line).words, expected, "{before}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_for_this_program_stays_as_it_is() {
        for line in [
            "docker-machine",
            "docker-machine frob -debug2 -x",
            "docker-machine create -dvirtualbox n1",
            "docker-machine rm -v ---yes - n1",
            "docker-machine rm --force=maybe n1",
            "docker-machine rm -y -- -force",
            "docker-machine ssh n1 -debug -tty=true ls --force=true",
        ] {
            assert_eq!(
                rewritten(&whole(), split(line)).words,
                split(line),
                "{line}"
            );
        }
        let line = split("docker-machine ssh -tty n1 -tty");
        let expected = split("docker-machine ssh --tty n1 -tty");
        assert_eq!(rewritten(&whole(), line).words, expected);
    }

    #[test]
    fn what_follows_the_machine_of_an_ssh_is_sealed() {
        for (before, after) in [
            ("ssh n1 -D 1080", "ssh n1 -- -D 1080"),
            ("ssh n1 -- exit 42", "ssh n1 -- -- exit 42"),
            ("ssh -t n1 ls", "ssh -t n1 -- ls"),
            ("-s /x ssh -D n1 -D 1080", "-s /x ssh -D n1 -- -D 1080"),
            ("ssh -Ds /x n1 -N", "ssh -Ds /x n1 -- -N"),
            ("ssh -s/x n1 -N", "ssh -s/x n1 -- -N"),
            (
                "ssh --storage-path=/x n1 -N",
                "ssh --storage-path=/x n1 -- -N",
            ),
            (
                "ssh --storage-path /x n1 -N",
                "ssh --storage-path /x n1 -- -N",
            ),
            ("ssh n1", "ssh n1"),
            ("ssh n1 --help", "ssh n1 --help"),
            ("ssh n1 ls --help", "ssh n1 -- ls --help"),
            ("ssh", "ssh"),
            ("ssh -- n1 -N", "ssh -- n1 -N"),
            ("rm ssh -y", "rm ssh -y"),
            ("cluster ssh -t", "cluster ssh -t"),
        ] {
            let line = split(&format!("forge {before}"));
            assert_eq!(
                sealed(&whole(), line),
                split(&format!("forge {after}")),
                "{before}"
            );
        }
    }

    #[test]
    fn the_command_is_the_innermost_one() {
        let named = |line: &str| rewritten(&whole(), split(line)).command;
        assert_eq!(named("docker-machine -s rm create n1"), "create");
        assert_eq!(named("docker-machine cluster up"), "up");
        assert_eq!(named("docker-machine frob"), "");
    }
}
