//! QEMU's control protocol, as far as one machine's driver needs it: greeting, commands, answers.
//!
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>: JSON objects, one a line; the server
//! greets, the client negotiates capabilities, then each command is answered in turn; events come in
//! between and are passed over here.

use std::path::Path;
use std::time::Duration;

use forge_driver::{Claim, Context, Error, Kind, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest answer that is read.
const LINE_LIMIT: u64 = 1 << 20;

/// The most events that are passed over while one answer is awaited.
const EVENT_LIMIT: usize = 1000;

/// How long a machine may take for one answer. QEMU serves it between the guest's doings, which on a
/// busy host may take its time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// A conversation with one machine's QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Opens a conversation, and makes sure that it is with the machine that carries `claim`.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when nobody listens, [`Kind::Timeout`] when nobody answers,
    /// [`Kind::Refused`] when it is another machine.
    pub(crate) async fn open(socket: &Path, claim: Claim) -> Result<Self> {
        let mut qmp = Self::greet(socket).await?;
        let answer = qmp.execute("query-uuid", Value::Null).await?;
        if answer.get("UUID").and_then(Value::as_str) != Some(claim.to_string().as_str()) {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "the virtual machine behind `{}` does not carry the claim `{claim}`",
                    socket.display()
                ),
            ));
        }
        Ok(qmp)
    }

    async fn greet(socket: &Path) -> Result<Self> {
        let stream = timeout(ANSWER_DEADLINE, UnixStream::connect(socket))
            .await
            .map_err(|_| late("connect"))?
            .or_fail(Kind::Unavailable, || {
                format!(
                    "nothing listens on the control socket `{}`",
                    socket.display()
                )
            })?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        let greeting = timeout(ANSWER_DEADLINE, qmp.line())
            .await
            .map_err(|_| late("greeting"))??;
        if greeting.get("QMP").is_none() {
            return Err(Error::new(
                Kind::Failed,
                format!("`{}` is not a QMP socket", socket.display()),
            ));
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns.
    ///
    /// # Errors
    /// What QEMU refused, and why; [`Kind::Timeout`] without an answer.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut text = request.to_string();
        text.push('\n');
        timeout(ANSWER_DEADLINE, self.exchange(command, text.as_bytes()))
            .await
            .map_err(|_| late(command))?
    }

    async fn exchange(&mut self, command: &str, request: &[u8]) -> Result<Value> {
        self.stream
            .write_all(request)
            .await
            .or_fail(Kind::Unavailable, || {
                format!("failed to send `{command}` to QEMU")
            })?;
        for _ in 0..EVENT_LIMIT {
            let mut answer = self.line().await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given");
                return Err(
                    Error::new(Kind::Failed, format!("QEMU refused `{command}`")).because(why),
                );
            }
        }
        Err(Error::new(
            Kind::Failed,
            format!("QEMU sends events only, and no answer to `{command}`"),
        ))
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let count = (&mut self.stream)
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut line)
            .await
            .or_fail(Kind::Unavailable, || "failed to read QEMU's answer".into())?;
        if count == 0 {
            return Err(Error::new(
                Kind::Unavailable,
                "QEMU closed its control socket",
            ));
        }
        serde_json::from_slice(&line).or_fail(Kind::Failed, || "QEMU's answer is not JSON".into())
    }

    /// Runs a command of the human monitor, for the few things that QMP has no word for, and returns
    /// what it printed.
    pub(crate) async fn human(&mut self, line: &str) -> Result<String> {
        let answer = self
            .execute("human-monitor-command", json!({ "command-line": line }))
            .await?;
        Ok(answer.as_str().unwrap_or_default().trim().to_owned())
    }

    /// The run state, in QEMU's words.
    pub(crate) async fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", Value::Null).await?;
        Ok(answer
            .get("status")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }

    /// Whether the guest has switched a network card on: its driver then asks for the frames to all nodes of
    /// a link (multicast). `None` when QEMU does not tell, as for cards without such a filter.
    pub(crate) async fn listens(&mut self) -> Option<bool> {
        let cards = self.execute("query-rx-filter", Value::Null).await.ok()?;
        let cards = cards.as_array().filter(|cards| !cards.is_empty())?;
        Some(cards.iter().any(|card| {
            card["multicast-table"]
                .as_array()
                .is_some_and(|table| !table.is_empty())
        }))
    }

    /// Ends the process. That the connection breaks is an answer, too.
    pub(crate) async fn quit(&mut self) -> Result<()> {
        match self.execute("quit", Value::Null).await {
            Err(error) if error.kind() == Kind::Unavailable => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

fn late(what: &str) -> Error {
    Error::new(
        Kind::Timeout,
        format!(
            "QEMU did not answer within {} s ({what})",
            ANSWER_DEADLINE.as_secs()
        ),
    )
}
