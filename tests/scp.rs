//! `forge scp` and `forge mount` against real OpenSSH servers, with OpenSSH's programs and without them.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::sshd::{Sshd, mode, programs};
use common::{Lab, files};
use forge_driver::process;
use forge_lab::openssh::user;

/// Two machines, each with keys of its own.
fn made() -> (Lab, [Sshd; 2]) {
    let lab = Lab::new();
    let machines = ["n1", "n2"].map(|name| Sshd::of(&lab, name));
    (lab, machines)
}

/// A folder of the test with this in it.
fn folder(lab: &Lab, name: &str) -> PathBuf {
    let folder = lab.folder().join(name);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn numbers(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

/// What is below a folder, by the names from there.
fn below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let named = |(path, bytes): (PathBuf, Vec<u8>)| {
        (path.strip_prefix(folder).expect("below").to_owned(), bytes)
    };
    files(folder).into_iter().map(named).collect()
}

#[test]
fn files_are_copied_to_machines_from_them_and_between_them() {
    let (lab, _machines) = made();
    let (here, there) = (folder(&lab, "here"), folder(&lab, "there"));
    let one = here.join("one file");
    let bytes = numbers(300_000);
    fs::write(&one, &bytes).expect("written");
    fs::set_permissions(&one, fs::Permissions::from_mode(0o750)).expect("chmod");
    let none = programs(&lab, &[]);
    for (at, path) in [std::env::var_os("PATH").expect("a path"), none.into()]
        .iter()
        .enumerate()
    {
        let copy = |from: &str, to: &str| {
            let ended = lab
                .words(&["scp", "-q", from, to])
                .env("PATH", path)
                .run()
                .code(0);
            assert_eq!(
                (ended.stdout.as_str(), ended.stderr.as_str()),
                ("", ""),
                "{from} {to}"
            );
        };
        let at = |name: &str| there.join(format!("{name}-{at}"));
        let text = |path: &Path| path.display().to_string();
        let remote = |name: &str| format!("n1:{}", text(&at(name)));
        copy(&text(&one), &remote("up"));
        assert!(fs::read(at("up")).expect("a file") == bytes);
        assert_eq!(
            mode(&at("up")) & 0o700,
            0o700,
            "it may be run there as well"
        );
        // Into a folder, as another way to call the user, and over what is there.
        fs::create_dir(at("into")).expect("a folder");
        copy(&text(&one), &format!("{}@{}", user(), remote("into")));
        assert!(fs::read(at("into").join("one file")).expect("a file") == bytes);
        fs::write(at("up"), [&bytes[..], b"more"].concat()).expect("longer");
        copy(&text(&one), &remote("up"));
        assert!(fs::read(at("up")).expect("a file") == bytes);
        // Back, by a path that is said to be this host's.
        copy(&remote("up"), &format!("localhost:{}", text(&at("down:"))));
        assert!(fs::read(at("down:")).expect("a file") == bytes);
        // From one machine to the other; the keys of one open the other not.
        copy(&remote("up"), &format!("n2:{}", text(&at("across"))));
        assert!(fs::read(at("across")).expect("a file") == bytes);
        // What is not there is told, and the end is an error.
        let lost = lab.words(&["scp", &remote("no such file"), &text(&there)]);
        let ended = lost.env("PATH", path).run();
        assert!(ended.code != 0 && !ended.stderr.is_empty(), "{ended:?}");
        let full = lab
            .words(&["scp", &text(&one), "n1:/dev/full"])
            .env("PATH", path)
            .run();
        assert!(full.code != 0 && !full.stderr.is_empty(), "{full:?}");
    }
    // Paths of a machine begin at home, those of this host where the command is given.
    fs::write(lab.folder().join("plain"), "x").expect("written");
    let name = format!("forge-test-{}", std::process::id());
    for way in [&["scp"][..], &["--native-ssh", "scp"]] {
        let copy = |from: &str, to: &str| {
            lab.words(&[way, &[from, to]].concat()).ok();
        };
        copy("plain", &format!("n1:{name}"));
        copy(&format!("n1:{name}"), "back");
        assert_eq!(
            fs::read_to_string(lab.folder().join("back")).expect("a file"),
            "x"
        );
        fs::remove_file(lab.folder().join("back")).expect("removed");
        lab.words(&["ssh", "n1", "rm", &name]).ok();
    }
}

#[test]
fn folders_are_copied_with_all_that_is_in_them() {
    let (lab, _machines) = made();
    let from = folder(&lab, "a folder");
    fs::create_dir(from.join("inner")).expect("a folder");
    fs::write(from.join("inner/deep"), numbers(5_000)).expect("written");
    fs::write(from.join("top"), "top").expect("written");
    fs::create_dir(from.join("empty")).expect("a folder");
    symlink("top", from.join("link")).expect("a link");
    let mut expected = below(&from);
    expected.insert("link".into(), b"top".to_vec());
    let there = folder(&lab, "there");
    let none = programs(&lab, &[]);
    for (at, path) in [std::env::var_os("PATH").expect("a path"), none.into()]
        .iter()
        .enumerate()
    {
        let copy = |from: &str, to: &str| {
            lab.words(&["scp", "-r", "-q", from, to])
                .env("PATH", path)
                .ok()
        };
        let at = |name: &str| there.join(format!("{name}-{at}"));
        let remote = |machine: &str, path: &Path| format!("{machine}:{}", path.display());
        let from = from.display().to_string();
        copy(&from, &remote("n1", &at("up")));
        assert_eq!(below(&at("up")), expected);
        assert!(at("up").join("empty").is_dir());
        // Where there is such a folder, it comes into it.
        copy(&from, &remote("n1", &at("up")));
        assert_eq!(below(&at("up").join("a folder")), expected);
        fs::remove_dir_all(at("up").join("a folder")).expect("removed");
        copy(&remote("n1", &at("up")), &at("down").display().to_string());
        assert_eq!(below(&at("down")), expected);
        copy(&remote("n1", &at("up")), &remote("n2", &at("across")));
        assert_eq!(below(&at("across")), expected);
        // Without the word, a folder is an error.
        let ended = lab
            .words(&["scp", &from, "n1:/tmp"])
            .env("PATH", path)
            .run();
        assert!(ended.code != 0 && !ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn rsync_sends_what_differs() {
    let (lab, _machines) = made();
    let (from, there) = (folder(&lab, "from"), folder(&lab, "there"));
    fs::write(from.join("a"), numbers(10_000)).expect("written");
    let (source, target) = (
        format!("{}/", from.display()),
        format!("n1:{}", there.display()),
    );
    lab.words(&["scp", "-d", "-r", &source, &target])
        .says(0, "", "");
    assert_eq!(below(&there), below(&from));
    fs::write(from.join("b"), "b").expect("written");
    lab.words(&["scp", "--delta", "--recursive", &source, &target])
        .called("docker-machine")
        .says(0, "", "");
    assert_eq!(below(&there), below(&from));
    lab.words(&["scp", "-d", &target, "n2:/tmp"]).says(
        2,
        "",
        "error: rsync does not copy from one machine to another\nhint: leave out `--delta`\n",
    );
    let none = programs(&lab, &[]);
    lab.words(&["scp", "-d", &source, &target])
        .env("PATH", &none)
        .says(
            1,
            "",
            "error: `rsync` is not installed\nhint: install rsync, or leave out `--delta`\n",
        );
    lab.words(&["scp", "-d", &source, &target])
        .env("PATH", &none)
        .called("docker-machine")
        .says(
            1,
            "",
            "You must have a copy of the rsync binary locally to use the --delta option\n",
        );
}

#[test]
fn point_15_nothing_is_copied_where_the_host_key_changed() {
    let (lab, mut machines) = made();
    machines[0].with_another_key();
    let there = lab.folder().join("there");
    fs::write(lab.folder().join("here"), "secret").expect("written");
    let target = format!("n1:{}", there.display());
    let none = programs(&lab, &[]);
    for run in [
        lab.words(&["scp", "here", &target]),
        lab.words(&["scp", "here", &target]).env("PATH", &none),
        lab.words(&["scp", "-d", "here", &target]),
    ] {
        let ended = run.run();
        assert!(ended.code != 0, "{ended:?}");
        let stderr = ended.stderr.to_lowercase();
        assert!(stderr.contains("host key"), "{stderr}");
    }
    assert!(!there.exists());
    assert!(
        !machines[0].log().contains("Accepted"),
        "{}",
        machines[0].log()
    );
}

/// docker-machine's words for a machine that is not there.
fn no_machine(before: &str) -> String {
    format!(
        "{before}Error loading host: Docker machine \"x\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\n"
    )
}

#[test]
fn wrong_counts_and_unknown_machines_are_told() {
    let made = Lab::new();
    made.forge("create n1").ok();
    let no_x = "error: machine `x` does not exist\nhint: `forge ls` shows the machines; `forge create` makes one\n";
    for lab in [Lab::bare(), made] {
        for words in ["scp a x:b", "scp x:a b", "scp -r u@x:a b", "mount x:/a b"] {
            lab.forge(words).says(1, "", no_x);
        }
        for (words, before) in [
            ("scp a x:b", "Error loading host: "),
            ("mount x:/a", "error loading host: "),
        ] {
            lab.forge(words)
                .called("docker-machine")
                .says(1, "", &no_machine(before));
        }
        for words in ["scp", "scp a", "scp a b c", "mount", "mount a b c"] {
            lab.forge(words)
                .called("docker-machine")
                .says(1, "", "Improper number of arguments\n");
        }
        lab.forge("scp a")
            .says(2, "", "error: `scp` takes a source and a target\n");
        lab.forge("mount").says(
            2,
            "",
            "error: `mount` takes a folder of a machine, and where to mount it\n",
        );
    }
    // Of two paths of this host, scp makes a copy.
    let lab = Lab::bare();
    fs::write(lab.folder().join("a"), "a").expect("written");
    lab.forge("scp a localhost:b").says(0, "", "");
    assert_eq!(
        fs::read_to_string(lab.folder().join("b")).expect("a file"),
        "a"
    );
}

/// Programs that log how they are called. A child writes them: a file that is open for writing is not run.
fn stand_ins(lab: &Lab, names: &[&str]) -> PathBuf {
    let folder = folder(lab, "stand-ins");
    let log = lab.folder().join("log");
    for name in names {
        let script = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n", log.display());
        let written = Command::new("sh")
            .args([
                "-c",
                "printf %s \"$1\" >\"$2\"; chmod 755 \"$2\"",
                "sh",
                &script,
            ])
            .arg(folder.join(name))
            .status();
        assert!(written.expect("sh").success());
    }
    folder
}

#[test]
fn sshfs_is_led_to_the_machine() {
    let (lab, _machines) = made();
    let path = stand_ins(&lab, &["sshfs", "fusermount"]);
    for words in [
        "mount n1:/srv here",
        "mount -u n1:/srv here",
        "mount root@n1:/srv",
        "mount -u n1:/srv",
    ] {
        lab.forge(words)
            .env("PATH", &path)
            .called("docker-machine")
            .says(0, "", "");
    }
    let conf = lab.home.join("machines/n1/ssh.conf").display().to_string();
    let log = fs::read_to_string(lab.folder().join("log")).expect("a log");
    let lines = [
        "sshfs -F CONF -o ConnectTimeout=30 n1:/srv ./here",
        "fusermount -u ./here",
        "sshfs -F CONF -o ConnectTimeout=30 root@n1:/srv /srv",
        "fusermount -u /srv",
    ];
    assert_eq!(
        log.replace(&conf, "CONF"),
        format!("{}\n", lines.join("\n"))
    );
    let none = programs(&lab, &[]);
    let missing = |words: &str, forge: &str, other: &str| {
        lab.forge(words).env("PATH", &none).says(1, "", forge);
        lab.forge(words)
            .env("PATH", &none)
            .called("docker-machine")
            .says(1, "", other);
    };
    missing(
        "mount n1:/srv here",
        "error: `sshfs` is not installed\nhint: install sshfs\n",
        "You must have a copy of the sshfs binary locally to use the mount feature\n",
    );
    missing(
        "mount -u n1:/srv here",
        "error: neither `fusermount3` nor `umount` is installed\nhint: install fuse3\n",
        "You must have a copy of the fusermount binary locally to use the unmount option\n",
    );
}

#[test]
fn a_folder_of_a_machine_is_mounted_where_that_can_be() {
    // A container often has no such device, or may not open it.
    let device = File::options().read(true).write(true).open("/dev/fuse");
    if device.is_err() || process::which(Path::new("sshfs")).is_none() {
        return;
    }
    let (lab, _machines) = made();
    let (there, here) = (folder(&lab, "there"), folder(&lab, "here"));
    fs::write(there.join("file"), "from there").expect("written");
    let source = format!("n1:{}", there.display());
    lab.words(&["mount", &source, "here"]).says(0, "", "");
    assert_eq!(
        fs::read_to_string(here.join("file")).expect("mounted"),
        "from there"
    );
    fs::write(here.join("other"), "from here").expect("written");
    lab.words(&["mount", "-u", &source, "here"]).says(0, "", "");
    assert!(!here.join("file").exists());
    assert_eq!(
        fs::read_to_string(there.join("other")).expect("written"),
        "from here"
    );
}
