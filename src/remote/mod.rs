//! Commands on other machines.
//!
//! Everything above this module speaks to a machine through [`Guest`]; [`ssh`] is the implementation,
//! with one authenticated connection for a whole command.

use std::net::SocketAddrV4;
use std::ops::ControlFlow;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::Result;

use crate::http::Stream;
use crate::secret::Secret;

mod copy;
mod exec;
pub mod first_contact;
mod forward;
mod host_key;
mod keys;
pub mod known_hosts;
pub mod login;
pub mod openssh;
mod root;
mod session;
mod signals;
pub mod ssh;
#[cfg(test)]
pub(crate) mod testing;

pub use copy::{Place, copy};
pub use forward::Forward;
pub use host_key::Expect;
pub(crate) use keys::known_as;
pub use keys::{HostKeys, KeyPair, fingerprint, generate_key};
pub use root::{WithPassword, as_root};
pub use session::Streams;
pub use signals::signalled;

/// At most this much of each output stream of a command is kept; more is read and dropped.
pub const OUTPUT_LIMIT: usize = 4 << 20;

/// What a command on a machine left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit status; 128 + n when signal n ended it.
    pub status: i32,
    /// Its standard output, cut at [`OUTPUT_LIMIT`].
    pub stdout: Vec<u8>,
    /// Its standard error, cut at [`OUTPUT_LIMIT`].
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Takes a piece of standard output as it arrives, and says whether more is wanted.
pub type Sink<'a> = dyn FnMut(&[u8]) -> ControlFlow<()> + Send + 'a;

/// Where a stream through a machine leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dial {
    /// To the engine's own socket there.
    Engine,
    /// To an address, as that machine reaches it.
    Tcp(SocketAddrV4),
    /// To a port of a host that has this name, or this address, there.
    Host(String, u16),
}

/// A machine that runs commands.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Opens a stream through the machine, for at most `deadline`. It starts no program there, which counts
    /// where a machine is emulated.
    ///
    /// # Errors
    /// [`forge_driver::Kind::Unavailable`] when the other side does not accept it, [`forge_driver::Kind::Refused`]
    /// when the machine does not forward, [`forge_driver::Kind::Timeout`] at the deadline.
    async fn dial(&self, to: &Dial, deadline: Duration) -> Result<Box<dyn Stream>>;

    /// What `sudo` asks for there; `None` where it asks for nothing.
    fn sudo_password(&self) -> Option<&Secret> {
        None
    }

    /// Runs `command` (a shell line) with `input` on its standard input, for at most `deadline`.
    ///
    /// # Errors
    /// [`forge_driver::Kind::Timeout`] at the deadline, and what the connection reports. An exit status
    /// other than 0 is not an error here.
    async fn exec(&self, command: &str, input: &[u8], deadline: Duration) -> Result<ExecOutput>;

    /// Like [`Guest::exec`], but hands standard output to `sink` as it arrives and keeps none of it.
    ///
    /// When the sink wants no more, the call returns at once with status 0: a command may leave a
    /// background process behind that holds its output open.
    ///
    /// # Errors
    /// Those of [`Guest::exec`].
    async fn stream(
        &self,
        command: &str,
        input: &[u8],
        deadline: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<ExecOutput> {
        let mut output = self.exec(command, input, deadline).await?;
        let stdout = std::mem::take(&mut output.stdout);
        if sink(&stdout).is_break() {
            output.status = 0;
        }
        Ok(output)
    }
}
