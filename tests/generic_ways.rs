//! The ways to hosts that are there already: by the words of `ssh`'s configuration, with an agent, through another host.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::Lab;
use common::host::Host;
use forge_lab::openssh::{key, user};

#[test]
fn a_host_is_known_by_what_ssh_reaches_and_not_by_the_word_that_was_said() {
    let (lab, host) = (Lab::bare(), Host::new());
    let words = host
        .options()
        .replace("--generic-ip-address 127.0.0.1", "--generic-ip-address web")
        .replace(
            "config none",
            &format!("config {}", host.at("config").display()),
        );
    let create = |known: &str| {
        let config = host.config(known);
        let more = fs::read_to_string(&config).expect("a configuration");
        fs::write(&config, format!("Host web\n  HostName 127.0.0.1\n{more}")).expect("written");
        lab.forge(&format!("create {words} n1")).run()
    };
    let plain = host.known("host");
    let of_web = |key: &str| host.known(key).replace("127.0.0.1", "web");
    // Another host's line, by that word.
    let refused = create(&of_web("host")).code(1);
    assert!(
        refused.stderr.contains("is the host key of `web`"),
        "{}",
        refused.stderr
    );
    key(&host.at("other"), "ed25519", "");
    let refused = create(&host.known("other")).code(1);
    let hint = format!("ssh-keygen -R [127.0.0.1]:{}`", host.port);
    assert!(refused.stderr.contains(&hint), "{}", refused.stderr);
    host.nobody_tried();
    create(&format!("{}{plain}", of_web("other"))).code(0);
    lab.forge("rm -y n1").ok();
}
/// An agent of the test's own, with these keys of a host.
struct Agent {
    child: std::process::Child,
    socket: std::path::PathBuf,
}

impl Agent {
    fn with(keys: &[std::path::PathBuf], folder: &std::path::Path) -> Self {
        let socket = folder.join("agent");
        let child = std::process::Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("ssh-agent is installed (openssh-client)");
        common::until("the agent listens", || socket.exists());
        for key in keys {
            let added = std::process::Command::new("ssh-add")
                .args(["-q"])
                .arg(key)
                .env("SSH_AUTH_SOCK", &socket)
                .status()
                .expect("ssh-add");
            assert!(added.success());
        }
        Self { child, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The options that lead to a host without naming a key.
fn without_key(host: &Host, words: &str) -> String {
    words.replace(
        &format!("--generic-ssh-key {} ", host.at("user").display()),
        "",
    )
}

#[test]
fn an_agent_logs_in_with_a_key_that_lies_nowhere() {
    let (lab, host) = (Lab::bare(), Host::new());
    let agent = Agent::with(&[host.at("user")], lab.folder());
    for name in ["user", "user.pub"] {
        fs::remove_file(host.at(name)).expect("removed");
    }
    let words = without_key(&host, &format!("create {} n1", host.trusted()));
    assert!(!words.contains("--generic-ssh-key"), "{words}");
    let config = host.at("config");
    fs::write(&config, "Host *\n  IdentityFile none\n").expect("written");
    let words = words.replace("config none", &format!("config {}", config.display()));
    let alone = lab.forge(&words).run().code(1);
    assert!(
        alone.stderr.contains("no agent holds one"),
        "{}",
        alone.stderr
    );
    lab.forge(&words).env("SSH_AUTH_SOCK", &agent.socket).ok();
    assert_eq!(lab.record("n1")["stage"], "ready");
}

/// The words that adopt a host behind another, whose key is known.
fn behind(gate: &Host, host: &Host) -> String {
    let config = gate.config(&gate.known("host"));
    without_key(host, &format!("create {} n1", host.trusted()))
        .replace("config none", &format!("config {}", config.display()))
}

/// The option that leads through that host.
fn jump(gate: &Host) -> String {
    format!("--generic-jump {}@127.0.0.1:{}", user(), gate.port)
}

#[test]
fn a_host_that_lets_nobody_in_any_more_is_asked_once() {
    let (lab, gate, host) = (Lab::bare(), Host::new(), Host::new());
    let agent = Agent::with(&[gate.at("user"), host.at("user")], lab.folder());
    lab.forge(&format!("{} {}", behind(&gate, &host), jump(&gate)))
        .env("SSH_AUTH_SOCK", &agent.socket)
        .ok();
    let asked = |of: &Host| {
        let before = of.log().matches("Connection from").count();
        let start = Instant::now();
        let refused = lab
            .forge("provision n1")
            .env("SSH_AUTH_SOCK", &agent.socket)
            .env("FORGE_TIMEOUT", "20")
            .run()
            .code(1);
        assert!(start.elapsed() < Duration::from_secs(15));
        assert!(
            refused.stderr.contains("SSH authentication"),
            "{}",
            refused.stderr
        );
        of.log().matches("Connection from").count() - before
    };
    let keys = host.authorized();
    fs::write(host.at("home/.ssh/authorized_keys"), "").expect("written");
    assert_eq!(asked(&host), 1);
    fs::write(host.at("home/.ssh/authorized_keys"), keys).expect("written");
    fs::write(gate.at("home/.ssh/authorized_keys"), "").expect("written");
    // The provider is asked whether the host before accepts connections, too.
    assert!(asked(&gate) <= 2, "{}", gate.log());
}

#[test]
fn a_host_before_is_entered_as_ssh_is_configured_for_it_every_time() {
    let (lab, gate, host) = (Lab::bare(), Host::new(), Host::new());
    // No agent: the key, and the name that its host key is known by, are in the configuration alone.
    let known = gate
        .known("host")
        .replace(&format!("[127.0.0.1]:{}", gate.port), "gate.example");
    let config = gate.config(&known);
    let more = fs::read_to_string(&config).expect("a configuration");
    fs::write(
        &config,
        format!(
            "Host gate\n  HostName 127.0.0.1\n  Port {}\n  User {}\n  IdentityFile {}\n  HostKeyAlias gate.example\n{more}",
            gate.port,
            user(),
            gate.at("user").display()
        ),
    )
    .expect("written");
    let words = host
        .trusted()
        .replace("config none", &format!("config {}", config.display()));
    lab.forge(&format!("create {words} --generic-jump gate n1"))
        .ok();
    lab.forge("status n1").says(0, "Running\n", "");
    lab.forge("provision n1").ok();
    let mut seen = gate.entered();
    for words in [
        ["ssh", "n1", "--", "exit 42"],
        ["ssh", "n1", "-T", "exit 42"],
    ] {
        lab.words(&words).run().code(42);
        assert!(gate.entered() > seen, "{words:?} went past the gate");
        seen = gate.entered();
    }
    lab.forge("rm -y n1").ok();
    assert_eq!(host.own_lines(), 0);
}

#[test]
fn a_host_behind_another_is_reached_through_it() {
    let (lab, gate, host) = (Lab::bare(), Host::new(), Host::new());
    let agent = Agent::with(&[gate.at("user"), host.at("user")], lab.folder());
    let (words, jump) = (behind(&gate, &host), jump(&gate));
    lab.forge(&format!("{words} {jump}"))
        .env("SSH_AUTH_SOCK", &agent.socket)
        .ok();
    let record = lab.record("n1");
    assert_eq!(record["adopted"]["jump"]["port"], gate.port);
    assert_eq!(record["stage"], "ready");
    // The host sees its neighbour alone, which sees no more than connections.
    assert!(gate.log().contains("Accepted publickey"), "{}", gate.log());
    let list = lab.forge("ls").env("SSH_AUTH_SOCK", &agent.socket).ok();
    assert!(list.stdout.contains("v20.10.24"), "{}", list.stdout);
    lab.forge("provision n1")
        .env("SSH_AUTH_SOCK", &agent.socket)
        .ok();
    // Each of these goes through the gate, by forge itself and by OpenSSH.
    let file = lab.folder().join("file");
    fs::write(&file, "through").expect("written");
    let there = host.at("copied");
    let mut seen = gate.entered();
    for (words, code) in [
        (vec!["ssh", "n1", "--", "exit 42"], 42),
        (vec!["ssh", "n1", "-T", "exit 42"], 42),
        (vec!["logs", "n1", "--source", "engine"], 0),
        (
            vec![
                "--native-ssh",
                "scp",
                file.to_str().expect("text"),
                &format!("n1:{}", there.display()),
            ],
            0,
        ),
    ] {
        let done = lab.words(&words).env("SSH_AUTH_SOCK", &agent.socket).run();
        assert_eq!(done.code, code, "{words:?}: {}", done.stderr);
        let now = gate.entered();
        assert!(now > seen, "{words:?} went past the gate");
        seen = now;
    }
    assert_eq!(fs::read_to_string(&there).expect("copied"), "through");
    let env = lab
        .forge("env n1")
        .env("SSH_AUTH_SOCK", &agent.socket)
        .run()
        .code(1);
    assert_eq!(env.stdout, "");
    // The tunnel that is told begins at an address that is this machine's alone, and its certificate carries it.
    let there = env.stderr.split("forge ssh n1 -N -L ").nth(1).expect("how");
    let (tunnel, _) = there.split_once(':').expect("an address");
    assert!(
        tunnel.starts_with("127.") && tunnel != "127.0.0.1",
        "{tunnel}"
    );
    let names = record["tls"]["names"].to_string();
    assert!(names.contains(&format!("\"{tunnel}\"")), "{names}");
    assert!(!names.contains("localhost"), "{names}");
    lab.forge("rm -y n1")
        .env("SSH_AUTH_SOCK", &agent.socket)
        .ok();
    assert_eq!(host.own_lines(), 0);
    let unknown = words.replace(&gate.at("config").display().to_string(), "none");
    let refused = lab
        .forge(&format!("{unknown} {jump}"))
        .env("SSH_AUTH_SOCK", &agent.socket)
        .run()
        .code(1);
    assert!(
        refused.stderr.contains("log in there once by `ssh"),
        "{}",
        refused.stderr
    );
}
