//! The one error type of forge: a kind, a message, a cause chain and a hint, kept apart.

use std::error::Error as StdError;
use std::fmt;

use crate::instance::State;

/// What went wrong, by meaning. Code branches on the kind, never on the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The words of the command make no sense together (exit code 2).
    Usage,
    /// A pre-check failed: nothing was touched (exit code 3).
    Precheck,
    /// What was named does not exist.
    NotFound,
    /// What was to be made is there already.
    Exists,
    /// An input (name, file, answer) is malformed or out of range.
    Invalid,
    /// A file of the store cannot be read as what it should be.
    Corrupt,
    /// A file was written by a newer forge.
    Newer,
    /// Something else holds what is needed: a lock, a port, an address range.
    Conflict,
    /// A deadline passed.
    Timeout,
    /// The other side refused: authentication, host key, permission.
    Refused,
    /// A tool or a service that is needed is missing or does not answer.
    Unavailable,
    /// A command, here or on a machine, ended with an error.
    Failed,
    /// The operating system reported an input/output error.
    Io,
    /// The user interrupted.
    Interrupted,
}

/// What an error is about, for whoever has words of its own for it. Typed, so that nobody reads a message to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// There is no store yet, and so there are no machines.
    NothingYet,
    /// There is no machine of this name.
    NoMachine(String),
    /// There is a machine of this name already.
    Exists(String),
    /// There is no driver of this name.
    NoDriver(String),
    /// A machine cannot have the name that was given.
    BadName,
    /// A machine has to be named, and none was.
    NoName,
    /// One machine is meant, and these were named besides.
    ExtraNames(Vec<String>),
    /// A machine was named where none is meant.
    NameGiven,
    /// The machine of this name is not running.
    NotRunning(String),
    /// The machine of this name is in the state that it was to be brought to.
    Already(String, State),
    /// No machine is the one that DOCKER_HOST leads to.
    NoActive,
    /// The engine at this host and port does not answer over TLS, and why.
    NoTls(String, String),
    /// This variable of docker-machine's has this value, which is neither true nor false.
    NoTruth(&'static str, String),
    /// A command was given more words than it takes, or fewer.
    WrongCount,
    /// This program is missing on this host.
    NoProgram(&'static str),
    /// The power of this machine cannot be changed from here: docker-machine's words for it.
    NoPower(String),
}

/// An error that a person can act on.
///
/// `message` says what failed and on what, in lower case and without a full stop; `source` says why;
/// `hint` says what to try. They are printed on lines of their own by the command line.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    fact: Option<Fact>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result type used by every forge crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of `kind` that says what failed, and on what.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            fact: None,
            source: None,
        }
    }

    /// Adds why it failed.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what it is about.
    #[must_use]
    pub fn fact(mut self, fact: Fact) -> Self {
        self.fact = Some(fact);
        self
    }

    /// The same error as another kind, where it counts differently.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Wraps this error: `message` is what failed above, this error becomes its cause. The kind stays.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            message: message.into(),
            hint: None,
            fact: None,
            source: Some(Box::new(self)),
        }
    }

    /// The meaning of this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What failed, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The hint nearest to the root of the chain of forge errors: the most specific one.
    pub fn deepest_hint(&self) -> Option<&str> {
        self.source
            .as_deref()
            .and_then(|source| source.downcast_ref::<Self>())
            .and_then(Self::deepest_hint)
            .or(self.hint.as_deref())
    }

    /// What it is about: the fact nearest to the root of the chain of forge errors.
    pub fn deepest_fact(&self) -> Option<&Fact> {
        self.source
            .as_deref()
            .and_then(|source| source.downcast_ref::<Self>())
            .and_then(Self::deepest_fact)
            .or(self.fact.as_ref())
    }

    /// The causes, nearest first, as text.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }

    /// The whole chain on one line, for places that show a single line (`last error: …`).
    pub fn line(&self) -> String {
        let mut line = self.message.clone();
        for cause in self.causes() {
            line.push_str(": ");
            line.push_str(&cause);
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_ref()
            .map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

/// Adds what was being done, and on what, to the errors of the operating system and of libraries.
pub trait Context<T> {
    /// Turns the error into a forge error of `kind` with `message`, the original as its cause.
    ///
    /// # Errors
    /// The same failure, explained.
    fn or_fail(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: StdError + Send + Sync + 'static,
{
    fn or_fail(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::new(kind, message()).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_hint_wins() {
        let inner = Error::new(Kind::Conflict, "port 80 is taken").hint("stop `nginx`");
        let outer = inner.context("failed to publish").hint("try again");
        assert_eq!(outer.deepest_hint(), Some("stop `nginx`"));
        assert_eq!(outer.kind(), Kind::Conflict);
        assert_eq!(outer.line(), "failed to publish: port 80 is taken");
    }

    #[test]
    fn a_hint_above_serves_when_there_is_none_below() {
        let inner = Error::new(Kind::Io, "disk full");
        let outer = inner.context("failed to save").hint("free some space");
        assert_eq!(outer.deepest_hint(), Some("free some space"));
        assert_eq!(outer.causes(), ["disk full"]);
    }

    #[test]
    fn what_an_error_is_about_is_told_through_every_context() {
        let fact = Fact::NoMachine("n1".to_owned());
        let inner = Error::new(Kind::NotFound, "machine `n1` does not exist").fact(fact.clone());
        let outer = inner.context("failed to start").context("failed");
        assert_eq!(outer.deepest_fact(), Some(&fact));
        assert_eq!(Error::new(Kind::Io, "disk full").deepest_fact(), None);
    }
}
