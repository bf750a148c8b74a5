//! The README's tour, run as it stands: every `sh` block, line by line, in the order in which it is read. All other blocks
//! are run by `readme.rs`.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, readme, run};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");

#[test]
fn lab_the_tour_of_the_readme() {
    let mut steps = Steps::new("the README's tour");
    let blocks = readme::blocks(Path::new(env!("CARGO_MANIFEST_DIR")));
    let blocks: Vec<_> = blocks.iter().filter(|block| block.on_tour()).collect();
    assert!(blocks.len() >= 5, "the README has a tour");
    let store = Store::new(FORGE);
    let folder = tempfile::tempdir().expect("a folder");
    let mut said = Vec::new();
    for block in blocks.iter().map(|block| block.text.as_str()) {
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
