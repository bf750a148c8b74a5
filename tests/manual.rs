//! The manual pages and the completions, read by the programs that they are for.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{FORGE, Lab, subcommands};

/// The path, with the binary under test first in it.
fn path() -> std::ffi::OsString {
    let programs = Path::new(FORGE).parent().expect("the folder of forge");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path)))
        .expect("a path")
}

#[test]
fn every_command_has_a_page_that_man_has_nothing_to_say_about() {
    let lab = Lab::bare();
    let folder = lab.folder().join("share/man/man1");
    let made = lab.words(&["man", &folder.display().to_string()]).ok();
    assert_eq!(made.stdout, "");
    let again = lab
        .words(&["man", &folder.display().to_string(), "--json"])
        .ok();
    let pages: Vec<String> = again.json()["pages"]
        .as_array()
        .expect("pages")
        .iter()
        .map(|page| page.as_str().expect("a name").to_owned())
        .collect();
    let help = lab.forge("--help").ok().stdout;
    let names = subcommands(&help);
    assert!(names.len() > 15, "{names:?}");
    let mut expected = vec!["forge.1".to_owned()];
    for name in names {
        expected.push(format!("forge-{name}.1"));
        let help = lab.forge(&format!("{name} --help")).ok().stdout;
        expected.extend(
            subcommands(&help)
                .iter()
                .map(|inner| format!("forge-{name}-{inner}.1")),
        );
    }
    expected.sort();
    assert_eq!(pages, expected);
    let files: Vec<PathBuf> = pages.iter().map(|page| folder.join(page)).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let words = ["--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l"];
    let read = lab.forge("man").under("man", &words, &files).ok();
    assert_eq!(read.stderr, "");
    let create = fs::read_to_string(folder.join("forge-create.1")).expect("a page");
    for word in [
        "qemu\\-memory",
        "libvirt\\-uri",
        "FORGE_DRIVER",
        "Exit codes",
    ] {
        assert!(create.contains(word), "{word}\n{create}");
    }
    assert!(
        !create.contains("boot2docker"),
        "what only refuses has no place there"
    );
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let lab = Lab::bare();
    fs::write(lab.folder().join("file"), "").expect("written");
    let ended = lab.forge("man file/man1").run().code(1);
    assert!(
        ended
            .stderr
            .starts_with("error: failed to make the folder `file/man1`\n"),
        "{}",
        ended.stderr
    );
}

/// The script for a shell, in a file.
fn script(lab: &Lab, shell: &str) -> PathBuf {
    let text = lab.forge(&format!("completions {shell}")).ok().stdout;
    let path = lab.folder().join(format!("forge.{shell}"));
    fs::write(&path, text).expect("written");
    path
}

/// Two machines, for completions to name.
fn two_machines(lab: &Lab) {
    lab.forge("create n1 web.2").ok();
}

/// Asks the function that bash was told to call for words, and prints what it offers.
const ASK: &str = r#"
source "$1"
shift
read -ra told < <(complete -p forge)
for i in "${!told[@]}"; do
    [[ ${told[i]} == -F ]] && asked=${told[i + 1]}
done
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$asked" forge "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_completes_commands_options_and_machines() {
    let lab = Lab::new();
    two_machines(&lab);
    let script = script(&lab, "bash");
    lab.forge("").under("bash", &["-n"], &[&script]).ok();
    let offered = |words: &[&str]| {
        let script = script.display().to_string();
        let all = [&["-c", ASK, "bash", &script, "forge"], words].concat();
        let ended = lab
            .forge("")
            .env("PATH", path())
            .under("bash", &all, &[])
            .ok();
        assert_eq!(ended.stderr, "", "{words:?}");
        ended
            .stdout
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(offered(&["crea"]), ["create"]);
    assert_eq!(offered(&["ssh", ""]), ["n1", "web.2"]);
    assert_eq!(offered(&["stop", "n1", "w"]), ["web.2"]);
    assert_eq!(offered(&["inspect", "--form"]), ["--format"]);
    assert_eq!(offered(&["env", "--shell", "fi"]), ["fish"]);
    assert_eq!(offered(&["create", "--qemu-mem"]), ["--qemu-memory"]);
    let options = offered(&["create", "--libvirt-"]);
    assert!(options.len() > 5, "{options:?}");
    let inner = offered(&["cluster", ""]);
    assert!(inner.contains(&"up".to_owned()), "{inner:?}");
    // A machine that is to be made has no name yet.
    let new = offered(&["create", ""]);
    assert!(!new.contains(&"n1".to_owned()), "{new:?}");
    // Before a path that is there a machine has a colon; behind it bash asks with it, as it breaks words.
    assert_eq!(offered(&["scp", ""]), ["n1:", "web.2:"]);
    assert_eq!(offered(&["scp", "file", "w"]), ["web.2:"]);
    assert_eq!(offered(&["mount", "n"]), ["n1:"]);
    assert_eq!(offered(&["scp", "n1", ":"]), [""; 0]);
    assert_eq!(offered(&["scp", "n1", ":", "n"]), [""; 0]);
    // What the help does not tell of is not offered: docker-machine's options that mean nothing here.
    let options = offered(&["create", "--virtualbox-"]);
    assert!(options.contains(&"--virtualbox-memory".to_owned()));
    assert!(
        !options.iter().any(|option| option.contains("boot2docker")),
        "{options:?}"
    );
}

#[test]
fn no_shell_is_told_of_what_the_help_does_not_show() {
    let lab = Lab::bare();
    for name in ["forge", "docker-machine"] {
        for shell in ["bash", "zsh", "fish", "powershell"] {
            let words = format!("completions {shell}");
            let text = lab.forge(&words).called(name).ok().stdout;
            assert!(text.contains("virtualbox-memory"), "{name} {shell}");
            assert!(!text.contains("boot2docker"), "{name} {shell}");
        }
    }
}

#[test]
fn fish_completes_commands_options_and_machines() {
    let lab = Lab::new();
    two_machines(&lab);
    let script = script(&lab, "fish");
    lab.forge("").under("fish", &["-n"], &[&script]).ok();
    let offered = |line: &str| {
        let text = format!("source {}; complete -C '{line}'", script.display());
        let ended = lab
            .forge("")
            .env("PATH", path())
            .under("fish", &["--no-config", "-c", &text], &[])
            .ok();
        let first = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        ended.stdout.lines().map(first).collect::<Vec<_>>()
    };
    assert_eq!(offered("forge crea"), ["create"]);
    assert_eq!(offered("forge ssh "), ["n1", "web.2"]);
    assert_eq!(offered("forge create --qemu-mem"), ["--qemu-memory"]);
    assert_eq!(offered("forge mount w"), ["web.2:"]);
    let places = offered("forge scp ");
    for place in ["n1:", "web.2:"] {
        assert!(places.contains(&place.to_owned()), "{places:?}");
    }
}

#[test]
fn zsh_reads_its_script_and_knows_how_to_ask_for_machines() {
    let lab = Lab::new();
    two_machines(&lab);
    let script = script(&lab, "zsh");
    lab.forge("").under("zsh", &["-f", "-n"], &[&script]).ok();
    // Only an editor of lines can be asked for more: what it would be told is.
    let text = format!(
        "autoload -U compinit && compinit -u -D; source {}; _describe() {{ print -l -- $machines }}; _forge_machines",
        script.display()
    );
    let told = |text: &str| {
        let run = lab.forge("").env("PATH", path());
        run.under("zsh", &["-f", "-c", text], &[]).ok().stdout
    };
    assert_eq!(told(&text), "n1\nweb.2\n");
    let text = format!(
        "autoload -U compinit && compinit -u -D; source {}; compset() {{ return 1 }}; _files() {{ print files }}; _describe() {{ print -l -- $machines; print -- ${{@[-2]}} ${{@[-1]}} }}; _forge_places",
        script.display()
    );
    assert_eq!(told(&text), "n1\nweb.2\n-S :\nfiles\n");
    let text = fs::read_to_string(script).expect("a script");
    assert!(text.contains(":_forge_machines' \\"), "{text}");
    assert!(text.contains(":_forge_places' \\"), "{text}");
    assert!(
        !text.contains("__machines__") && !text.contains("__places__"),
        "{text}"
    );
}

#[test]
fn powershell_is_told_the_same() {
    let lab = Lab::new();
    let text = lab.forge("completions pwsh").ok().stdout;
    let case = |command: &str| {
        let (_, rest) = text
            .split_once(&format!("        'forge;{command}' {{\n"))
            .unwrap_or_else(|| panic!("{command}: {text}"));
        rest.split("break").next().unwrap_or_default().to_owned()
    };
    assert!(case("ssh").contains("& 'forge' ls -q 2>$null | ForEach-Object"));
    assert!(case("scp").contains("new(\"${_}:\", $_,"));
    assert!(!case("create").contains("ls -q"));
    assert!(case("create").contains("'--qemu-memory'"));
    assert!(case("cluster;up").contains("'--managers'"));
    let open = text.matches('{').count();
    assert_eq!(open, text.matches('}').count());
}

#[test]
fn another_shell_is_refused() {
    let lab = Lab::bare();
    let ended = lab.forge("completions tcsh").run().code(2);
    assert!(
        ended.stderr.contains("bash, zsh, fish, powershell"),
        "{}",
        ended.stderr
    );
}

#[test]
fn under_the_name_docker_machine_scripts_are_for_that_name() {
    let lab = Lab::new();
    let text = lab
        .forge("completions bash")
        .called("docker-machine")
        .ok()
        .stdout;
    assert!(
        text.contains(
            "complete -F _docker_machine_offer -o bashdefault -o default docker-machine\n"
        )
    );
    let path = lab.folder().join("docker-machine.bash");
    fs::write(&path, text).expect("written");
    lab.forge("").under("bash", &["-n"], &[&path]).ok();
}
