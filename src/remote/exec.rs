//! Commands over a connection: input, bounded output, deadline, exit status.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Error, Kind, Result};
use russh::client::Handle;
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelStream, ChannelWriteHalf, Sig,
    client,
};
use tokio::sync::oneshot;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::ssh::{Checker, SshGuest, seconds};
use super::{Dial, ExecOutput, Guest, OUTPUT_LIMIT, Sink};
use crate::http::Stream;

/// SSH's number for the stream of errors (RFC 4254, 5.2: `SSH_EXTENDED_DATA_STDERR`).
pub(super) const STDERR: u32 = 1;

/// The engine's socket (dockerd(8), `-H fd://`).
const ENGINE_SOCKET: &str = "/run/docker.sock";

#[async_trait]
impl Guest for SshGuest {
    async fn dial(&self, to: &Dial, deadline: Duration) -> Result<Box<dyn Stream>> {
        let shown = match to {
            Dial::Engine => "the engine's socket".to_owned(),
            Dial::Tcp(address) => format!("`{address}`"),
            Dial::Host(host, port) => format!("`{host}:{port}`"),
        };
        let failed = || format!("failed to reach {shown} through `{}`", self.address);
        match self.channel_within(to, deadline).await {
            Ok(Ok(channel)) => Ok(Box::new(channel.into_stream())),
            Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited))) => {
                Err(Error::new(Kind::Refused, failed())
                    .because("its SSH server does not forward")
                    .hint("allow it in sshd_config: `AllowTcpForwarding local` and `AllowStreamLocalForwarding local`"))
            }
            Ok(Err(error)) => Err(Error::new(Kind::Unavailable, failed()).because(lost(error))),
            Err(_) => Err(Error::new(Kind::Timeout, failed())
                .because(format!("no answer within {}", seconds(deadline)))),
        }
    }

    async fn exec(&self, command: &str, input: &[u8], deadline: Duration) -> Result<ExecOutput> {
        let mut stdout = Vec::new();
        let mut keep = |bytes: &[u8]| {
            keep(&mut stdout, bytes);
            ControlFlow::Continue(())
        };
        let mut output = self.stream(command, input, deadline, &mut keep).await?;
        output.stdout = stdout;
        Ok(output)
    }

    async fn stream(
        &self,
        command: &str,
        input: &[u8],
        deadline: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<ExecOutput> {
        let end = Instant::now() + deadline;
        let lost = |why: String| Error::new(Kind::Unavailable, self.failed(command)).because(why);
        let late = || {
            Error::new(Kind::Timeout, self.failed(command))
                .because(format!("it did not end within {}", seconds(deadline)))
        };
        let (mut reader, writer) = match timeout_at(end, self.start(command)).await {
            Ok(started) => started.map_err(lost)?,
            Err(_) => return Err(late()),
        };
        let feeding = async {
            // A command that does not read its input to the end says so by its exit status.
            let _ = feed(&writer, input).await;
            std::future::pending().await
        };
        let output = tokio::select! {
            output = timeout_at(end, collect(&mut reader, sink)) => output,
            never = feeding => never,
        };
        // A command that is left behind meets a closed pipe at its next word.
        let _ = timeout(Duration::from_millis(200), writer.close()).await;
        match output {
            Ok(output) => output.map_err(lost),
            Err(_) => Err(late()),
        }
    }
}

impl SshGuest {
    fn failed(&self, command: &str) -> String {
        let line = command.lines().next().unwrap_or_default();
        let shown: String = line.chars().take(60).collect();
        let more = if shown.len() < command.len() {
            " …"
        } else {
            ""
        };
        format!("failed to run `{shown}{more}` on `{}`", self.address)
    }

    /// Opens a channel. One that comes about after the deadline is closed then: whoever is at its other end
    /// would wait for a word of it.
    async fn channel_within(
        &self,
        to: &Dial,
        deadline: Duration,
    ) -> Result<Result<Channel<client::Msg>, russh::Error>, Elapsed> {
        let (handle, to) = (Arc::clone(&self.handle), to.clone());
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let opened = channel_to(&handle, &to).await;
            if let Err(Ok(late)) = sender.send(opened) {
                // Nobody is told that it could not be closed: the connection is gone then.
                let _ = late.close().await;
            }
        });
        let opened = timeout(deadline, receiver).await?;
        Ok(opened.unwrap_or(Err(russh::Error::Disconnect)))
    }

    /// A stream to a host that the machine knows by this name.
    pub(super) fn dial_named(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = Result<ChannelStream<client::Msg>, russh::Error>> + Send + use<> {
        let (handle, host) = (Arc::clone(&self.handle), host.to_owned());
        async move {
            // RFC 4254, section 7.2; who connected here is nobody's business there.
            let opened = handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0);
            Ok(opened.await?.into_stream())
        }
    }

    /// Starts a command; whoever asks reads and feeds it.
    pub(super) async fn run(
        &self,
        command: &str,
    ) -> Result<(ChannelReadHalf, ChannelWriteHalf<client::Msg>)> {
        let lost = |why: String| Error::new(Kind::Unavailable, self.failed(command)).because(why);
        self.start(command).await.map_err(lost)
    }

    async fn start(
        &self,
        command: &str,
    ) -> Result<(ChannelReadHalf, ChannelWriteHalf<client::Msg>), String> {
        let channel = self.handle.channel_open_session().await.map_err(lost)?;
        channel.exec(true, command).await.map_err(lost)?;
        Ok(channel.split())
    }
}

async fn channel_to(
    handle: &Handle<Checker>,
    to: &Dial,
) -> Result<Channel<client::Msg>, russh::Error> {
    match to {
        // OpenSSH, PROTOCOL, section 2.4: direct-streamlocal@openssh.com.
        Dial::Engine => handle.channel_open_direct_streamlocal(ENGINE_SOCKET).await,
        // RFC 4254, section 7.2.
        Dial::Tcp(address) => {
            let (host, port) = (address.ip().to_string(), address.port().into());
            handle
                .channel_open_direct_tcpip(host, port, "127.0.0.1", 0)
                .await
        }
        Dial::Host(host, port) => {
            handle
                .channel_open_direct_tcpip(host, (*port).into(), "127.0.0.1", 0)
                .await
        }
    }
}

async fn feed(writer: &ChannelWriteHalf<client::Msg>, input: &[u8]) -> Result<(), russh::Error> {
    if !input.is_empty() {
        writer.data(input).await?;
    }
    writer.eof().await
}

async fn collect(reader: &mut ChannelReadHalf, sink: &mut Sink<'_>) -> Result<ExecOutput, String> {
    let mut status = None;
    let mut stderr = Vec::new();
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } if sink(&data).is_break() => {
                status = Some(0);
                break;
            }
            ChannelMsg::ExtendedData { data, ext: STDERR } => keep(&mut stderr, &data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status.cast_signed()),
            ChannelMsg::ExitSignal { signal_name, .. } => status = Some(128 + number(&signal_name)),
            ChannelMsg::Failure => return Err("the server refused to run a command".to_owned()),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    let status = status.ok_or("the connection was lost before the command ended")?;
    Ok(ExecOutput {
        status,
        stdout: Vec::new(),
        stderr,
    })
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

pub(super) fn lost(error: russh::Error) -> String {
    match error {
        russh::Error::SendError
        | russh::Error::HUP
        | russh::Error::Disconnect
        | russh::Error::RecvError => "the connection was lost".to_owned(),
        error => error.to_string(),
    }
}

/// The number of a signal (signal(7), the same on every Linux of x86 and ARM).
pub(super) fn number(signal: &Sig) -> i32 {
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) => match name.as_str() {
            "TRAP" => 5,
            "BUS" => 7,
            "USR2" => 12,
            "XCPU" => 24,
            "XFSZ" => 25,
            "SYS" => 31,
            _ => 127,
        },
    }
}
