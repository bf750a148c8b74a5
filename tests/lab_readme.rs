//! The README's tour, run as it stands: every `sh` block, line by line, in the order in which it is read.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, run};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");

#[test]
fn lab_the_tour_of_the_readme() {
    let mut steps = Steps::new("the README's tour");
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("the README");
    let blocks = blocks(&readme);
    let store = Store::new(FORGE);
    let folder = tempfile::tempdir().expect("a folder");
    let mut said = Vec::new();
    for block in &blocks {
        steps.step(
            block
                .lines()
                .last()
                .unwrap_or_default()
                .split("  ")
                .next()
                .unwrap_or_default(),
        );
        said.push(tour(&store, folder.path(), block).ok());
    }
    let out = said.iter().map(Ran::text).collect::<Vec<_>>().join("\n");
    let ready = out
        .lines()
        .filter(|line| line.contains(" Ready ") && line.contains("default-m"))
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with("default-m"))
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(
        ready.len(),
        3,
        "`docker node ls` lists three managers: {out}"
    );
    let again = said.iter().any(|ran| {
        ran.err.contains("nothing to change") || ran.text().contains("nothing to change")
    });
    assert!(
        again,
        "the second `cluster up` says that nothing was to change: {said:?}"
    );
    assert_eq!(store.left(), Vec::<String>::new());
}

/// The `sh` blocks of the text.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut inside: Option<String> = None;
    for line in text.lines() {
        match (&mut inside, line) {
            (None, "```sh") => inside = Some(String::new()),
            (Some(block), "```") => {
                blocks.push(std::mem::take(block));
                inside = None;
            }
            (Some(block), line) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    assert!(blocks.len() >= 5, "the README has a tour");
    blocks
}

/// Runs a block as a reader would who has forge in the path and pastes it; the first failure ends it.
fn tour(store: &Store, folder: &Path, block: &str) -> Ran {
    let words = store.command(&[]);
    let programs = Path::new(FORGE).parent().expect("the folder of forge");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(programs.to_owned()).chain(env::split_paths(&path)))
        .expect("a path");
    let mut bash = Command::new("bash");
    bash.args(["-euxc", block])
        .current_dir(folder)
        .env("PATH", path)
        .env("PS4", "+ ${SECONDS}s ");
    for (name, value) in words.get_envs() {
        match value {
            Some(value) => bash.env(name, value),
            None => bash.env_remove(name),
        };
    }
    run(&mut bash, b"", Duration::from_secs(1200))
}
