//! Hosts that are adopted by somebody at a terminal: what is asked there, what is answered, and that nothing of a secret
//! shows, is kept or is told to anybody else.

mod common;

use std::fs;

use common::host::Host;
use common::terminal::typed;
use common::{Lab, files};
use forge_lab::openssh::key;

const PASSPHRASE: &str = "opens-sesame-4711";
const PASSWORD: &str = "becomes-root-0815";
const QUESTION: &str = "or the fingerprint] ";

/// The options that lead to a host by another key than the usual one.
fn by_key(host: &Host, name: &str) -> String {
    let usual = host.at("user").display().to_string();
    let other = host.at(name).display().to_string();
    host.trusted().replace(&usual, &other)
}

/// What was typed is neither in the store nor in its logs, nor anywhere else beside.
fn kept_nowhere(lab: &Lab, secret: &str) {
    for (path, bytes) in files(lab.folder()) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(secret), "{}", path.display());
    }
}

#[test]
fn whose_a_host_key_is_a_person_says_by_yes_or_by_the_fingerprint() {
    let (lab, host) = (Lab::bare(), Host::new());
    let words = format!("create {} n1", host.options());
    for answer in ["no\n", "\n", "SHA256:AAAA\n", "y\n"] {
        typed(&lab, &lab.forge(&words), &[(QUESTION, answer)])
            .code(1)
            .shows(&format!(
                "{} (ssh-ed25519) of `127.0.0.1`",
                host.fingerprint()
            ))
            .shows("is not trusted: the answer was not yes, and nothing was sent to it");
        assert!(!host.log().contains("Accepted publickey"), "{}", host.log());
        assert!(!lab.home.exists(), "nothing is noted of it");
    }
    for answer in ["yes\n".to_owned(), format!("{}\n", host.fingerprint())] {
        typed(&lab, &lab.forge(&words), &[(QUESTION, &answer)])
            .code(0)
            .hides("is not trusted");
        assert_eq!(lab.record("n1")["stage"], "ready");
        // From then on it is known.
        lab.forge("provision n1").ok();
        lab.forge("rm -y n1").ok();
    }
}

#[test]
fn a_key_with_a_passphrase_is_opened_at_the_terminal_and_what_is_typed_shows_nowhere() {
    let (lab, host) = (Lab::bare(), Host::new());
    key(&host.at("locked"), "ed25519", PASSPHRASE);
    host.let_in("locked");
    let words = format!("--debug create {} n1", by_key(&host, "locked"));
    let asked = format!("Passphrase of `{}`: ", host.at("locked").display());
    let wrong = "not-the-right-one-42";

    // Nobody is there.
    let refused = lab.forge(&words).run().code(1);
    let said = "/locked` has a passphrase, and there is no terminal to ask for it";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);

    // Three tries, then the reason.
    let again = format!("That does not open it. {asked}");
    let lines = [asked.as_str(), again.as_str(), again.as_str()];
    let dialogue = lines.map(|question| (question, "not-the-right-one-42\n"));
    typed(&lab, &lab.forge(&words), &dialogue)
        .code(1)
        .shows("has a passphrase, and none of those that were given opens it")
        .hides(wrong);
    assert!(!host.log().contains("Accepted publickey"), "{}", host.log());
    // Ctrl-C is heard while nothing shows.
    typed(&lab, &lab.forge(&words), &[(&asked, "half\u{3}")])
        .code(130)
        .hides("half");
    typed(&lab, &lab.forge(&words), &[(&asked, "\n")])
        .code(1)
        .shows("has a passphrase, and nothing was typed");
    assert!(!lab.home.exists(), "nothing is noted of it");

    let right = format!("{PASSPHRASE}\n");
    let shown = typed(
        &lab,
        &lab.forge(&words),
        &[(&asked, &format!("{wrong}\n")), (&again, &right)],
    )
    .code(0)
    .hides(wrong)
    .hides(PASSPHRASE);
    assert_eq!(shown.text.matches(&asked).count(), 2, "{}", shown.text);
    assert_eq!(lab.record("n1")["stage"], "ready");
    // It has a key of forge's own now.
    lab.forge("provision n1").ok();
    for secret in [PASSPHRASE, wrong] {
        kept_nowhere(&lab, secret);
    }
}

#[test]
fn nobody_is_asked_to_open_a_key_that_the_host_does_not_take() {
    let (lab, host) = (Lab::bare(), Host::new());
    key(&host.at("locked"), "ed25519", PASSPHRASE);
    let config = host.at("two");
    let text = format!(
        "Host *\n  IdentityAgent none\n  IdentityFile {}\n  IdentityFile {}\n",
        host.at("locked").display(),
        host.at("user").display()
    );
    fs::write(&config, text).expect("written");
    let words = host
        .trusted()
        .replace(
            &format!("--generic-ssh-key {} ", host.at("user").display()),
            "",
        )
        .replace("config none", &format!("config {}", config.display()));
    typed(&lab, &lab.forge(&format!("create {words} n1")), &[])
        .code(0)
        .hides("Passphrase");
    assert_eq!(lab.record("n1")["stage"], "ready");
}

#[test]
fn what_sudo_asks_for_is_typed_once_a_command_or_kept_where_secrets_are() {
    let (lab, mut host) = (Lab::bare(), Host::new());
    host.ask_for(PASSWORD);
    let words = format!("--debug create {} n1", host.trusted());
    let asked = "What `sudo` asks for on `n1`: ";
    let line = format!("{PASSWORD}\n");

    let refused = lab.forge(&words).run().code(1);
    for said in [
        "`sudo` asks for a password there, and there is no terminal to ask for it",
        "forge credentials set sudo/n1",
    ] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    assert!(!lab.home.exists());
    typed(&lab, &lab.forge(&words), &[(asked, "\u{3}")]).code(130);

    let shown = typed(&lab, &lab.forge(&words), &[(asked, &line)])
        .code(0)
        .hides(PASSWORD);
    assert_eq!(shown.text.matches(asked).count(), 1, "{}", shown.text);
    assert_eq!(lab.record("n1")["adopted"]["sudo_password"], true);

    // Every command that runs a playbook there asks; one that runs none does not.
    let certificate = || fs::read(lab.home.join("machines/n1/server.pem")).expect("a certificate");
    let before = certificate();
    for command in [
        "--debug provision n1",
        "--debug regenerate-certs -f n1",
        "--debug upgrade n1",
    ] {
        let shown = typed(&lab, &lab.forge(command), &[(asked, &line)])
            .code(0)
            .hides(PASSWORD);
        assert_eq!(shown.text.matches(asked).count(), 1, "{}", shown.text);
        let refused = lab.forge(command).run().code(1);
        assert!(
            refused.stderr.contains("`sudo` asks for a password there"),
            "{command}: {}",
            refused.stderr
        );
    }
    assert_ne!(certificate(), before);
    for command in ["stop n1", "kill n1"] {
        let refused = lab.forge(command).run().code(1);
        assert!(
            refused.stderr.contains("is not forge's"),
            "{command}: {}",
            refused.stderr
        );
    }
    for command in ["ls", "env n1", "url n1", "ssh n1 -- true"] {
        lab.forge(command).ok();
    }
    // Of all machines it is told, and keeps no other from being done.
    let all = lab.forge("regenerate-certs --all -f").run().code(1);
    assert!(
        all.stderr
            .contains("warning: machine `n1`: `sudo` asks for a password there"),
        "{}",
        all.stderr
    );
    // A wrong one is the host's to refuse.
    typed(&lab, &lab.forge("provision n1"), &[(asked, "wrong-one\n")])
        .code(1)
        .shows("Sorry, try again");
    kept_nowhere(&lab, PASSWORD);

    // Kept, it is asked for no more; what is said counts before it.
    let seal = lab.folder().join("seal");
    fs::write(&seal, "a passphrase of several words\n").expect("written");
    lab.forge("credentials set sudo/n1 -")
        .env("FORGE_PASSPHRASE_FILE", &seal)
        .given(format!("{PASSWORD}\n"))
        .ok();
    fs::remove_file(lab.folder().join("input")).expect("removed");
    for command in ["provision n1", "regenerate-certs -f n1", "upgrade n1"] {
        lab.forge(command).env("FORGE_PASSPHRASE_FILE", &seal).ok();
    }
    let wrong = host.at("wrong");
    fs::write(&wrong, "wrong-one\n").expect("written");
    let refused = lab
        .forge("provision n1")
        .env("FORGE_PASSPHRASE_FILE", &seal)
        .env("FORGE_SUDO_PASSWORD_FILE", &wrong)
        .run()
        .code(1);
    assert!(
        refused.stderr.contains("Sorry, try again"),
        "{}",
        refused.stderr
    );
    kept_nowhere(&lab, PASSWORD);
    lab.forge("rm -y n1")
        .env("FORGE_PASSPHRASE_FILE", &seal)
        .ok();
}
