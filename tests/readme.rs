//! The README's examples that are not of its tour (`lab_readme.rs`): each is run as it stands, and says what is shown there.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::host::Host;
use common::terminal::typed as typed_at_a_terminal;
use common::{Lab, Run};
use forge_lab::old::{OldStore, engine};
use forge_lab::openssh::user;
use forge_lab::readme::{self, Block};
use serde_json::json;

/// What runs a block.
type Runs = fn(&Block);

/// Every block that is not of the tour, by its first line, and what runs it.
const BLOCKS: [(&str, Runs); 8] = [
    ("$ make demo ", the_doors),
    ("$ forge create --driver generic ", a_host_is_adopted),
    ("$ forge create --driver none ", an_engine_is_noted),
    ("$ forge credentials set ", a_token_is_kept),
    ("$ forge create n1", a_machine_moves),
    ("timeout = 900 ", settings_are_read),
    ("$ ln -s ", a_link_is_docker_machine),
    (
        "$ forge import docker-machine ",
        machines_of_docker_machine_are_imported,
    ),
];

const PASSPHRASE: &str = "several words in a row";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_block_is_of_the_tour_or_is_run_here() {
    let mut left: BTreeSet<&str> = BLOCKS.iter().map(|(first, _)| *first).collect();
    for block in readme::blocks(root()) {
        let mut runs = BLOCKS
            .iter()
            .filter(|(first, _)| block.first().starts_with(first));
        match (block.on_tour(), runs.next(), runs.next()) {
            (true, None, None) => {}
            (false, Some((first, run)), None) => {
                assert!(left.remove(first), "two blocks begin with `{first}`");
                run(&block);
            }
            (_, one, two) => panic!(
                "`{}` is run by {} tests: blocks of the tour are `sh` and run by lab_readme.rs, all others stand in BLOCKS",
                block.first(),
                usize::from(block.on_tour()) + one.into_iter().count() + two.into_iter().count()
            ),
        }
    }
    assert!(left.is_empty(), "not in the README any more: {left:?}");
}

#[test]
fn commands_and_options_that_the_text_names_are_there() {
    let lab = Lab::bare();
    lab.forge("man pages").ok();
    let pages = common::files(&lab.folder().join("pages"));
    let pages: String = pages
        .values()
        .map(|page| String::from_utf8_lossy(page).replace('\\', ""))
        .collect();
    let text = readme::text(root());
    let outside: String = text.split("```").step_by(2).collect();
    let spans: Vec<&str> = outside.split('`').skip(1).step_by(2).collect();
    let mut seen = 0;
    for span in spans {
        let mut words = span.split_whitespace();
        let ours = match words.next() {
            Some("forge") => {
                let command = words.next().unwrap_or_default();
                if command.bytes().all(|byte| byte.is_ascii_lowercase()) && !command.is_empty() {
                    let help = lab.forge(&format!("{command} --help")).run();
                    assert_eq!(help.code, 0, "`{span}`: {}", help.stderr);
                    seen += 1;
                }
                // What follows is another program's.
                span.split(" -- ").next().unwrap_or_default()
            }
            Some(word) if word.starts_with("--") => span,
            _ => continue,
        };
        for word in ours.split_whitespace() {
            let option = word.split(['=', '…', ']']).next().unwrap_or_default();
            if let Some(name) = option.strip_prefix("--").filter(|name| !name.is_empty()) {
                // `--swarm…` stands for many, which only refuse.
                let hidden = word.ends_with('…') || name == "help";
                assert!(hidden || pages.contains(&format!("--{name}")), "`{span}`");
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

/// A line behind a prompt, and what is shown below it.
struct Example {
    /// What stands before `$`: the computer that is typed at.
    place: String,
    line: String,
    shown: Vec<String>,
}

/// The lines of a `console` block.
fn examples(block: &Block) -> Vec<Example> {
    assert_eq!(block.language, "console", "{}", block.first());
    let mut examples: Vec<Example> = Vec::new();
    for line in block.text.lines() {
        let prompt = line.split_once("$ ");
        match prompt.filter(|(place, _)| place.bytes().all(|byte| byte.is_ascii_lowercase())) {
            Some((place, line)) => examples.push(Example {
                place: place.to_owned(),
                line: line.to_owned(),
                shown: Vec::new(),
            }),
            None => {
                let example = examples.last_mut().expect("a prompt before what is shown");
                example.shown.push(line.to_owned());
            }
        }
    }
    examples
}

/// Runs one line as a reader would who has forge in the path and types it, and compares what it says with what is shown:
/// word by word, where `…` stands for any number of lines.
fn typed<'a>(lab: &'a Lab, example: &Example, more: impl Fn(Run<'a>) -> Run<'a>) {
    let line = &example.line;
    // A shell takes an `eval` of nothing for a success.
    let check = if line.starts_with("eval $(forge env") {
        "\n: \"${DOCKER_HOST:?}\""
    } else {
        ""
    };
    let ended = more(lab.bash(&format!("set -e\n{line}{check}"))).run();
    let code = if line.contains(" --dry-run") { 2 } else { 0 };
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, code, "`{line}`: {said}");
    if !example.shown.is_empty() {
        let said: Vec<&str> = said.lines().collect();
        assert!(
            fits(&example.shown, &said),
            "`{line}` says\n{}\nand the README shows\n{}",
            said.join("\n"),
            example.shown.join("\n")
        );
    }
}

fn fits(shown: &[String], said: &[&str]) -> bool {
    let Some((first, rest)) = shown.split_first() else {
        return said.is_empty();
    };
    if first == "…" {
        return (0..=said.len()).any(|from| fits(rest, &said[from..]));
    }
    said.split_first().is_some_and(|(line, others)| {
        line.split_whitespace().eq(first.split_whitespace()) && fits(rest, others)
    })
}

fn all<'a>(lab: &'a Lab, block: &Block, more: impl Fn(Run<'a>) -> Run<'a>) {
    for example in examples(block) {
        assert_eq!(example.place, "", "{}", example.line);
        typed(lab, &example, &more);
    }
}

/// A file with the passphrase.
fn passphrase(lab: &Lab) -> PathBuf {
    let path = lab.folder().join("passphrase");
    fs::write(&path, PASSPHRASE).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
    path
}

/// Run whole by the part `demo` and by whoever runs this test; what they show is looked at here.
fn the_doors(block: &Block) {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect(path);
    let lab = Lab::new();
    let nodes = lab.forge("cluster up --managers 3 --zones 2").ok().stdout;
    for example in examples(block) {
        let name = example.line.split_whitespace().nth(1).expect("a door");
        let line = format!("make -n -C {} {name}", root().display());
        let would = lab.bash(&line).ok().stdout;
        let script = format!(".ci/{name}");
        assert!(would.contains(&script), "{would}");
        let script = read(&script);
        let shown = example.shown.iter();
        for line in shown.filter(|line| !line.is_empty() && *line != "…") {
            let words: Vec<&str> = line.split_whitespace().collect();
            let there = match words[..] {
                ["==", ..] => script.contains(&format!("say '{}'", words[1..].join(" "))),
                [part, _, "min", "ok"] => script.contains(&format!("part_{part}()")),
                ["NODE", ..] => nodes
                    .lines()
                    .any(|line| line.split_whitespace().eq(words.iter().copied())),
                // Addresses and ids are others in each cluster.
                [node, health, availability, manager, zone, ..] => nodes.lines().any(|line| {
                    let have: Vec<&str> = line.split_whitespace().collect();
                    have.len() == words.len()
                        && have[..5] == [node, health, availability, manager, zone]
                }),
                _ => false,
            };
            assert!(there, "{line}\n{nodes}");
        }
    }
}

fn a_host_is_adopted(block: &Block) {
    let (lab, host) = (Lab::bare(), Host::new());
    fs::write(host.at("root/etc/hostname"), "db7\n").expect("written");
    // As in the `~/.ssh/config` of a reader, which OpenSSH looks for in the home that passwd names.
    let config = host.config(&host.known("host"));
    let known = fs::read_to_string(&config).expect("a configuration");
    let text = format!(
        "Host db7.example\n  HostName 127.0.0.1\n  Port {}\n  User {}\n  IdentityFile {}\n{known}",
        host.port,
        user(),
        host.at("user").display(),
    );
    fs::write(&config, text).expect("written");
    let before = host.authorized();
    let mut block = block.clone();
    // Whoever runs the tests has the key.
    block.text = block
        .text
        .replace("of `admin`:", &format!("of `{}`:", user()));
    all(&lab, &block, |run| {
        run.without("FORGE_DRIVER")
            .env("GENERIC_SSH_CONFIG", &config)
            .env("GENERIC_ENGINE_PORT", host.engine.to_string())
    });
    assert_eq!(host.authorized(), before);
    lab.forge("ls -q").says(0, "", "");
}

fn an_engine_is_noted(block: &Block) {
    let lab = Lab::bare();
    all(&lab, block, |run| run.without("FORGE_DRIVER"));
    lab.forge("ip far").says(0, "192.0.2.10\n", "");
}

/// On a terminal, where the value is typed.
fn a_token_is_kept(block: &Block) {
    let lab = Lab::new();
    let lines: Vec<String> = examples(block)
        .into_iter()
        .map(|example| example.line)
        .collect();
    fs::write(lab.folder().join("block"), lines.join("\n")).expect("written");
    let run = lab
        .bash("exec bash -eux block")
        .env("FORGE_PASSPHRASE_FILE", passphrase(&lab));
    let question = "Value of `digitalocean`: ";
    typed_at_a_terminal(&lab, &run, &[(question, "dop_v1_4fd1a0c7\n")])
        .code(0)
        .shows("digitalocean   sealed file")
        .hides("dop_v1");
    let none = lab.forge("credentials ls").ok();
    assert_eq!(none.stdout, "NAME   KEPT IN\n");
}

fn a_machine_moves(block: &Block) {
    let (here, there) = (Lab::new(), Lab::new());
    for example in examples(block) {
        let lab = match example.place.as_str() {
            "" => &here,
            _ => &there,
        };
        let file = here.folder().join("n1.forge");
        if lab.folder() == there.folder() && file.exists() {
            fs::rename(file, there.folder().join("n1.forge")).expect("carried there");
        }
        typed(lab, &example, |run| {
            run.env("FORGE_PASSPHRASE_FILE", passphrase(lab))
        });
    }
    there.forge("status n1").says(0, "Running\n", "");
}

fn settings_are_read(block: &Block) {
    assert_eq!(block.language, "toml");
    let lab = Lab::bare();
    fs::create_dir(&lab.home).expect("a folder");
    fs::set_permissions(&lab.home, fs::Permissions::from_mode(0o700)).expect("closed");
    fs::write(lab.home.join("forge.toml"), &block.text).expect("written");
    let listed = lab
        .forge("config show --json")
        .without("FORGE_DRIVER")
        .without("FORGE_TIMEOUT")
        .ok()
        .json();
    let listed = listed.as_array().expect("a list");
    let mut keys = 0;
    for (at, line) in block.text.lines().enumerate() {
        if !line.contains(" = ") {
            continue;
        }
        keys += 1;
        let found = listed
            .iter()
            .find(|setting| setting["origin"]["line"] == at + 1)
            .unwrap_or_else(|| panic!("{line}: {listed:?}"));
        let (key, rest) = line.split_once(" = ").expect("a key");
        let value = rest.split('#').next().unwrap_or_default().trim();
        assert_eq!(found["value"], value.trim_matches('"'), "{line}");
        let name = found["setting"].as_str().expect("a name");
        assert!(
            name == key || name.ends_with(&format!(".{key}")),
            "{line}: {name}"
        );
    }
    assert!(keys > 3);
}

fn a_link_is_docker_machine(block: &Block) {
    all(&Lab::new(), block, |run| run);
}

fn machines_of_docker_machine_are_imported(block: &Block) {
    let lab = Lab::bare();
    let old = OldStore::at(&lab.folder().join(".docker/machine"));
    // Each run has an address of its own.
    let pid = std::process::id();
    let ip = format!("127.67.{}.{}", 1 + pid / 250 % 250, 1 + pid % 250);
    let issued = old.machine(
        "web1",
        "none",
        &json!({"URL": format!("tcp://{ip}:2376")}),
        &[&ip],
        10,
    );
    engine(format!("{ip}:2376").parse().expect("an address"), &issued);
    let before = common::files(&old.root);
    all(&lab, block, |run| run);
    assert_eq!(common::files(&old.root), before, "nothing is changed there");
    lab.forge("ls -q").says(0, "web1\n", "");
}
