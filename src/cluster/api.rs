//! The engine's own interface, through the machine's SSH connection: no program is started there, which
//! would cost an emulated machine more than the answer does.
//!
//! Docker Engine API: <https://docs.docker.com/reference/api/engine/>.

use std::fmt::Write as _;
use std::time::Duration;

use forge_driver::{Error, Kind, Result};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::http::{self, Answer, Question};
use crate::remote::{Dial, Guest};

/// How long the engine is given for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// One request.
pub(super) struct Request(Question);

impl Request {
    /// Asks for what lies at `path`.
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self(Question::get(path))
    }

    /// Removes what lies at `path`.
    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self(Question {
            method: Method::DELETE,
            ..Question::get(path)
        })
    }

    /// Has something done that needs no words.
    pub(super) fn order(path: impl Into<String>) -> Self {
        Self(Question {
            method: Method::POST,
            ..Question::get(path)
        })
    }

    /// Hands `body` over.
    pub(super) fn post(path: impl Into<String>, body: &Value) -> Self {
        Self(Question {
            method: Method::POST,
            kind: "application/json",
            body: body.to_string().into_bytes(),
            ..Question::get(path)
        })
    }

    /// Hands an archive over.
    pub(super) fn upload(path: impl Into<String>, archive: Vec<u8>) -> Self {
        Self(Question {
            method: Method::POST,
            kind: "application/x-tar",
            body: archive,
            ..Question::get(path)
        })
    }

    /// Sends it, and returns the answer.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Conflict`] and [`Kind::Failed`] with the engine's words;
    /// [`Kind::Timeout`] when it does not answer.
    pub(super) async fn send(self, guest: &dyn Guest) -> Result<String> {
        let Self(question) = self;
        let path = question.path.split('?').next().unwrap_or_default();
        let what = format!("`{} {path}`", question.method);
        let asking = async {
            let stream = guest.dial(&Dial::Engine, ANSWER).await?;
            http::ask(stream, question).await
        };
        match timeout(ANSWER, asking).await {
            Ok(Ok(given)) => answer(&what, given),
            Ok(Err(error)) => Err(error.context(format!("the engine does not answer {what}"))),
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!(
                    "the engine did not answer {what} within {} s",
                    ANSWER.as_secs()
                ),
            )),
        }
    }

    /// [`Request::send`], the answer read as JSON.
    ///
    /// # Errors
    /// Also [`Kind::Invalid`] when it is none.
    pub(super) async fn ask(self, guest: &dyn Guest) -> Result<Value> {
        let what = self.0.path.clone();
        let text = self.send(guest).await?;
        serde_json::from_str(&text).map_err(|error| {
            Error::new(
                Kind::Invalid,
                format!("the engine's answer to `{what}` cannot be read"),
            )
            .because(error)
        })
    }
}

/// The body of an answer of success.
fn answer(what: &str, given: Answer) -> Result<String> {
    let body = String::from_utf8_lossy(&given.body).into_owned();
    // What was asked for was so already: a container that has ended is stopped.
    if given.status.is_success() || given.status == StatusCode::NOT_MODIFIED {
        return Ok(body);
    }
    #[derive(Deserialize)]
    struct Complaint {
        message: String,
    }
    let why = serde_json::from_str::<Complaint>(&body)
        .map_or_else(|_| body.trim().to_owned(), |said| said.message);
    let kind = match given.status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::Conflict,
        _ => Kind::Failed,
    };
    Err(Error::new(kind, format!("the engine refuses {what}")).because(why))
}

/// A value inside a query (RFC 3986, section 2.1).
pub(super) fn query(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides_what_an_answer_is() {
        let given = |status: StatusCode, body: &str| {
            let body = body.as_bytes().to_vec();
            answer("x", Answer { status, body })
        };
        assert_eq!(given(StatusCode::OK, "[]").expect("answer"), "[]");
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
            assert_eq!(given(status, "").expect("answer"), "");
        }
        let error = given(StatusCode::NOT_FOUND, "{\"message\":\"gone\"}").expect_err("refused");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.causes(), ["gone"]);
        let error = given(StatusCode::CONFLICT, "page\n").expect_err("refused");
        assert_eq!(
            (error.kind(), error.causes()),
            (Kind::Conflict, vec!["page".to_owned()])
        );
        let error = given(StatusCode::SERVICE_UNAVAILABLE, "").expect_err("nothing");
        assert_eq!(error.kind(), Kind::Failed);
    }

    #[test]
    fn what_a_query_cannot_hold_is_encoded() {
        assert_eq!(
            query(r#"{"a":["b c"]}"#),
            "%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
        );
    }
}
