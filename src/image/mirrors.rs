//! Where packages come from while an image is built.

use std::fs;
use std::path::Path;

/// The lines for `suite` among the host's own apt sources (one-line and deb822 style, sources.list(5)),
/// so that a host with a mirror nearby uses it. Empty when the host has no such suite.
///
/// Only `main` is taken, and only sources without a user name in their address.
pub(super) fn of_host(apt: &Path, suite: &str) -> Vec<String> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut lines: Vec<String> = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line(&text, suite),
            Some("sources") => deb822(&text, suite),
            _ => continue,
        };
        for line in found {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    // Updates alone are no suite.
    let whole = format!(" {suite} main");
    if lines.iter().any(|line| line.ends_with(&whole)) {
        lines
    } else {
        Vec::new()
    }
}

/// The lines for a mirror given by hand: the suite and its updates from there, security updates from
/// Debian itself, because few mirrors hold them.
pub(super) fn of_mirror(mirror: &str, suite: &str) -> Vec<String> {
    let mirror = mirror.trim_end_matches('/');
    vec![
        format!("deb {mirror} {suite} main"),
        format!("deb {mirror} {suite}-updates main"),
        format!("deb http://deb.debian.org/debian-security {suite}-security main"),
    ]
}

fn wanted(address: &str, found: &str, suite: &str) -> bool {
    let ours = found == suite
        || found
            .strip_prefix(suite)
            .is_some_and(|rest| rest == "-updates" || rest == "-security");
    let plain = ["http://", "https://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme))
        .is_some_and(|rest| !rest.split('/').next().unwrap_or_default().contains('@'));
    ours && plain && !address.contains(char::is_whitespace)
}

fn line(address: &str, suite: &str) -> String {
    format!("deb {} {suite} main", address.trim_end_matches('/'))
}

fn one_line(text: &str, suite: &str) -> Vec<String> {
    text.lines()
        .filter_map(|text| {
            let rest = text.trim().strip_prefix("deb ")?.trim_start();
            let rest = match rest.strip_prefix('[') {
                Some(options) => options.split_once(']')?.1,
                None => rest,
            };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let (address, found, components) = (words.first()?, words.get(1)?, words.get(2..)?);
            (components.contains(&"main") && wanted(address, found, suite))
                .then(|| line(address, found))
        })
        .collect()
}

fn deb822(text: &str, suite: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<&str> {
            stanza
                .lines()
                .filter(|line| !line.starts_with('#'))
                .find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name)
                        .then(|| value.split_whitespace().collect())
                })
                .unwrap_or_default()
        };
        if !field("Types").contains(&"deb")
            || !field("Components").contains(&"main")
            || field("Enabled").contains(&"no")
        {
            continue;
        }
        for address in field("URIs") {
            for found in field("Suites") {
                if wanted(address, found, suite) {
                    lines.push(line(address, found));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("sources.list.d")).expect("mkdir");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("write");
        }
        folder
    }

    #[test]
    fn both_styles_are_read() {
        let folder = apt(&[
            (
                "sources.list",
                "# comment\ndeb [signed-by=/k] http://near.example/debian bookworm main contrib\n",
            ),
            (
                "sources.list.d/debian.sources",
                "Types: deb\nURIs: https://near.example/debian-security/\nSuites: bookworm-security\nComponents: main\n\n\
                 Types: deb\nURIs: http://other.example/x\nSuites: nodistro\nComponents: main\n\n\
                 Types: deb\nURIs: http://near.example/debian\nSuites: bookworm-backports bookworm-updates\nComponents: main\n",
            ),
        ]);
        assert_eq!(
            of_host(folder.path(), "bookworm"),
            [
                "deb http://near.example/debian bookworm main",
                "deb https://near.example/debian-security bookworm-security main",
                "deb http://near.example/debian bookworm-updates main",
            ]
        );
        assert!(of_host(folder.path(), "trixie").is_empty());
    }

    #[test]
    fn what_would_not_do_is_left_out() {
        let folder = apt(&[(
            "sources.list",
            "deb http://user:word@near.example/debian bookworm main\ndeb file:///srv/debian bookworm main\n\
             deb http://near.example/debian bookworm-updates main\ndeb-src http://near.example/debian bookworm main\n",
        )]);
        assert!(of_host(folder.path(), "bookworm").is_empty());
    }

    #[test]
    fn a_mirror_by_hand_serves_suite_and_updates() {
        let lines = of_mirror("http://near.example/debian/", "bookworm");
        assert_eq!(lines[0], "deb http://near.example/debian bookworm main");
        assert_eq!(
            lines[2],
            "deb http://deb.debian.org/debian-security bookworm-security main"
        );
    }
}
