//! Interactive sessions: this process's standard streams, connected to a command or a shell there.

use std::env;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result};
use russh::{ChannelMsg, ChannelWriteHalf, client};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::exec::{STDERR, lost, number};
use super::signals::{Delivery, Signals};
use super::ssh::SshGuest;

/// What a shell reports for a program that wrote to a closed pipe: 128 + SIGPIPE.
const BROKEN_PIPE: i32 = 141;

/// The terminal in raw mode for as long as this lives: keys go to the other side untouched.
///
/// It is put back when the value is dropped, also while a panic unwinds.
struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Raw mode, when standard input is a terminal.
    fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = || "failed to set the terminal to raw mode".to_owned();
        let terminal = rustix::io::dup(&stdin).or_fail(Kind::Io, failed)?;
        let before = termios::tcgetattr(&terminal).or_fail(Kind::Io, failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Drain, &raw).or_fail(Kind::Io, failed)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Columns and rows of the terminal; the classic size where there is none.
fn window() -> (u32, u32) {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_col > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Standard input, piece by piece; closed at its end.
///
/// A plain thread reads it, because a read cannot be taken back: a task of the runtime that waits in one
/// would keep the process from ending after the other side has. The channel holds a few pieces, so a
/// slow connection slows the reading down.
fn stdin_pieces() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let stdin = io::stdin();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                        break;
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => break,
            }
        }
    });
    receiver
}

async fn forward_input(
    writer: &ChannelWriteHalf<client::Msg>,
    pieces: &mut mpsc::Receiver<Vec<u8>>,
) {
    while let Some(piece) = pieces.recv().await {
        if writer.data(piece.as_slice()).await.is_err() {
            return;
        }
    }
    let _ = writer.eof().await;
}

/// Ends when the grace does, with the code to leave with; never where there is none.
async fn end_of(grace: Option<(Instant, i32)>) -> i32 {
    match grace {
        Some((end, code)) => {
            sleep_until(end).await;
            code
        }
        None => std::future::pending().await,
    }
}

async fn put(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// What a session's streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// A terminal there, and ours in raw mode where there is one.
    Terminal,
    /// Three streams.
    Plain,
    /// The same, with nothing on standard input.
    OutputAlone,
}

/// The same signal within this time is the same one.
const TWICE: Duration = Duration::from_millis(500);

/// A command that was told to end is waited for so long.
const GRACE: Duration = Duration::from_secs(10);

impl SshGuest {
    /// Connects this process's standard streams to `command`, or to a login shell, until it ends, and
    /// returns its exit status (128 + n after signal n).
    ///
    /// Bytes pass unchanged both ways, at the pace of the slower side; the end of standard input is
    /// passed on. With `tty` the other side gets a terminal: ours is in raw mode meanwhile and put back
    /// whatever happens, and changes of its size are passed on. Without it, the signals that this process is sent go to
    /// the command; to one that asks for the end (SIGTERM, SIGHUP), the command has [`GRACE`] to follow.
    ///
    /// # Errors
    /// When the connection is lost, or the process is told to end while there is a terminal.
    pub async fn session(&self, command: Option<&[u8]>, streams: Streams) -> Result<i32> {
        let tty = streams == Streams::Terminal;
        let failed = || format!("the session with `{}` ended early", self.address);
        let broken =
            |error: russh::Error| Error::new(Kind::Unavailable, failed()).because(lost(error));
        let mut resized = signal(SignalKind::window_change()).or_fail(Kind::Io, failed)?;
        let mut signals = Signals::all().or_fail(Kind::Io, failed)?;

        let channel = self.handle.channel_open_session().await.map_err(broken)?;
        if tty {
            let (columns, rows) = window();
            let term = env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            channel
                .request_pty(false, &term, columns, rows, 0, 0, &[])
                .await
                .map_err(broken)?;
        }
        match command {
            Some(command) => channel.exec(true, command).await.map_err(broken)?,
            None => channel.request_shell(true).await.map_err(broken)?,
        }
        let raw = if tty { Raw::enter()? } else { None };

        let (mut reader, writer) = channel.split();
        let mut pieces = match streams {
            Streams::OutputAlone => mpsc::channel(1).1,
            Streams::Plain | Streams::Terminal => stdin_pieces(),
        };
        let input = async {
            forward_input(&writer, &mut pieces).await;
            std::future::pending::<()>().await;
        };
        tokio::pin!(input);
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        let mut status = None;
        let mut delivery: Option<Delivery> = None;
        let mut grace: Option<(Instant, i32)> = None;
        let mut last: Option<(i32, Instant)> = None;
        loop {
            let message = tokio::select! {
                message = reader.wait() => message,
                () = &mut input => None,
                _ = resized.recv() => {
                    let (columns, rows) = window();
                    let _ = writer.window_change(columns, rows, 0, 0).await;
                    continue;
                }
                caught = signals.next() => {
                    // `timeout` signals its child, and then the group that the child is in: one signal, sent twice.
                    let again = last.replace((caught.number, Instant::now()));
                    if again.is_some_and(|(number, then)| number == caught.number && then.elapsed() < TWICE) {
                        continue;
                    }
                    // On a terminal a key is no signal, so this one is for the session as a whole.
                    if tty {
                        return Err(Error::new(Kind::Interrupted, failed()).because(caught.meaning));
                    }
                    // One that did not arrive, or a second wish to end: there is nobody to wait for.
                    if delivery.is_some() || (grace.is_some() && caught.ends) {
                        return Ok(128 + caught.number);
                    }
                    if caught.ends {
                        grace = Some((Instant::now() + GRACE, 128 + caught.number));
                    }
                    delivery = Some(self.deliver(caught));
                    continue;
                }
                undelivered = Delivery::ended(&mut delivery) => {
                    delivery = None;
                    if let Some(signal) = undelivered {
                        // RFC 4254, section 6.9. OpenSSH ignores it in sessions of root.
                        let _ = writer.signal(signal).await;
                    }
                    continue;
                }
                code = end_of(grace) => return Ok(code),
            };
            let written = match message {
                None | Some(ChannelMsg::Close) => break,
                Some(ChannelMsg::Data { data }) => put(&mut stdout, &data).await,
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => {
                    put(&mut stderr, &data).await
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    status = Some(exit_status.cast_signed());
                    Ok(())
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    status = Some(128 + number(&signal_name));
                    Ok(())
                }
                Some(ChannelMsg::Failure) => {
                    return Err(Error::new(Kind::Refused, failed())
                        .because("the server refused to run a command"));
                }
                Some(_) => Ok(()),
            };
            if written.is_err() {
                // Whoever read our output has gone: nothing of what follows can be delivered.
                let _ = writer.close().await;
                status = Some(BROKEN_PIPE);
                break;
            }
        }
        drop(raw);
        status.ok_or_else(|| {
            Error::new(Kind::Unavailable, failed()).because("the connection was lost")
        })
    }
}

#[cfg(test)]
mod tests {
    //! A session owns the standard streams, so each test starts this very binary as the one that has it.

    use std::env;
    use std::io::Write;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    use crate::remote::ssh::connect;
    use crate::remote::testing::Sshd;

    const MARK: &str = "SESSION-BEGINS";

    /// What the started binary does: a session as the environment says, then it leaves with its status.
    #[tokio::test]
    async fn child() {
        let Ok(words) = env::var("FORGE_TEST_SESSION") else {
            return;
        };
        let words: Vec<String> = serde_json::from_str(&words).expect("words");
        let target = crate::remote::ssh::Target {
            address: words[0].parse().expect("address"),
            user: words[1].clone(),
            key: words[2].as_str().into(),
            expect: crate::remote::Expect {
                keys: vec![words[3].clone()],
                ..Default::default()
            },
        };
        let guest = connect(&target, Duration::from_secs(30))
            .await
            .expect("connects");
        let streams = match words[5].as_str() {
            "tty" => super::Streams::Terminal,
            _ => super::Streams::Plain,
        };
        let status = guest
            .session(Some(words[4].as_bytes()), streams)
            .await
            .expect("ends");
        std::process::exit(status);
    }

    fn words(server: &Sshd, command: &str, tty: bool) -> String {
        let target = server.target();
        serde_json::to_string(&[
            target.address.to_string().as_str(),
            target.user.as_str(),
            target.key.expose(),
            target.expect.keys[0].as_str(),
            command,
            if tty { "tty" } else { "plain" },
        ])
        .expect("JSON")
    }

    const ARGUMENTS: [&str; 4] = [
        "--exact",
        "--nocapture",
        "--test-threads=1",
        "remote::session::tests::child",
    ];

    async fn session(server: &Sshd, command: &str, input: Vec<u8>) -> Output {
        let mut child = Command::new(env::current_exe().expect("binary"))
            .args(ARGUMENTS)
            .env(
                "FORGE_TEST_SESSION",
                words(server, &format!("printf {MARK}; {command}"), false),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // From a thread of its own: a session that reads slowly must not keep its output from being read.
        let feeder = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = tokio::task::spawn_blocking(move || child.wait_with_output())
            .await
            .expect("joined")
            .expect("ends");
        feeder.join().expect("fed");
        output
    }

    fn after_mark(output: &Output) -> &[u8] {
        let start = output
            .stdout
            .windows(MARK.len())
            .position(|bytes| bytes == MARK.as_bytes());
        &output.stdout[start.expect("the mark") + MARK.len()..]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_pass_unchanged_both_ways_with_their_end_and_status() {
        let server = Sshd::start();
        let input: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
        let output = session(&server, "cat; echo err >&2; exit 9", input.clone()).await;
        assert!(
            after_mark(&output) == input,
            "{} bytes came back",
            after_mark(&output).len()
        );
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(output.stderr, b"err\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_signal_becomes_a_status() {
        let server = Sshd::start();
        let output = session(&server, "kill -TERM $$", Vec::new()).await;
        assert_eq!(output.status.code(), Some(143));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_that_goes_ends_the_session() {
        let server = Sshd::start();
        let mut child = Command::new(env::current_exe().expect("binary"))
            .args(ARGUMENTS)
            .env("FORGE_TEST_SESSION", words(&server, "yes", false))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut some = [0; 4096];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut some)
            .expect("some output");
        drop(child.stdout.take());
        let status = tokio::task::spawn_blocking(move || child.wait())
            .await
            .expect("joined")
            .expect("ends");
        assert_eq!(status.code(), Some(super::BROKEN_PIPE));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_terminal_is_passed_on_with_its_size_and_put_back() {
        let server = Sshd::start();
        let command = "[ -t 0 ] && [ -t 1 ] && printf 'size '; stty size; exit 4";
        let line = format!(
            "stty cols 101 rows 31; {} {}; echo status $?; stty -a",
            env::current_exe().expect("binary").display(),
            ARGUMENTS.join(" ")
        );
        // script(1) gives the line a terminal of its own.
        let output = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("FORGE_TEST_SESSION", words(&server, command, true))
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .output();
        let output = tokio::task::spawn_blocking(move || output)
            .await
            .expect("joined")
            .expect("script(1) is installed");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.contains("size 31 101"), "{shown}");
        assert!(shown.contains("status 4"), "{shown}");
        let after = &shown[shown.find("status 4").expect("status")..];
        assert!(
            after.contains(" icanon") && after.contains(" echo "),
            "the terminal is as before: {after}"
        );
    }
}
