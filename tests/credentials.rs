//! A token goes to the provider and nowhere else: where it is looked for, where it is kept, and where it is not seen.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{FORGE, Lab, Run, files, until};
use forge_driver::fake::Knob;

const TOKEN: &str = "dop_v1_4fd1a0c7";
const PASSPHRASE: &str = "several words in a row";

/// A store whose provider asks for the token.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::write(lab.provider.root().join("token"), TOKEN).expect("written");
    lab
}

/// A file that the owner alone reads.
fn secret_file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.folder().join(name);
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
    path
}

fn passphrase(lab: &Lab) -> PathBuf {
    secret_file(lab, "passphrase", &format!("{PASSPHRASE}\n"))
}

/// The command, which knows the passphrase.
fn knowing<'a>(lab: &'a Lab, words: &str) -> Run<'a> {
    lab.forge(words)
        .env("FORGE_PASSPHRASE_FILE", passphrase(lab))
}

/// Keeps the token in the sealed file.
fn keep(lab: &Lab) {
    knowing(lab, "credentials set fake -")
        .given(format!("{TOKEN}\n"))
        .ok();
}

/// Asserts that none of these secrets lies in a file of the store.
#[track_caller]
fn nowhere_in_the_store(lab: &Lab, secrets: &[&str]) {
    for (path, bytes) in lab.files() {
        for secret in secrets {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "`{secret}` is in {}", path.display());
        }
    }
}

/// The command lines of all processes but those that are named otherwise.
fn command_lines() -> String {
    let mut all = String::new();
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        all.push_str(&String::from_utf8_lossy(&line));
        all.push('\n');
    }
    all
}

#[test]
fn without_a_keyring_secrets_are_sealed_in_the_store_and_it_says_so() {
    let lab = lab();
    let said = "no keyring answers on a session bus: `fake` is kept in HOME/credentials.sealed, sealed by the passphrase; what a keyring has under this name counts wherever it answers\n";
    knowing(&lab, "credentials set fake -")
        .given(format!("{TOKEN}\n"))
        .says(0, "", said);
    // Their names can be seen without the passphrase.
    let unasked =
        "the keyring was not asked, and may keep others: no keyring answers on a session bus\n";
    lab.forge("credentials ls")
        .says(0, "NAME   KEPT IN\nfake   sealed file\n", unasked);
    let json = lab.forge("credentials ls --json").ok().json();
    assert_eq!(
        json,
        serde_json::json!({
            "secrets": [{"name": "fake", "kept": "file"}],
            "without_keyring": "no keyring answers on a session bus",
        })
    );
    let path = lab.home.join("credentials.sealed");
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    nowhere_in_the_store(&lab, &[TOKEN, PASSPHRASE]);
    // It serves, and is asked for once.
    knowing(&lab, "create n1").ok();
    knowing(&lab, "rm -y n1").ok();
    knowing(&lab, "credentials rm fake").says(
        0,
        "",
        "warning: `fake` is gone from the sealed file; the keyring was not asked, and may keep another: no keyring answers on a session bus\n",
    );
    assert!(!path.exists(), "there is nothing left to seal");
    lab.forge("credentials rm fake").says(
        1,
        "",
        "error: no secret `fake` is in the sealed file, and the keyring was not asked\ncaused by: no keyring answers on a session bus\nhint: `forge credentials ls` shows the names\n",
    );
    lab.forge("credentials ls")
        .says(0, "NAME   KEPT IN\n", unasked);
}

#[test]
fn a_sealed_file_that_does_not_open_is_told_and_left_alone() {
    let lab = lab();
    keep(&lab);
    let path = lab.home.join("credentials.sealed");
    let whole = fs::read(&path).expect("a file");
    let nobody = lab.forge("create n1").run().code(1);
    assert!(
        nobody.stderr.contains("there is no terminal to ask on"),
        "{}",
        nobody.stderr
    );
    let wrong = secret_file(&lab, "wrong", "something else entirely");
    let create = |file: &Path| {
        let run = lab.forge("create n1").env("FORGE_PASSPHRASE_FILE", file);
        run.run().code(1).stderr
    };
    let said = create(&wrong);
    assert!(
        said.contains("failed to open `HOME/credentials.sealed`"),
        "{said}"
    );
    assert!(said.contains("the passphrase does not open it"), "{said}");
    assert!(!said.contains("something else"), "{said}");
    let right = passphrase(&lab);
    fs::write(&path, &whole[..whole.len() - 1]).expect("cut off");
    let said = create(&right);
    assert!(said.contains("damaged or cut off"), "{said}");
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    fs::write(&path, &flipped).expect("flipped");
    assert!(create(&right).contains("damaged"));
    fs::write(&path, "").expect("emptied");
    assert!(create(&right).contains("first lines are damaged"));
    fs::write(&path, &whole).expect("as it was");
    // A value that cannot be added leaves the file as it was.
    lab.forge("credentials set other -")
        .env("FORGE_PASSPHRASE_FILE", &wrong)
        .given("x")
        .run()
        .code(1);
    assert_eq!(fs::read(&path).expect("a file"), whole);
    assert!(lab.provider.creates().is_empty());
}

#[test]
fn words_that_make_no_sense_keep_nothing() {
    let lab = Lab::bare();
    for (words, input) in [
        ("credentials set a/ -", "x"),
        ("credentials set a -", ""),
        ("credentials set a - --passphrase-file -", "x"),
        ("credentials set a - --passphrase-file /nonexistent", "x"),
        ("credentials set a", "x"),
        ("credentials rm a", ""),
    ] {
        let ended = knowing(&lab, words).given(input).run();
        assert_ne!(ended.code, 0, "{words}");
    }
    let short = secret_file(&lab, "short", "1234567\n");
    let ended = lab
        .forge("credentials set a -")
        .env("FORGE_PASSPHRASE_FILE", &short)
        .given("x")
        .run()
        .code(2);
    assert!(
        ended.stderr.contains("fewer than 8 characters"),
        "{}",
        ended.stderr
    );
    assert!(!lab.home.join("credentials.sealed").exists());
}

#[test]
fn a_token_comes_from_the_flag_the_environment_the_providers_file_and_then_what_is_kept() {
    let lab = lab();
    let refused = "the provider does not accept the token";
    let none = lab.forge("create n1").run().code(1).stderr;
    assert!(
        none.contains("there is no token for the driver `fake`"),
        "{none}"
    );
    assert!(
        none.contains("caused by: the keyring was not asked: no keyring answers on a session bus"),
        "{none}"
    );
    assert!(
        none.contains("set FAKE_TOKEN, or let `forge credentials set fake` keep it"),
        "{none}"
    );
    let config = lab.folder().join(".config/fake");
    fs::create_dir_all(&config).expect("a folder");
    let theirs = config.join("token");
    // Each place is wrong while a nearer one has the token.
    keep(&lab);
    knowing(&lab, "create n1").ok();
    fs::write(&theirs, "wrong").expect("written");
    assert!(
        knowing(&lab, "create n2")
            .run()
            .code(1)
            .stderr
            .contains(refused)
    );
    fs::write(&theirs, TOKEN).expect("written");
    // With it no passphrase is asked for.
    lab.forge("create n2").ok();
    let variable = |value| lab.forge("stop n2").env("FAKE_TOKEN", value);
    assert!(variable("wrong").run().code(1).stderr.contains(refused));
    fs::write(&theirs, "wrong").expect("written");
    variable(TOKEN).ok();
    let flag = lab
        .words(&["create", "n3", "--fake-token", TOKEN])
        .env("FAKE_TOKEN", "wrong")
        .ok();
    let warning = "warning: everybody on this host sees the token in the process list while this runs; FAKE_TOKEN or `forge credentials set fake` does not show it\n";
    assert!(flag.stderr.starts_with(warning), "{}", flag.stderr);
    assert!(!flag.stderr.contains(TOKEN));
    // What asks no provider needs no token at all.
    fs::remove_file(theirs).expect("removed");
    lab.forge("ip n1").ok();
    nowhere_in_the_store(&lab, &[TOKEN, PASSPHRASE]);
}

/// Point 11: secrets in plain text.
#[test]
fn a_token_is_seen_nowhere_while_a_command_runs_and_afterwards() {
    // Other tests have theirs in command lines.
    let token = &*format!("dop_v1_{}", std::process::id());
    let lab = Lab::new();
    fs::write(lab.provider.root().join("token"), token).expect("written");
    knowing(&lab, "credentials set fake -").given(token).ok();
    for (machine, by_variable) in [("n1", true), ("n2", false)] {
        lab.turn(Knob::HoldCreate, true);
        let create = format!("create --debug {machine}");
        let running = if by_variable {
            lab.forge(&create).env("FAKE_TOKEN", token)
        } else {
            knowing(&lab, &create)
        }
        .start();
        until("the provider is asked", || {
            let calls = lab.provider.calls();
            calls
                .iter()
                .filter(|call| call.starts_with("create"))
                .count()
                == if by_variable { 1 } else { 2 }
        });
        let seen = command_lines();
        let itself = format!("\0create\0--debug\0{machine}\0");
        assert!(seen.contains(&itself), "forge itself is among them");
        for secret in [token, PASSPHRASE] {
            assert!(!seen.contains(secret), "`{secret}` is in a command line");
        }
        lab.turn(Knob::HoldCreate, false);
        let ended = running.wait(&lab).code(0);
        for said in [&ended.stdout, &ended.stderr] {
            assert!(!said.contains(token), "{said}");
        }
    }
    for words in ["inspect n1", "inspect n2", "ls --json", "create --help"] {
        let shown = lab.forge(words).env("FAKE_TOKEN", token).ok();
        assert!(!shown.stdout.contains(token), "{words}");
    }
    assert!(lab.logged().contains("driver.create"), "there is a log");
    assert!(lab.home.join("machines/n1/config.json").exists());
    nowhere_in_the_store(&lab, &[token, PASSPHRASE]);
}

/// A script, on a session bus of its own with a keyring that is unlocked.
fn with_keyring<'a>(lab: &'a Lab, script: &str) -> Run<'a> {
    let runtime = lab.folder().join("runtime");
    if !runtime.exists() {
        fs::create_dir(&runtime).expect("a folder");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("closed");
    }
    let script = format!(
        "printf pw | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1\nset -e\n{script}"
    );
    lab.forge("")
        .env("FORGE", FORGE)
        .env("XDG_RUNTIME_DIR", &runtime)
        .under("dbus-run-session", &["--", "sh", "-c", &script], &[])
}

/// Without what the bus and the keyring have to say; the keyring's word ends no line.
fn own_words(stderr: &str) -> String {
    let stderr = stderr.replace("discover_other_daemon: 1", "");
    let lines = stderr.split_inclusive('\n');
    lines
        .filter(|line| !line.starts_with("dbus-daemon"))
        .collect()
}

#[test]
fn a_keyring_keeps_secrets_where_there_is_one() {
    let lab = lab();
    // The value is in the keyring, which needs no passphrase of ours.
    let script = format!(
        r#"printf '%s\n' {TOKEN} | "$FORGE" credentials set fake -
        "$FORGE" credentials ls
        "$FORGE" create n1 2>/dev/null
        printf '%s\n' wrong | "$FORGE" credentials set fake -
        ! "$FORGE" stop n1 2>/dev/null
        printf '%s\n' other | "$FORGE" credentials set sudo/n1 -
        "$FORGE" credentials ls
        "$FORGE" credentials rm fake sudo/n1
        "$FORGE" credentials ls"#
    );
    let ended = with_keyring(&lab, &script).ok();
    assert_eq!(
        ended.stdout,
        "NAME   KEPT IN\nfake   keyring\nNAME      KEPT IN\nfake      keyring\nsudo/n1   keyring\nNAME   KEPT IN\n",
        "{}",
        ended.stderr
    );
    assert_eq!(own_words(&ended.stderr), "");
    assert!(!lab.home.join("credentials.sealed").exists());
    nowhere_in_the_store(&lab, &[TOKEN]);
    // One store does not see what another keeps, in the same keyring.
    let other = Lab::new();
    let script = format!(
        r#"printf '%s\n' {TOKEN} | "$FORGE" credentials set fake -
        FORGE_HOME={} "$FORGE" credentials ls"#,
        other.home.display()
    );
    let ended = with_keyring(&lab, &script).ok();
    assert_eq!(ended.stdout, "NAME   KEPT IN\n", "{}", ended.stderr);
    // The keyring's own files hold it encrypted.
    for (path, bytes) in files(&lab.folder().join(".local")) {
        let found = bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[test]
fn what_a_keyring_keeps_now_is_kept_nowhere_else() {
    let lab = lab();
    for passphrase in [true, false] {
        knowing(&lab, "credentials set fake -").given("wrong").ok();
        let script = format!(
            r#"printf '%s\n' {TOKEN} | "$FORGE" credentials set fake -
            "$FORGE" credentials ls
            "$FORGE" credentials ls --json"#
        );
        let run = with_keyring(&lab, &script);
        let ended = if passphrase {
            run.env("FORGE_PASSPHRASE_FILE", self::passphrase(&lab))
        } else {
            run
        }
        .ok();
        let path = lab.home.join("credentials.sealed");
        assert_eq!(path.exists(), !passphrase, "{}", ended.stderr);
        let (table, note) = if passphrase {
            ("fake   keyring\n", "")
        } else {
            (
                "fake   keyring\nfake   sealed file\n",
                "warning: `fake` is kept in the keyring, and an earlier one is still in the sealed file: ",
            )
        };
        let both = format!("NAME   KEPT IN\n{table}");
        assert!(ended.stdout.starts_with(&both), "{}", ended.stdout);
        assert!(
            ended.stdout.contains("\"without_keyring\":null"),
            "{}",
            ended.stdout
        );
        let said = own_words(&ended.stderr);
        assert!(
            said.starts_with(note) && said.is_empty() == note.is_empty(),
            "{said}"
        );
    }
}

#[test]
fn a_keyring_that_stays_locked_holds_nothing_up() {
    let lab = lab();
    // A bus without a keyring, and a keyring that was never unlocked.
    for keyring in [
        "",
        "gnome-keyring-daemon --start --components=secrets >/dev/null 2>&1\n",
    ] {
        let script = format!(r#"{keyring}printf '%s\n' {TOKEN} | "$FORGE" credentials set fake -"#);
        let ended = lab
            .forge("")
            .env("FORGE", FORGE)
            .env("FORGE_PASSPHRASE_FILE", passphrase(&lab))
            .under("dbus-run-session", &["--", "sh", "-c", &script], &[])
            .ok();
        assert!(
            ended
                .stderr
                .contains("`fake` is kept in HOME/credentials.sealed"),
            "{}",
            ended.stderr
        );
        let said = own_words(&ended.stderr);
        assert_eq!(said.lines().count(), 1, "it is said once: {said}");
    }
    knowing(&lab, "create n1").ok();
}

/// What a terminal shows of `forge credentials set fake` while these lines are typed, each after its question.
fn typed(lab: &Lab, dialogue: &[(&str, &str)]) -> String {
    let keys = lab.folder().join("keys");
    // That of the dialogue before would never be opened from the other side.
    let _ = fs::remove_file(&keys);
    let script =
        format!("mkfifo keys && exec script -qec '{FORGE} credentials set fake' /dev/null <keys");
    let mut running = lab.forge("").under("sh", &["-c", &script], &[]).start();
    until("it can be typed", || keys.exists());
    let mut keys = fs::File::options().write(true).open(keys).expect("opened");
    let mut screen = running.child.stdout.take().expect("a screen");
    let mut shown = String::new();
    for (question, line) in dialogue {
        while !shown.ends_with(question) {
            let mut bytes = [0; 512];
            let count = screen.read(&mut bytes).expect("shown");
            assert_ne!(count, 0, "it waits for an answer: {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        keys.write_all(line.as_bytes()).expect("typed");
    }
    screen.read_to_string(&mut shown).expect("shown");
    drop(keys);
    running.wait(lab);
    shown
}

#[test]
fn a_passphrase_is_typed_unseen_and_twice_when_it_is_new() {
    let lab = lab();
    let value = ("Value of `fake`: ", &*format!("{TOKEN}\n"));
    let path = lab.home.join("credentials.sealed");
    let first = format!("New passphrase for `{}`: ", path.display());
    let mistyped = format!("wrong\u{15}{PASSPHRASE}x\u{7f}\n");
    let same = ("The same again: ", &*format!("{PASSPHRASE}\n"));
    let shown = typed(&lab, &[value, (&first, &mistyped), same]);
    assert!(shown.contains("is kept in"), "{shown}");
    assert!(
        !shown.contains(TOKEN) && !shown.contains("words"),
        "{shown}"
    );
    knowing(&lab, "create n1").ok();
    let again = format!("Passphrase of `{}`: ", path.display());
    let before = fs::read(&path).expect("a file");
    for (answer, said) in [
        ("\u{3}", "interrupted"),
        ("\u{4}", "nothing was typed"),
        ("\n", "nothing was typed"),
        ("another one\n", "the passphrase does not open it"),
    ] {
        let shown = typed(&lab, &[value, (&again, answer)]);
        assert!(shown.contains(said), "{said}: {shown}");
    }
    assert_eq!(fs::read(&path).expect("a file"), before);
}
