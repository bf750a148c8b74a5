use std::fs;

use forge::registry;

use super::super::persona::Persona;
use super::super::tree;
use super::*;

/// What a file says.
fn said(text: &str) -> Result<Defaults> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    fs::write(&path, text).expect("written");
    let entries = file::read(&path, &|| tree::everything(Persona::Forge))?;
    Ok(Defaults { entries })
}

/// The parser for a line, with what a file says.
fn parsed(text: &str, line: &str) -> ArgMatches {
    let defaults = said(text).expect("settings");
    let words: Vec<&str> = line.split(' ').collect();
    let fresh = || tree::command(Persona::Forge, Some("qemu"), None);
    let first = fresh().try_get_matches_from(&words).expect("parses");
    let command = defaults
        .applied(fresh(), &path(&first))
        .expect("defaults")
        .unwrap_or_else(fresh);
    command.try_get_matches_from(&words).expect("parses again")
}

#[test]
fn a_table_of_a_command_counts_before_what_is_said_for_all() {
    let text = "timeout = 900\ndriver = \"libvirt\"\n[create]\ndriver = \"qemu\"\ntimeout = 800\n[cluster.up]\nmanagers = 5\n";
    let seconds = |line: &str| *parsed(text, line).get_one::<u64>("timeout").expect("one");
    assert_eq!(seconds("forge create"), 800);
    assert_eq!(seconds("forge ip"), 900);
    assert_eq!(seconds("forge ip --timeout 5"), 5);
    let driver = |line: &str, path: &[&str]| {
        let mut at = parsed(text, line);
        for _ in path {
            at = at.remove_subcommand().expect("a command").1;
        }
        at.get_one::<String>("driver").expect("one").clone()
    };
    assert_eq!(driver("forge create n1", &["create"]), "qemu");
    assert_eq!(driver("forge cluster up", &["cluster", "up"]), "libvirt");
    assert_eq!(driver("forge create -d x", &["create"]), "x");
}

#[test]
fn lists_switches_and_numbers_are_what_flags_would_be() {
    let text = "debug = true\n[create]\npublish = [\"80\", 8_080]\n[qemu]\nmemory = 0x800\ndisk-size = \"40G\"\n";
    let matches = parsed(text, "forge create n1");
    let (_, create) = matches.subcommand().expect("a command");
    assert!(create.get_flag("debug"));
    let ports: Vec<&String> = create.get_many("publish").expect("ports").collect();
    assert_eq!(ports, ["80", "8080"]);
    // What is typed stands instead of the list, not beside it.
    let typed = parsed(text, "forge create n1 -p 99");
    let (_, typed) = typed.subcommand().expect("a command");
    assert_eq!(typed.get_many::<String>("publish").expect("one").len(), 1);
    let qemu = registry::find("qemu").expect("a driver");
    let resolved = (qemu.resolve)(create).expect("resolved");
    assert_eq!(resolved.0["memory_mib"], 2048);
    assert_eq!(resolved.1["qemu-memory"], "default");
    let (_, origins) = said(text).expect("settings").told(resolved, qemu);
    assert_eq!(origins["qemu-memory"], "file");
    assert_eq!(origins["qemu-disk-size"], "file");
    assert_eq!(origins["qemu-cpus"], "default");
}

#[test]
fn an_alias_is_as_good_as_a_name() {
    let defaults = said("[virtualbox]\ncpus = 2\n").expect("settings");
    let option = Arg::new("x").long("virtualbox-cpu-count");
    let given = defaults.given(&["create"], &option).expect("fine");
    assert_eq!(given.expect("one").texts, ["2"]);
}

#[test]
fn secrets_have_no_place_in_a_file() {
    for (long, secret) in [
        ("digitalocean-access-token", true),
        ("scaleway-secret", true),
        ("sudo-password", true),
        ("sudo-password-file", false),
        ("tokens", false),
        ("ssh-key", false),
    ] {
        assert_eq!(is_secret(&Arg::new("x").long(long)), secret, "{long}");
    }
    let switch = Arg::new("x")
        .long("ask-password")
        .action(ArgAction::SetTrue);
    assert!(!is_secret(&switch));
}

#[test]
fn docker_machines_variables_are_those_of_flags_that_there_are() {
    let whole = tree::everything(Persona::DockerMachine);
    let create = whole.find_subcommand("create").expect("a command");
    for (name, long) in old::VARIABLES {
        let there = |command: &Command| {
            command
                .get_arguments()
                .any(|option| option.get_long() == Some(long))
        };
        let expected = name.starts_with("VIRTUALBOX_") || name == "MACHINE_DRIVER";
        assert!(!expected || there(create), "{name}");
    }
}

#[test]
fn what_a_file_cannot_say_is_an_error_with_its_line() {
    for (text, line, said_) in [
        ("timeout = \"x\"", 1, "`timeout` makes no sense"),
        ("\nfoo = 1", 2, "no command has a flag `--foo`"),
        ("help = true", 1, "no command has a flag `--help`"),
        ("[create]\nx = 1", 2, "`forge create` has no flag `--x`"),
        (
            "[cluster.up]\nx = 1",
            2,
            "`forge cluster up` has no flag `--x`",
        ),
        ("[cluster.foo]\nx = 1", 1, "`[cluster.foo]` is no command"),
        (
            "[crea]\nx = 1",
            1,
            "`[crea]` is neither a command nor a driver",
        ),
        (
            "[qemu]\nx = 1",
            2,
            "the driver `qemu` has no flag `--qemu-x`",
        ),
        (
            "[qemu]\nqemu-memory = 1",
            2,
            "is a flag of the driver `qemu`",
        ),
        ("qemu-memory = 1", 1, "is a flag of the driver `qemu`"),
        (
            "[create]\nqemu-memory = 1",
            2,
            "is a flag of the driver `qemu`",
        ),
        ("[qemu]\naccel = \"x\"", 2, "`qemu-accel` makes no sense"),
        ("debug = 1", 1, "`debug` makes no sense"),
        ("timeout = [1, 2]", 1, "`timeout` makes no sense"),
        (
            "timeout = 1979-05-27",
            1,
            "has no value that a flag could have",
        ),
        (
            "templates-dir = \"a/b\"",
            1,
            "`templates-dir` makes no sense",
        ),
        ("a = 1\na = 2", 2, "this is no TOML"),
        ("a = ", 1, "this is no TOML"),
    ] {
        let error = said(text).err().expect(text);
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        let message = error.message();
        assert!(
            message.contains(&format!("{FILE}:{line}: ")),
            "{text}: {message}"
        );
        assert!(message.contains(said_), "{text}: {message}");
    }
}
