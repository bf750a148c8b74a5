//! `forge ssh` against a real OpenSSH server: streams, codes, signals, terminals, OpenSSH's options and host keys; by
//! OpenSSH's program and by this one alone.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use common::sshd::{Sshd, alive, programs};
use common::{Lab, Run, until};
use forge_driver::fake::Knob;
use rustix::process::Signal;

/// A machine `n1`.
fn made() -> (Lab, Sshd) {
    let lab = Lab::new();
    let sshd = Sshd::of(&lab, "n1");
    (lab, sshd)
}

/// The three ways: as it is chosen, by OpenSSH because of an option, and without OpenSSH.
fn ways<'a>(lab: &'a Lab, empty: &Path, command: &str) -> [Run<'a>; 4] {
    [
        lab.words(&["ssh", "n1", "--", command]),
        lab.words(&["ssh", "n1", "-T", "--", command]),
        lab.words(&["--native-ssh", "ssh", "n1", "-T", command]),
        lab.words(&["ssh", "n1", "-q", command]).env("PATH", empty),
    ]
}

#[test]
fn point_19_the_code_of_the_remote_command_is_forges() {
    let (lab, _sshd) = made();
    let empty = programs(&lab, &[]);
    for run in ways(&lab, &empty, "echo out; echo err >&2; exit 42") {
        run.says(42, "out\n", "err\n");
    }
    // The words are one line for the shell there.
    lab.forge("ssh n1 echo $((6*7)) ; exit 3")
        .says(3, "42\n", "");
    lab.forge("ssh n1 echo $((6*7)) ; exit 3")
        .called("docker-machine")
        .says(3, "42\n", "");
    lab.forge("ssh n1 -- kill -TERM $$").run().code(143);
    lab.forge("ssh n1").given("exit 7\n").run().code(7);
}

#[test]
fn point_12_a_provider_that_cannot_be_asked_keeps_nobody_out() {
    let (lab, _sshd) = made();
    lab.turn(Knob::Down, true);
    let before = lab.provider.calls();
    lab.forge("ssh n1 true").says(0, "", "");
    lab.forge("ssh n1 -T true").says(0, "", "");
    assert_eq!(lab.provider.calls(), before);
}

#[test]
fn bytes_pass_unchanged_both_ways_and_so_does_their_end() {
    let (lab, _sshd) = made();
    let empty = programs(&lab, &[]);
    let input: Vec<u8> = (0..750_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    for run in ways(&lab, &empty, "cat; printf err >&2") {
        let output = run.given(&input).raw();
        assert!(
            output.stdout == input,
            "{} bytes came back",
            output.stdout.len()
        );
        assert_eq!(output.stderr, b"err");
        assert_eq!(output.status.code(), Some(0));
    }
    for words in ["ssh n1 wc -c", "ssh n1 -T wc -c"] {
        lab.forge(words).says(0, "0\n", "");
    }
    // What is on standard input stays there with `-n`.
    for way in ["", "--native-ssh "] {
        lab.forge(&format!("{way}ssh n1 -n wc -c"))
            .given("abc")
            .says(0, "0\n", "");
    }
}

#[test]
fn a_signal_ends_the_remote_command_and_one_that_is_caught_there_is_answered() {
    let (lab, _sshd) = made();
    let file = |name: &str| lab.folder().join(name);
    let read = |name: &str| fs::read_to_string(file(name)).unwrap_or_default();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let name = format!("pid-{code}");
        // It says nothing, so a broken pipe would not end it.
        let command = format!("echo $$ >{}; exec sleep 600", file(&name).display());
        let running = lab.words(&["ssh", "n1", "--", &command]).start();
        until("the command begins", || read(&name).ends_with('\n'));
        // timeout(1) sends it twice.
        running.signal(signal);
        running.signal(signal);
        running.wait(&lab).code(code);
        let pid = read(&name);
        until("it is gone", || !alive(pid.trim()));
    }
    let command = format!(
        "trap 'echo caught; exit 5' INT; echo >{}; while :; do sleep 0.05; done",
        file("begun").display()
    );
    let running = lab.words(&["ssh", "n1", &command]).start();
    until("the command begins", || file("begun").exists());
    running.interrupt();
    let ended = running.wait(&lab).code(5);
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("caught\n", "")
    );
}

#[test]
fn a_command_that_does_not_follow_is_left_at_the_second_signal() {
    let (lab, _sshd) = made();
    let begun = lab.folder().join("begun");
    let command = format!(
        "trap '' TERM; echo $$ >{}; until [ -e {}/go ]; do sleep 0.05; done",
        begun.display(),
        lab.folder().display()
    );
    let running = lab.words(&["ssh", "n1", &command]).start();
    until("the command begins", || begun.exists());
    running.signal(Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(700));
    running.signal(Signal::TERM);
    running.wait(&lab).code(143);
    fs::write(lab.folder().join("go"), "").expect("written");
    let pid = fs::read_to_string(begun).expect("a pid");
    until("it has gone", || !alive(pid.trim()));
}

#[test]
fn there_is_a_terminal_when_it_is_interactive() {
    let (lab, _sshd) = made();
    let empty = programs(&lab, &[]);
    // script(1) gives a line a terminal of its own; what is typed comes from a pipe.
    let typed = |run: Run<'_>, after: &str, keys: &str| {
        let line = format!("stty cols 101 rows 31; {}; echo ends with $?", run.line());
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) is installed");
        let mut stdin = child.stdin.take().expect("piped");
        let mut stdout = child.stdout.take().expect("piped");
        let mut shown = String::new();
        let mut piece = [0; 4096];
        let mut keys = Some(keys);
        loop {
            if shown.contains(after)
                && let Some(keys) = keys.take()
            {
                stdin.write_all(keys.as_bytes()).expect("typed");
            }
            match stdout.read(&mut piece).expect("read") {
                0 => break,
                count => shown.push_str(&String::from_utf8_lossy(&piece[..count])),
            }
        }
        drop(stdin);
        child.wait().expect("it ends");
        shown
    };
    let probe = "tty >/dev/null && stty size && exit 4\r";
    for run in [lab.forge("ssh n1"), lab.forge("ssh n1").env("PATH", &empty)] {
        let shown = typed(run, "", probe);
        assert!(shown.contains("31 101"), "{shown}");
        assert!(shown.contains("ends with 4"), "{shown}");
    }
    for words in ["ssh n1 -t", "ssh -t n1", "--native-ssh ssh n1 -t"] {
        let mut all: Vec<&str> = words.split(' ').collect();
        all.push("stty size; exit 6");
        let shown = typed(lab.words(&all), "", "");
        assert!(
            shown.contains("31 101") && shown.contains("ends with 6"),
            "{shown}"
        );
    }
    // Keys are signals there, not here.
    let shown = typed(
        lab.words(&[
            "ssh",
            "n1",
            "-t",
            "trap 'echo caught; exit 8' INT; echo begun; sleep 20",
        ]),
        "begun",
        "\u{3}",
    );
    assert!(
        shown.contains("caught") && shown.contains("ends with 8"),
        "{shown}"
    );
    // Forced, it is there without one here.
    lab.words(&["ssh", "-t", "n1", "tty >/dev/null; exit $?"])
        .run()
        .code(0);
    lab.words(&["ssh", "n1", "tty >/dev/null; exit $?"])
        .run()
        .code(1);
}

/// A server on 127.0.0.1 that says `hello` to everybody, and its port.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 512];
            // The client may have gone.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello");
        }
    });
    port
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn fetched(words: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-s", "-m", "10"])
        .args(words)
        .output();
    String::from_utf8_lossy(&output.expect("curl is installed").stdout).into_owned()
}

#[test]
fn ports_are_forwarded() {
    let (lab, _sshd) = made();
    let empty = programs(&lab, &[]);
    let there = greeter();
    for (at, path) in [None, Some(&empty)].into_iter().enumerate() {
        let (here, socks) = (free_port(), free_port());
        let forward = format!("{here}:localhost:{there}");
        let mut words = vec!["ssh", "n1", "-N", "-L", &forward];
        let dynamic = socks.to_string();
        if path.is_none() {
            words.extend(["-D", &dynamic]);
        }
        let mut run = lab.words(&words);
        if let Some(path) = path {
            run = run.env("PATH", path);
        }
        let running = run.start();
        until("it listens", || {
            TcpStream::connect(("127.0.0.1", here)).is_ok()
        });
        assert_eq!(
            fetched(&[&format!("http://127.0.0.1:{here}/")]),
            "hello",
            "{at}"
        );
        if path.is_none() {
            let proxy = format!("127.0.0.1:{socks}");
            let url = format!("http://127.0.0.1:{there}/");
            assert_eq!(fetched(&["--socks5-hostname", &proxy, &url]), "hello");
        }
        running.signal(Signal::INT);
        let ended = running.wait(&lab);
        assert!([130, 255].contains(&ended.code), "{ended:?}");
        assert!(
            TcpStream::connect(("127.0.0.1", here)).is_err(),
            "nothing listens any more"
        );
    }
    // Beside a command, and where the port is taken.
    let here = free_port();
    let forward = format!("{here}:127.0.0.1:{there}");
    let command = format!("curl -s -m 10 http://127.0.0.1:{here}/");
    for way in ["ssh", "--native-ssh ssh"] {
        let mut words: Vec<&str> = way.split(' ').collect();
        words.extend(["n1", "-L", &forward, &command]);
        lab.words(&words).says(0, "hello", "");
    }
    let taken = TcpListener::bind(("127.0.0.1", here)).expect("taken");
    let ended = lab
        .words(&["--native-ssh", "ssh", "n1", "-NL", &forward])
        .run()
        .code(1);
    assert!(
        ended
            .stderr
            .contains(&format!("failed to listen at port {here} of 127.0.0.1")),
        "{}",
        ended.stderr
    );
    drop(taken);
}

#[test]
fn an_agent_is_there_when_it_is_asked_for_and_compression_too() {
    let (lab, _sshd) = made();
    let socket = lab.folder().join("agent");
    let mut agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("ssh-agent is installed");
    until("the agent listens", || socket.exists());
    let asks = "[ -S \"$SSH_AUTH_SOCK\" ] && echo there";
    for (words, says, code) in [
        ("ssh n1 -A", "there\n", 0),
        ("ssh n1 -a", "", 1),
        ("ssh n1", "", 1),
    ] {
        let mut words: Vec<&str> = words.split(' ').collect();
        words.push(asks);
        lab.words(&words)
            .env("SSH_AUTH_SOCK", &socket)
            .says(code, says, "");
    }
    agent.kill().expect("it runs");
    agent.wait().expect("it ends");
    let ended = lab.words(&["ssh", "n1", "-vC", "true"]).ok();
    assert!(
        ended.stderr.contains("Enabling compression"),
        "{}",
        ended.stderr
    );
}

#[test]
fn without_openssh_an_option_that_needs_it_is_named() {
    let (lab, _sshd) = made();
    let empty = programs(&lab, &[]);
    for (words, letter) in [
        ("-D 1080 -N", 'D'),
        ("-A true", 'A'),
        ("-C true", 'C'),
        ("-R 1:x:2 -N", 'R'),
        ("-o Port=7 true", 'o'),
    ] {
        let says = format!(
            "error: the option `-{letter}` of ssh needs OpenSSH's own program\nhint: install openssh-client; it is used where it is installed and `--native-ssh` is not given\n"
        );
        lab.forge(&format!("ssh n1 {words}"))
            .env("PATH", &empty)
            .says(2, "", &says);
        for variable in ["FORGE_NATIVE_SSH", "MACHINE_NATIVE_SSH"] {
            lab.forge(&format!("ssh n1 {words}"))
                .env(variable, "1")
                .says(2, "", &says);
        }
    }
    lab.forge("ssh n1 -z")
        .env("PATH", &empty)
        .says(2, "", "error: `-z` is not an option of ssh\n");
    lab.forge("ssh n1 -T true")
        .env("MACHINE_NATIVE_SSH", "maybe")
        .says(
            2,
            "",
            "error: MACHINE_NATIVE_SSH is neither true nor false: `maybe`\n",
        );
    let shown = |words: &str| lab.forge(words).ok().stderr;
    assert_eq!(
        shown("--debug --native-ssh ssh n1 -T true"),
        "SSH by forge itself\n"
    );
    assert!(shown("--debug ssh n1 -T true").starts_with("SSH by `/"));
}

#[test]
fn point_15_a_host_key_that_changed_is_refused_and_nothing_is_run() {
    let (lab, mut sshd) = made();
    let empty = programs(&lab, &[]);
    sshd.with_another_key();
    let marker = lab.folder().join("ran");
    let command = format!("touch {}", marker.display());
    for (at, run) in ways(&lab, &empty, &command).into_iter().enumerate() {
        let ended = run.run().code(if at == 1 { 255 } else { 1 });
        let says = if at == 1 {
            "Host key verification failed"
        } else {
            "host key"
        };
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    // No option takes that back.
    let words = [
        "ssh",
        "n1",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        &command,
    ];
    lab.words(&words).run().code(255);
    assert!(!marker.exists(), "nothing was run");
    assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());
}

#[test]
fn a_machine_that_is_off_is_told_and_a_name_of_openssh_options_is_no_option_of_ours() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab.forge("stop n1").ok();
    let off = "error: failed to connect to machine `n1`\ncaused by: it is not running: it is Stopped\nhint: `forge start n1` starts it\n";
    lab.forge("ssh n1 true").says(1, "", off);
    lab.forge("ssh n1 -N").says(1, "", off);
    lab.forge("ssh n1 true").called("docker-machine").says(
        1,
        "",
        "Error: Cannot run SSH command: Host \"n1\" is not running\n",
    );
    // `-D` and `-s` are options of forge before the machine, and of ssh behind it.
    lab.forge("ssh -D n1 -D 1080 -s x").says(1, "", off);
}
