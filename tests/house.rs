//! The rules of the house that no compiler checks, by reading the tree.

use std::fs;
use std::path::{Path, PathBuf};

/// Every text file of the project, with its path from the top.
fn files() -> Vec<(PathBuf, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![top.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                if ![".git", "target"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push((
                    path.strip_prefix(top).expect("below the top").to_owned(),
                    text,
                ));
            }
        }
    }
    assert!(
        files
            .iter()
            .any(|(path, _)| path == Path::new("Cargo.toml"))
    );
    files
}

fn rust() -> Vec<(PathBuf, String)> {
    let mut files = files();
    // This file has to write down what it forbids.
    files.retain(|(path, _)| {
        path.extension().is_some_and(|kind| kind == "rs") && path != Path::new("tests/house.rs")
    });
    files
}

/// `path:line: text` for each line that `wrong` finds amiss.
fn lines(files: &[(PathBuf, String)], wrong: impl Fn(&str) -> bool) -> Vec<String> {
    files
        .iter()
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| wrong(line))
                .map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn nothing_is_left_undone() {
    let marks = [
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "#[ignore",
        "TODO",
        "FIXME",
        "XXX",
    ];
    none(&lines(&rust(), |line| {
        marks.iter().any(|mark| {
            line.match_indices(mark).any(|(at, _)| {
                // `mktemp XXXXXX` is no mark, nor is a longer name.
                let before = line[..at].chars().next_back();
                let after = line[at + mark.len()..].chars().next();
                let word = |next: Option<char>| {
                    next.is_some_and(|next| next.is_alphanumeric() || next == '_')
                };
                !word(before) && (!mark.ends_with(char::is_alphabetic) || !word(after))
            })
        })
    }));
}

#[test]
fn a_lint_is_expected_with_a_reason_and_never_allowed() {
    none(&lines(&rust(), |line| {
        line.contains("#[allow(") || line.contains("#![allow(")
    }));
    let without: Vec<String> = rust()
        .iter()
        .flat_map(|(path, text)| {
            text.split("[expect(")
                .skip(1)
                .filter(|rest| {
                    !rest
                        .split(")]")
                        .next()
                        .unwrap_or_default()
                        .contains("reason")
                })
                .map(|rest| {
                    format!(
                        "{}: expect({}",
                        path.display(),
                        rest.lines().next().unwrap_or_default()
                    )
                })
                .collect::<Vec<_>>()
        })
        .collect();
    none(&without);
}

#[test]
fn no_path_leads_to_the_home_of_one_person() {
    // `/home/forge` is the home of the user that forge makes on its machines.
    let homes = ["/home/", "/Users/", "/root/."];
    let mut files = files();
    files.retain(|(path, _)| path != Path::new("tests/house.rs"));
    none(&lines(&files, |line| {
        homes.iter().any(|home| {
            line.match_indices(home).any(|(at, _)| {
                let rest = &line[at + home.len()..];
                !(*home == "/home/"
                    && (rest.starts_with("forge") || !rest.starts_with(char::is_alphanumeric)))
            })
        })
    }));
}

#[test]
fn files_are_short_enough_to_hold_one_idea() {
    let long: Vec<String> = rust()
        .iter()
        .filter(|(_, text)| text.lines().count() > 700)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    none(&long);
}

#[test]
fn versions_are_named_once_in_the_workspace() {
    let mut wrong = Vec::new();
    for (path, text) in files() {
        if path.file_name().is_none_or(|name| name != "Cargo.toml") {
            continue;
        }
        let mut table = "";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[') {
                table = name;
            } else if table.contains("dependencies]")
                && !table.starts_with("workspace")
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                wrong.push(format!("{}: {line}", path.display()));
            }
        }
    }
    none(&wrong);
}

#[test]
fn text_ends_with_a_line_end_and_lines_do_not_end_in_blanks() {
    let mut files = files();
    // What other programs print is kept as they print it.
    files.retain(|(path, text)| {
        !text.is_empty()
            && path != Path::new("LICENSE")
            && !path.components().any(|part| part.as_os_str() == "recorded")
    });
    none(&lines(&files, |line| line.ends_with([' ', '\t'])));
    let open: Vec<String> = files
        .iter()
        .filter(|(_, text)| !text.ends_with('\n'))
        .map(|(path, _)| format!("{}: no line end at the end", path.display()))
        .collect();
    none(&open);
}

#[test]
fn the_licence_is_the_one_that_the_crates_name() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("LICENSE")).expect("LICENSE");
    assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004"));
    assert_eq!(env!("CARGO_PKG_LICENSE"), "Apache-2.0");
}

#[test]
fn the_toolchain_of_the_setup_is_new_enough_for_the_crates() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(top.join(".ci/env")).expect(".ci/env");
    let pinned = script
        .lines()
        .find_map(|line| line.strip_prefix("toolchain="))
        .expect("a toolchain");
    let number = |version: &str| -> Vec<u32> {
        version
            .split('.')
            .map(|part| part.parse().expect("a number"))
            .collect()
    };
    assert!(
        number(pinned) >= number(env!("CARGO_PKG_RUST_VERSION")),
        "{pinned}"
    );
}

#[test]
fn every_variable_is_listed_by_config_show() {
    // These are for tests of forge itself; options of docker-machine's that mean nothing here have files of their own.
    let others = [
        "FORGE_FAKE_",
        "FORGE_TEST_",
        "FORGE_LAB_",
        "FORGE_ABORT_AT",
        "FORGE_POINTS",
        // Of a machine, not of this program: what its unit starts the engine with.
        "FORGE_ENGINE_FLAGS",
    ];
    let home = tempfile::tempdir().expect("a folder");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_forge"))
        .args(["config", "show", "--json"])
        .env_clear()
        .env("HOME", home.path())
        .output()
        .expect("it runs");
    let listed = String::from_utf8(output.stdout).expect("text");
    let mut missing = Vec::new();
    for (path, text) in rust() {
        let of_program = path.starts_with("src") || path.to_string_lossy().contains("/src/");
        if !of_program || path.starts_with("tests") || path.ends_with("former.rs") {
            continue;
        }
        for part in text.split("\"FORGE_").skip(1) {
            let name = format!("FORGE_{}", part.split('"').next().unwrap_or_default());
            let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            let other = others.iter().any(|other| name.starts_with(other));
            if is_name && !other && name != "FORGE_" && !listed.contains(&format!("\"{name}\"")) {
                missing.push(format!("{}: {name}: src/cli/settings.rs", path.display()));
            }
        }
    }
    none(&missing);
    assert!(listed.contains("\"FORGE_HOME\""), "{listed}");
}
