//! Hosts that are there already: whom forge trusts, how it logs in, what it leaves behind.

mod common;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::Lab;
use common::host::Host;
use forge_lab::openssh::{fingerprint, key};

#[test]
fn a_host_is_adopted_used_and_left_as_it_was() {
    let (lab, host) = (Lab::bare(), Host::new());
    let before = host.authorized();
    lab.forge(&format!("create {} n1", host.trusted())).ok();
    let record = lab.record("n1");
    assert_eq!(record["stage"], "ready");
    assert_eq!(record["image"], "");
    assert_eq!(record["ssh"]["first_host_key"], serde_json::Value::Null);
    assert_eq!(host.own_lines(), 1);
    // What its user logged in with is nowhere in the store.
    let secret = fs::read_to_string(host.at("user")).expect("a key");
    let secret = secret.lines().nth(2).expect("a line of it");
    for (path, bytes) in lab.files() {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(secret), "{}", path.display());
    }
    let url = format!("tcp://127.0.0.1:{}\n", host.engine);
    lab.forge("url n1").says(0, &url, "");
    lab.forge("status n1").says(0, "Running\n", "");
    let env = lab.forge("env n1").ok();
    assert!(env.stdout.contains(url.trim_end()), "{}", env.stdout);
    let list = lab.forge("ls").ok();
    assert!(list.stdout.contains("generic"), "{}", list.stdout);
    assert!(list.stdout.contains("v20.10.24"), "{}", list.stdout);
    lab.forge("ssh n1 -- echo there").says(0, "there\n", "");
    let again = lab
        .forge("create --driver generic n1")
        .env("GENERIC_IP_ADDRESS", "127.0.0.1")
        .run();
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
    let twice = lab.forge(&format!("create {} n2", host.trusted())).run();
    assert_eq!(twice.code, 1, "{}", twice.stderr);
    assert!(
        twice.stderr.contains("is machine `n1` already"),
        "{}",
        twice.stderr
    );
    lab.forge("provision n1").ok();
    assert_eq!(host.own_lines(), 1);
    lab.forge("rm -y n1").ok();
    assert_eq!(
        host.authorized(),
        before,
        "forge's line is gone, and nothing else"
    );
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn a_key_that_nobody_knows_is_told_nothing_and_the_command_to_use_is_said() {
    let (lab, host) = (Lab::bare(), Host::new());
    let refused = lab
        .forge(&format!("create {} n1", host.options()))
        .run()
        .code(1);
    let print = host.fingerprint();
    assert!(
        refused.stderr.contains(&format!(
            "nobody says that {print} (ssh-ed25519) is the host key of `127.0.0.1`"
        )),
        "{}",
        refused.stderr
    );
    let command = format!("{} n1 --generic-host-key {print}`", host.options());
    assert!(refused.stderr.contains(&command), "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"),
        "{}",
        refused.stderr
    );
    host.nobody_tried();
    lab.forge("ls -q").says(0, "", "");
    // The command that was said, as it was said.
    let said = refused.stderr.split(": `").last().expect("a command");
    let said = said.lines().next().expect("a line").trim_end_matches('`');
    let words: Vec<&str> = said.split(' ').skip(1).collect();
    lab.words(&words).ok();
}

#[test]
fn another_fingerprint_is_refused_and_nothing_is_sent() {
    let (lab, host) = (Lab::bare(), Host::new());
    let other = host.at("other");
    key(&other, "ed25519", "");
    let other = fingerprint(&other.with_extension("pub"));
    let words = format!("create {} --generic-host-key {other} n1", host.options());
    let refused = lab.forge(&words).run().code(1);
    assert!(
        refused.stderr.contains(&host.fingerprint()),
        "{}",
        refused.stderr
    );
    assert!(
        refused
            .stderr
            .contains(&format!("accepted is only {other}")),
        "{}",
        refused.stderr
    );
    host.nobody_tried();
}

#[test]
fn known_hosts_says_whom_to_trust_hashed_or_not_and_whom_not() {
    let (lab, host) = (Lab::bare(), Host::new());
    let create = |name: &str, known: &str| {
        let config = host.config(known);
        let options = host
            .options()
            .replace("config none", &format!("config {}", config.display()));
        lab.forge(&format!("create {options} {name}")).run()
    };
    let plain = host.known("host");
    create("n1", &plain).code(0);
    lab.forge("rm -y n1").ok();
    // Hashed by OpenSSH itself.
    host.config(&plain);
    let hashed = std::process::Command::new("ssh-keygen")
        .args(["-q", "-H", "-f"])
        .arg(host.at("known_hosts"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .expect("ssh-keygen");
    assert!(hashed.success());
    let hashed = fs::read_to_string(host.at("known_hosts")).expect("hashed");
    assert!(hashed.starts_with("|1|"), "{hashed}");
    create("n1", &hashed).code(0);
    lab.forge("rm -y n1").ok();
    let seen = host.log().len();
    let refused = create("n1", &format!("{plain}@revoked {plain}")).code(1);
    assert!(refused.stderr.contains("is revoked"), "{}", refused.stderr);
    key(&host.at("other"), "ed25519", "");
    let refused = create("n1", &host.known("other")).code(1);
    assert!(
        refused.stderr.contains("is not the one in `known_hosts`"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("ssh-keygen -R"),
        "{}",
        refused.stderr
    );
    let later = host.log().split_off(seen);
    assert!(
        !later.contains("Accepted") && !later.contains("authenticating user"),
        "{later}"
    );
}

#[test]
fn an_authority_certifies_hosts_under_their_names() {
    let (lab, mut host) = (Lab::bare(), Host::new());
    key(&host.at("ca"), "ed25519", "");
    let signed = |names: &str| {
        let done = std::process::Command::new("ssh-keygen")
            .args(["-q", "-h", "-I", "host", "-n", names, "-s"])
            .args([host.at("ca"), host.at("host.pub")])
            .status()
            .expect("ssh-keygen");
        assert!(done.success());
    };
    signed("web.example");
    let line = format!("HostCertificate {}", host.at("host-cert.pub").display());
    let authority = format!(
        "@cert-authority * {}",
        fs::read_to_string(host.at("ca.pub")).expect("a key")
    );
    host.restart_with(&line);
    let options = |host: &Host| {
        let config = host.config(&authority);
        host.options()
            .replace("config none", &format!("config {}", config.display()))
    };
    let refused = lab
        .forge(&format!("create {} n1", options(&host)))
        .run()
        .code(1);
    assert!(
        refused
            .stderr
            .contains("for web.example, and not for 127.0.0.1"),
        "{}",
        refused.stderr
    );
    host.nobody_tried();
    let done = std::process::Command::new("ssh-keygen")
        .args([
            "-q",
            "-h",
            "-I",
            "host",
            "-n",
            "web.example,127.0.0.1",
            "-s",
        ])
        .args([host.at("ca"), host.at("host.pub")])
        .status()
        .expect("ssh-keygen");
    assert!(done.success());
    host.restart_with(&line);
    lab.forge(&format!("create {} n1", options(&host))).ok();
    let record = lab.record("n1");
    assert_eq!(
        record["ssh"]["accept"],
        serde_json::json!([]),
        "the leaf is not pinned"
    );
    let known = fs::read_to_string(lab.home.join("machines/n1/known_hosts")).expect("a file");
    assert!(known.starts_with("@cert-authority "), "{known}");
    lab.forge("provision n1").ok();
    lab.forge("rm -y n1").ok();
    // Whatever a configuration calls it: what counts is the name that it leads to, then and later.
    let words = options(&host).replace("-address 127.0.0.1", "-address web");
    let config = host.at("config");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, format!("Host web\n  HostName 127.0.0.1\n{text}")).expect("written");
    lab.forge(&format!("create {words} n1")).ok();
    for words in ["ssh n1 true", "ssh n1 -T true", "provision n1", "rm -y n1"] {
        lab.forge(words).ok();
    }
}

#[test]
fn a_changed_host_key_is_refused_and_nothing_is_run() {
    let (lab, mut host) = (Lab::bare(), Host::new());
    lab.forge(&format!("create {} n1", host.trusted())).ok();
    host.stop();
    for name in ["host", "host.pub"] {
        fs::remove_file(host.at(name)).expect("removed");
    }
    key(&host.at("host"), "ed25519", "");
    host.restart_with("ForceCommand touch \"$FORGE_FAKE_ROOT/ran\"");
    for words in ["provision n1", "ssh n1 -- touch x", "rm -y n1"] {
        let refused = lab.forge(words).env("FORGE_TIMEOUT", "5").run();
        assert_ne!(refused.code, 0, "{words}: {}", refused.stderr);
    }
    assert!(!host.at("root/ran").exists());
    lab.forge("rm -f n1").ok();
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn hosts_and_users_have_keys_of_all_kinds() {
    for kind in ["ecdsa", "rsa"] {
        let (lab, host) = (Lab::bare(), Host::with_key(kind));
        key(&host.at("mine"), kind, "");
        // The form that older versions of OpenSSH wrote.
        if kind == "rsa" {
            let done = std::process::Command::new("ssh-keygen")
                .args(["-q", "-p", "-N", "", "-m", "PEM", "-f"])
                .arg(host.at("mine"))
                .stdout(std::process::Stdio::null())
                .status()
                .expect("ssh-keygen");
            assert!(done.success());
            let text = fs::read_to_string(host.at("mine")).expect("a key");
            assert!(
                text.starts_with("-----BEGIN RSA PRIVATE KEY-----"),
                "{kind}"
            );
        }
        host.let_in("mine");
        let words = host.trusted().replace(
            &host.at("user").display().to_string(),
            &host.at("mine").display().to_string(),
        );
        lab.forge(&format!("create {words} n1")).ok();
        lab.forge("provision n1").ok();
    }
}

#[test]
fn a_key_that_is_not_let_in_is_named() {
    let (lab, host) = (Lab::bare(), Host::new());
    key(&host.at("mine"), "ed25519", "");
    let words = host.trusted().replace(
        &host.at("user").display().to_string(),
        &host.at("mine").display().to_string(),
    );
    let refused = lab.forge(&format!("create {words} n1")).run().code(1);
    assert!(refused.stderr.contains("/mine`"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("SSH authentication"),
        "{}",
        refused.stderr
    );
    assert_eq!(host.own_lines(), 0);
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn a_host_that_says_nothing_is_given_up_at_the_deadline_with_the_reason() {
    let lab = Lab::bare();
    // It accepts connections, and nobody ever speaks.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("its address").port();
    let start = Instant::now();
    let words = format!(
        "create --driver generic --generic-ip-address 127.0.0.1 --generic-ssh-port {port} --generic-ssh-config none \
         --timeout 3 n1"
    );
    let late = lab.forge(&words).run().code(1);
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(
        late.stderr.contains(&format!("127.0.0.1:{port}")),
        "{}",
        late.stderr
    );
    assert!(
        late.stderr.contains("SSH banner: no answer within"),
        "{}",
        late.stderr
    );
    lab.forge("ls -q").says(0, "", "");
}

#[test]
fn power_is_the_owners_and_docker_machines_words_say_so() {
    let (lab, host) = (Lab::bare(), Host::new());
    lab.forge(&format!("create {} n1", host.trusted())).ok();
    let refused = lab.forge("stop n1").run().code(1);
    assert!(
        refused
            .stderr
            .contains("the power of `127.0.0.1` is not forge's"),
        "{}",
        refused.stderr
    );
    for verb in ["stop", "kill"] {
        let refused = lab
            .forge(&format!("{verb} n1"))
            .called("docker-machine")
            .run()
            .code(1);
        let words = format!("generic driver does not support {verb}");
        assert!(refused.stderr.contains(&words), "{}", refused.stderr);
    }
}

#[test]
fn clusters_are_of_machines_that_forge_makes() {
    let lab = Lab::bare();
    let words = "cluster up --driver generic --generic-ip-address 127.0.0.1";
    let refused = lab.forge(words).run().code(2);
    assert!(
        refused.stderr.contains("`generic` makes none"),
        "{}",
        refused.stderr
    );
}

#[test]
fn an_engine_known_by_its_url_alone_is_noted_and_forgotten() {
    let lab = Lab::bare();
    let engine = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = engine.local_addr().expect("its address");
    lab.forge(&format!("create --driver none --url tcp://{at} n1"))
        .ok();
    lab.forge("url n1").says(0, &format!("tcp://{at}\n"), "");
    lab.forge("ip n1").says(0, "127.0.0.1\n", "");
    lab.forge("status n1").says(0, "Running\n", "");
    let refused = lab.forge("ssh n1 -- true").run();
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("nobody logs in there"),
        "{}",
        refused.stderr
    );
    for (verb, past) in [("stop", "stopped"), ("kill", "killed")] {
        let refused = lab
            .forge(&format!("{verb} n1"))
            .called("docker-machine")
            .run()
            .code(1);
        let words = format!("hosts without a driver cannot be {past}");
        assert!(refused.stderr.contains(&words), "{}", refused.stderr);
    }
    lab.forge("rm -y n1").ok();
    lab.forge("ls -q").says(0, "", "");
    let refused = lab.forge("create --driver none n1").run().code(2);
    assert!(
        refused.stderr.contains("`--url` is missing"),
        "{}",
        refused.stderr
    );
}

/// Every file of the host, but for its server's log and what its shells note.
fn tree(host: &Host) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = common::files(&host.at("root"));
    files.extend(common::files(&host.at("home")));
    files
}

#[test]
fn what_changes_is_shown_first_and_a_dry_run_changes_nothing() {
    let (lab, host) = (Lab::bare(), Host::new());
    let before = tree(&host);
    let words = format!("create --dry-run {} n1", host.trusted());
    let shown = lab.forge(&words).run().code(2);
    for text in [
        "adopting `127.0.0.1` as machine `n1`",
        "  stays    the engine 20.10.24, storage driver overlay2",
        "  stays    3 images, 2 containers",
        "authorized_keys of `",
        "  changes  the engine is restarted once; the 1 containers that run, run on",
    ] {
        assert!(shown.stderr.contains(text), "{text}: {}", shown.stderr);
    }
    assert_eq!(shown.stdout, "");
    assert_eq!(tree(&host), before, "nothing was changed there");
    assert!(!lab.home.exists(), "nor here");
    let json = lab.forge(&format!("--json {words}")).run().code(2).json();
    assert_eq!(json["event"], "plan");
    assert_eq!(json["plan"]["takes_over"], false);
    let made = lab.forge(&format!("create {} n1", host.trusted())).ok();
    assert!(made.stderr.contains("  changes  "), "{}", made.stderr);
    let refused = lab.forge("create --dry-run --driver fake n2").run().code(2);
    assert!(
        refused.stderr.contains("hosts that are adopted"),
        "{}",
        refused.stderr
    );
}

#[test]
fn an_engine_that_others_use_is_taken_over_only_when_that_is_meant() {
    let (lab, host) = (Lab::bare(), Host::new());
    fs::create_dir(host.at("root/etc/docker")).expect("a folder");
    fs::write(host.at("root/etc/docker/foreign"), "").expect("written");
    let words = format!("create {} n1", host.trusted());
    let refused = lab.forge(&words).run();
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("Take over what listens at port"),
        "{}",
        refused.stderr
    );
    assert_eq!(host.own_lines(), 0);
    lab.forge(&format!("{words} --yes")).ok();
}

#[test]
fn an_engine_that_runs_and_says_nothing_is_left_alone() {
    let (lab, host) = (Lab::bare(), Host::new());
    fs::create_dir(host.at("root/etc/docker")).expect("a folder");
    fs::write(host.at("root/etc/docker/silent"), "").expect("written");
    let before = tree(&host);
    for words in ["create --dry-run", "create"] {
        let refused = lab.forge(&format!("{words} {} n1", host.trusted())).run();
        assert_ne!(refused.code, 0);
        assert!(
            refused
                .stderr
                .contains("runs, and says nothing at /var/run/docker.sock"),
            "{}",
            refused.stderr
        );
        assert_eq!(tree(&host), before);
    }
}

#[test]
fn a_host_of_another_store_is_taken_over_only_when_that_is_meant() {
    let (first, second, host) = (Lab::bare(), Lab::bare(), Host::new());
    let words = format!("create {} n1", host.trusted());
    first.forge(&words).ok();
    let (lines, there) = (host.own_lines(), tree(&host));
    let refused = second.forge(&words).run();
    assert_ne!(refused.code, 0);
    for text in [
        "that store loses it",
        "Take `127.0.0.1` from the other store",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }
    assert_eq!(tree(&host), there);
    second.forge(&format!("{words} --yes")).ok();
    assert_eq!(host.own_lines(), lines + 1);
    // The first one does not take it back unasked, and what it leaves is the other's.
    let refused = first.forge("provision n1").run();
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("another store"),
        "{}",
        refused.stderr
    );
    let left = first.forge("rm -y n1").ok();
    assert!(left.stderr.contains("left to that one"), "{}", left.stderr);
    assert_eq!(host.own_lines(), lines);
    second.forge("provision n1").ok();
    second.forge("rm -y n1").ok();
    assert_eq!(host.own_lines(), 0);
}

#[test]
fn a_kill_at_every_point_is_gone_on_from_with_one_line_of_forges() {
    let host = Host::new();
    let words = format!("create {} n1", host.trusted());
    let lab = Lab::bare();
    let passed = common::points::points(&lab, &words);
    lab.forge("rm -y n1").ok();
    let saves = passed.iter().filter(|name| name.contains("machine.json"));
    assert!(saves.count() > 4, "{passed:?}");
    // Every save, and of the other points one in so many, others in each run; all in the long part.
    let step = if std::env::var_os("FORGE_LAB_KILLS").is_some() {
        1
    } else {
        8
    };
    let first = std::process::id() as usize % step;
    println!("every {step}. of {} points, from {first} on", passed.len());
    for (at, name) in (1..).zip(&passed) {
        if !name.contains("machine.json") && at % step != first {
            continue;
        }
        let lab = Lab::bare();
        let killed = lab
            .forge(&words)
            .env("FORGE_ABORT_AT", at.to_string())
            .run();
        assert_eq!(killed.code, common::points::ABORTED, "point {at}");
        assert!(host.own_lines() <= 1, "point {at}");
        let again = lab.forge(&words).run();
        let there = again
            .stderr
            .contains("error: machine `n1` already exists\n");
        assert!(
            again.code == 0 || again.code == 1 && there,
            "point {at} ({name}): {}",
            again.stderr
        );
        let record = lab.record("n1");
        assert_eq!(record["stage"], "ready", "point {at}");
        assert_eq!(host.own_lines(), 1, "point {at}");
        lab.forge("rm -y n1").ok();
        assert_eq!(host.own_lines(), 0, "point {at}");
    }
}

#[test]
fn a_host_that_was_not_left_is_not_forgotten() {
    let (lab, host) = (Lab::bare(), Host::new());
    lab.forge(&format!("create {} n1", host.trusted())).ok();
    let keys = host.authorized();
    fs::write(host.at("home/.ssh/authorized_keys"), "").expect("written");
    let refused = lab.forge("rm -y n1").run().code(1);
    assert!(
        refused.stderr.contains("`forge rm -f n1` forgets it"),
        "{}",
        refused.stderr
    );
    assert!(host.at("root/etc/docker/enabled").exists());
    lab.forge("ls -q").says(0, "n1\n", "");
    fs::write(host.at("home/.ssh/authorized_keys"), keys).expect("written");
    lab.forge("rm -y n1").ok();
    assert_eq!(host.own_lines(), 0);
}

#[test]
fn a_removal_that_is_killed_anywhere_goes_on() {
    let adopted = || {
        let (lab, host) = (Lab::bare(), Host::new());
        lab.forge(&format!("create {} n1", host.trusted())).ok();
        (lab, host)
    };
    let passed = common::points::points(&adopted().0, "rm -y n1");
    assert!(passed.len() > 4, "{passed:?}");
    common::points::each(passed.len(), |at| {
        let (lab, host) = adopted();
        let killed = common::points::aborted(&lab, "rm -y n1", at);
        assert_eq!(killed.code, common::points::ABORTED, "point {at}");
        // Behind the last point there is nothing left.
        if lab.forge("ls -q").ok().stdout == "n1\n" {
            lab.forge("rm -y n1").ok();
        }
        lab.forge("ls -q").says(0, "", "");
        assert_eq!(host.own_lines(), 0, "point {at}: {passed:?}");
    });
}

#[test]
fn another_address_behind_a_stable_name_costs_no_certificate() {
    let (lab, host) = (Lab::bare(), Host::new());
    let words = host.trusted().replace(
        "--generic-ip-address 127.0.0.1",
        "--generic-ip-address localhost",
    );
    lab.forge(&format!("create {words} n1")).ok();
    // The address was another one when its certificate was made.
    let text = lab.record("n1").to_string();
    let mut record: serde_json::Value =
        serde_json::from_str(&text.replace("127.0.0.1", "127.0.0.7")).expect("JSON");
    let names = record["tls"]["names"].as_array_mut().expect("names");
    names.sort_by_key(ToString::to_string);
    common::sshd::put(&lab, "n1", &record);
    let server = || fs::read_to_string(lab.home.join("machines/n1/server.pem")).expect("one");
    let before = server();
    let url = format!("tcp://localhost:{}", host.engine);
    let env = lab.forge("env n1").ok();
    assert!(env.stdout.contains(&url), "{}", env.stdout);
    let list = lab.forge("ls").ok();
    assert!(list.stdout.contains("v20.10.24"), "{}", list.stdout);
    lab.forge("provision n1").ok();
    let record = lab.record("n1");
    let found = record["instance"]["endpoints"]["engine"].to_string();
    assert!(
        found.contains("127.0.0.1"),
        "the new address is known: {found}"
    );
    assert_eq!(server(), before);
}

#[test]
fn a_restart_is_asked_of_the_host() {
    let (lab, host) = (Lab::bare(), Host::new());
    lab.forge(&format!("create {} n1", host.trusted())).ok();
    // Nobody restarts this host: it is asked, and waited for.
    let late = lab
        .forge("restart n1")
        .env("FORGE_TIMEOUT", "3")
        .run()
        .code(1);
    assert!(host.at("root/restarted").exists());
    assert!(
        late.stderr.contains("did not restart within 3 s"),
        "{}",
        late.stderr
    );
}
