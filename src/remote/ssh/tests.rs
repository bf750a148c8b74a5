//! Connections to a real OpenSSH server, and to things that are none.

use std::net::TcpListener as StdListener;
use std::ops::ControlFlow;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::remote::testing::Sshd;
use crate::remote::{Dial, Guest, fingerprint};

const DEADLINE: Duration = Duration::from_secs(30);

async fn open(server: &Sshd) -> SshGuest {
    connect(&server.target(), DEADLINE).await.expect("connects")
}

#[tokio::test]
async fn a_command_has_input_outputs_and_a_status() {
    let server = Sshd::start();
    let guest = open(&server).await;
    assert_eq!(
        fingerprint(guest.host_key()).ok(),
        fingerprint(&server.host.public_openssh).ok()
    );
    let output = guest
        .exec("cat; echo err >&2; exit 7", b"in\0put", DEADLINE)
        .await
        .expect("runs");
    assert_eq!(output.stdout, b"in\0put");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status, 7);
    let output = guest
        .exec("kill -KILL $$", b"", DEADLINE)
        .await
        .expect("runs");
    assert_eq!(output.status, 137);
    guest.close().await;
}

#[tokio::test]
async fn large_input_and_output_pass_at_once_and_output_is_bounded() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let output = guest.exec("cat", &input, DEADLINE).await.expect("runs");
    assert_eq!(output.stdout.len(), crate::remote::OUTPUT_LIMIT);
    assert_eq!(output.stdout[..], input[..crate::remote::OUTPUT_LIMIT]);
}

#[tokio::test]
async fn many_commands_share_a_connection() {
    let server = Sshd::start();
    let guest = Arc::new(open(&server).await);
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..8 {
        let guest = Arc::clone(&guest);
        tasks.spawn(async move {
            (
                index,
                guest.exec(&format!("echo {index}"), b"", DEADLINE).await,
            )
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (index, output) = done.expect("joined");
        assert_eq!(output.expect("runs").text(), format!("{index}\n"));
    }
}

#[tokio::test]
async fn a_command_that_does_not_read_its_input_still_ends() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let output = guest
        .exec("exit 3", &vec![b'x'; 20 << 20], DEADLINE)
        .await
        .expect("ends");
    assert_eq!(output.status, 3);
}

#[tokio::test]
async fn a_command_is_left_at_its_deadline_and_the_connection_lives() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let error = guest
        .exec("sleep 60", b"", Duration::from_millis(300))
        .await
        .expect_err("slow");
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(
        error
            .message()
            .starts_with("failed to run `sleep 60` on `127.0.0.1:"),
        "{error}"
    );
    assert_eq!(
        guest
            .exec("echo on", b"", DEADLINE)
            .await
            .expect("runs")
            .text(),
        "on\n"
    );
}

#[tokio::test]
async fn a_command_that_is_left_meets_a_closed_pipe() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let folder = tempfile::tempdir().expect("folder");
    let pid = folder.path().join("pid");
    let command = format!(
        "echo $$ >{}; while :; do echo on; sleep 0.05; done",
        pid.display()
    );
    let error = guest
        .exec(&command, b"", Duration::from_secs(5))
        .await
        .expect_err("endless");
    assert_eq!(error.kind(), Kind::Timeout);
    let pid = std::fs::read_to_string(&pid).expect("it had begun");
    let gone = tokio::time::timeout(DEADLINE, async {
        while std::path::Path::new("/proc").join(pid.trim()).exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    gone.await.expect("it ended by itself");
}

#[tokio::test]
async fn a_sink_may_end_a_command_whose_output_is_held_open() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let mut seen = Vec::new();
    let mut sink = |bytes: &[u8]| {
        seen.extend_from_slice(bytes);
        if seen.ends_with(b"done\n") {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let output = guest
        .stream("sleep 5 & echo done", b"", DEADLINE, &mut sink)
        .await
        .expect("ends");
    assert_eq!(output.status, 0);
    assert_eq!(seen, b"done\n");
}

#[tokio::test]
async fn a_dead_connection_ends_what_runs_over_it() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let error = guest
        .exec("kill -KILL $PPID; sleep 60", b"", DEADLINE)
        .await
        .expect_err("cut off");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.line().contains("the connection was lost"),
        "{}",
        error.line()
    );
}

#[tokio::test]
async fn another_host_key_is_refused_with_both_fingerprints() {
    let server = Sshd::start();
    let other = generate_key("other").expect("key").public_openssh;
    let mut target = server.target();
    target.expect.keys = vec![other.clone()];
    let error = connect(&target, DEADLINE).await.expect_err("another key");
    assert_eq!(
        (error.kind(), failed_phase(&error)),
        (Kind::Refused, Some(Phase::HostKey))
    );
    for key in [&server.host.public_openssh, &other] {
        assert!(
            error
                .line()
                .contains(&fingerprint(key).expect("fingerprint")),
            "{}",
            error.line()
        );
    }
    assert!(error.deepest_hint().is_some());
    // Both accepted, as while a machine changes its key.
    target.expect.keys.push(server.host.public_openssh.clone());
    connect(&target, DEADLINE).await.expect("accepted");
}

#[tokio::test]
async fn no_accepted_key_means_no_connection() {
    let server = Sshd::start();
    let mut target = server.target();
    target.expect.keys.clear();
    assert_eq!(
        connect(&target, DEADLINE)
            .await
            .expect_err("nothing accepted")
            .kind(),
        Kind::Invalid
    );
}

#[tokio::test]
async fn a_server_without_an_ed25519_key_gets_no_further_than_the_key_exchange() {
    let server = ecdsa_server().await;
    let target = Target {
        address: server,
        user: "x".to_owned(),
        key: generate_key("x").expect("key").private_openssh,
        expect: Expect {
            keys: vec![generate_key("x").expect("key").public_openssh],
            ..Expect::default()
        },
    };
    let error = connect(&target, DEADLINE)
        .await
        .expect_err("another kind of key");
    assert_eq!(failed_phase(&error), Some(Phase::KeyExchange));
    assert!(
        error.line().contains("ssh-ed25519") && error.line().contains("ecdsa-sha2-nistp256"),
        "{}",
        error.line()
    );
}

/// A server of the test's own that has an ECDSA host key alone.
async fn ecdsa_server() -> SocketAddr {
    use russh::server::{self, Server as _};
    struct Nobody;
    impl server::Server for Nobody {
        type Handler = Self;
        fn new_client(&mut self, _: Option<SocketAddr>) -> Self {
            Self
        }
    }
    impl server::Handler for Nobody {
        type Error = russh::Error;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen is installed (openssh-client)");
    assert!(made.success());
    let key = PrivateKey::read_openssh_file(&path).expect("key");
    let config = Arc::new(server::Config {
        keys: vec![key],
        ..server::Config::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { Nobody.run_on_socket(config, &listener).await });
    address
}

#[tokio::test]
async fn a_stranger_s_key_fails_in_authentication() {
    let server = Sshd::start();
    let mut target = server.target();
    target.key = generate_key("stranger").expect("key").private_openssh;
    let error = connect(&target, DEADLINE).await.expect_err("refused");
    assert_eq!(
        (error.kind(), failed_phase(&error)),
        (Kind::Refused, Some(Phase::Authentication))
    );
    assert!(error.line().contains(&target.user), "{}", error.line());
}

#[tokio::test]
async fn a_closed_port_fails_in_tcp() {
    let server = Sshd::start();
    let mut target = server.target();
    target.address = StdListener::bind("127.0.0.1:0")
        .expect("port")
        .local_addr()
        .expect("address");
    let error = connect(&target, DEADLINE).await.expect_err("closed");
    assert_eq!(
        (error.kind(), failed_phase(&error)),
        (Kind::Unavailable, Some(Phase::Tcp))
    );
}

/// A listener that sends `greeting` to each caller, then closes or stays silent.
async fn listener(greeting: &'static [u8], stay: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(greeting).await;
                let mut rest = Vec::new();
                if stay {
                    let _ = stream.read_to_end(&mut rest).await;
                } else {
                    let mut some = [0; 64];
                    let _ = stream.read(&mut some).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn silence_and_nonsense_are_told_by_phase() {
    let server = Sshd::start();
    let cases: [(&[u8], bool, Phase, Kind); 5] = [
        (b"", true, Phase::Banner, Kind::Timeout),
        (b"", false, Phase::Banner, Kind::Unavailable),
        (
            b"HTTP/1.0 400 Bad Request\r\n\r\n",
            false,
            Phase::Banner,
            Kind::Unavailable,
        ),
        (
            b"SSH-2.0-silent\r\n",
            true,
            Phase::KeyExchange,
            Kind::Timeout,
        ),
        (
            b"SSH-2.0-gone\r\n",
            false,
            Phase::KeyExchange,
            Kind::Unavailable,
        ),
    ];
    for (greeting, stay, phase, kind) in cases {
        let mut target = server.target();
        target.address = listener(greeting, stay).await;
        let error = connect(&target, Duration::from_millis(700))
            .await
            .expect_err("no server");
        let shown = String::from_utf8_lossy(greeting).into_owned();
        assert_eq!(
            (failed_phase(&error), error.kind()),
            (Some(phase), kind),
            "{shown:?}: {}",
            error.line()
        );
        let error = presented_key(target.address, Duration::from_millis(700))
            .await
            .expect_err("no key");
        assert_eq!(
            failed_phase(&error),
            Some(phase),
            "{shown:?}: {}",
            error.line()
        );
    }
}

#[tokio::test]
async fn a_stream_leads_through_the_machine() {
    let server = Sshd::start();
    let guest = open(&server).await;
    let there = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let SocketAddr::V4(address) = there.local_addr().expect("address") else {
        panic!("an IPv4 address");
    };
    tokio::spawn(async move {
        let (mut stream, _) = there.accept().await.expect("a caller");
        let mut asked = [0; 512];
        let _ = stream.read(&mut asked).await;
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhere").await;
    });
    let stream = guest
        .dial(&Dial::Tcp(address), DEADLINE)
        .await
        .expect("there");
    let answer = crate::http::ask(stream, crate::http::Question::get("/"))
        .await
        .expect("answers");
    assert_eq!(answer.body, b"here");
    // Nobody listens any more.
    let error = guest
        .dial(&Dial::Tcp(address), DEADLINE)
        .await
        .err()
        .expect("closed");
    assert_eq!(error.kind(), Kind::Unavailable);
    let said = guest.exec("echo on", b"", DEADLINE).await.expect("runs");
    assert_eq!(said.text(), "on\n", "the connection lives");
}

/// Hands connections on to `server`, all but the first, which stays open and dead.
async fn restarting(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let dead = listener.accept().await.expect("the first");
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut onward = TcpStream::connect(server).await.expect("server");
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
        drop(dead);
    });
    address
}

#[tokio::test]
async fn a_connection_that_a_restart_left_dead_is_made_anew() {
    let server = Sshd::start();
    let mut target = server.target();
    target.address = restarting(server.address).await;
    let guest = connect_in_attempts(&target, Duration::from_secs(2), DEADLINE)
        .await
        .expect("the second attempt");
    let said = guest.exec("echo on", b"", DEADLINE).await.expect("runs");
    assert_eq!(said.text(), "on\n");

    target.address = listener(b"", false).await;
    let error = connect_in_attempts(&target, Duration::from_secs(2), DEADLINE)
        .await
        .expect_err("closed");
    assert_eq!(
        error.kind(),
        Kind::Unavailable,
        "an answer is not asked for again"
    );
}

#[tokio::test]
async fn the_presented_key_is_read_without_a_login() {
    let server = Sshd::start();
    let key = presented_key(server.address, DEADLINE)
        .await
        .expect("presented");
    assert_eq!(
        fingerprint(&key).ok(),
        fingerprint(&server.host.public_openssh).ok()
    );
    assert!(
        key.starts_with("ssh-ed25519 ") && key.split(' ').count() == 2,
        "{key}"
    );
}

#[tokio::test]
async fn sessions_outlive_the_listening_server() {
    let mut server = Sshd::start();
    let guest = open(&server).await;
    server.stop();
    assert_eq!(
        guest
            .exec("echo on", b"", DEADLINE)
            .await
            .expect("runs")
            .text(),
        "on\n"
    );
    assert!(!guest.is_closed());
}

#[test]
fn nothing_secret_is_printed() {
    let key = generate_key("x").expect("key").private_openssh;
    let target = Target {
        address: "127.0.0.1:22".parse().expect("address"),
        user: "forge".to_owned(),
        key,
        expect: Expect::default(),
    };
    assert!(!format!("{target:?}").contains("PRIVATE"));
}
