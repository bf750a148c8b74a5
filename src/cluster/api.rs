//! The engine's own interface, asked in the machine itself.
//!
//! `curl` on the engine's socket costs an emulated machine a fraction of what the engine's command does,
//! and what is sent travels on standard input.

use std::fmt::Write as _;
use std::time::Duration;

use forge_driver::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::playbook::quote;
use crate::remote::Guest;

/// How long the engine is given for an answer, in the machine.
const ANSWER: Duration = Duration::from_secs(30);

/// One request.
pub(super) struct Request<'a> {
    method: &'a str,
    path: String,
    kind: &'a str,
    body: Vec<u8>,
}

impl<'a> Request<'a> {
    /// Asks for what lies at `path`.
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::bare("GET", path)
    }

    /// Removes what lies at `path`.
    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self::bare("DELETE", path)
    }

    /// Hands `body` over.
    pub(super) fn post(path: impl Into<String>, body: &Value) -> Self {
        Self {
            kind: "application/json",
            body: body.to_string().into_bytes(),
            ..Self::bare("POST", path)
        }
    }

    /// Hands an archive over.
    pub(super) fn upload(path: impl Into<String>, archive: Vec<u8>) -> Self {
        Self {
            kind: "application/x-tar",
            body: archive,
            ..Self::bare("POST", path)
        }
    }

    fn bare(method: &'a str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            kind: "",
            body: Vec::new(),
        }
    }

    fn command(&self) -> String {
        let mut words = format!(
            "timeout -k 5 {} curl -sS -X {} --unix-socket /var/run/docker.sock -w '\\n%{{http_code}}'",
            ANSWER.as_secs(),
            self.method
        );
        if !self.kind.is_empty() {
            // `Expect: 100-continue` would cost a round trip.
            let _ = write!(
                words,
                " -H 'Content-Type: {}' -H Expect: --data-binary @-",
                self.kind
            );
        }
        let _ = write!(
            words,
            " {}",
            quote(&format!("http://localhost{}", self.path))
        );
        words
    }

    /// Sends it, and returns the answer.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Conflict`] and [`Kind::Failed`] with the engine's words;
    /// [`Kind::Timeout`] when it does not answer.
    pub(super) async fn send(self, guest: &dyn Guest) -> Result<String> {
        let what = format!(
            "`{} {}`",
            self.method,
            self.path.split('?').next().unwrap_or_default()
        );
        let output = guest
            .exec(
                &self.command(),
                &self.body,
                ANSWER + Duration::from_secs(15),
            )
            .await?;
        match output.status {
            0 => answer(&what, &output.text()),
            124 | 137 => Err(Error::new(
                Kind::Timeout,
                format!(
                    "the engine did not answer {what} within {} s",
                    ANSWER.as_secs()
                ),
            )),
            127 => Err(Error::new(
                Kind::Unavailable,
                "curl is not installed on the machine",
            )),
            _ => Err(
                Error::new(Kind::Failed, format!("the engine does not answer {what}"))
                    .because(output.error_text().trim().to_owned()),
            ),
        }
    }

    /// [`Request::send`], the answer read as JSON.
    ///
    /// # Errors
    /// Also [`Kind::Invalid`] when it is none.
    pub(super) async fn ask(self, guest: &dyn Guest) -> Result<Value> {
        let what = self.path.clone();
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

/// The body, when the status on the last line is one of success.
fn answer(what: &str, text: &str) -> Result<String> {
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", text));
    if status.starts_with('2') {
        return Ok(body.to_owned());
    }
    #[derive(Deserialize)]
    struct Complaint {
        message: String,
    }
    let why = serde_json::from_str::<Complaint>(body)
        .map_or_else(|_| body.trim().to_owned(), |said| said.message);
    let kind = match status {
        "404" => Kind::NotFound,
        "409" => Kind::Conflict,
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
        assert_eq!(answer("x", "[]\n\n200").expect("answer"), "[]\n");
        assert_eq!(answer("x", "\n204").expect("answer"), "");
        let error = answer("x", "{\"message\":\"gone\"}\n\n404").expect_err("refused");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.causes(), ["gone"]);
        assert_eq!(
            answer("x", "page\n409").expect_err("refused").kind(),
            Kind::Conflict
        );
        assert_eq!(answer("x", "").expect_err("nothing").kind(), Kind::Failed);
    }

    #[test]
    fn bodies_travel_on_standard_input() {
        let request = Request::post("/swarm/join", &serde_json::json!({"JoinToken": "secret"}));
        assert!(!request.command().contains("secret"));
        assert!(request.command().contains("--data-binary @-"));
    }

    #[test]
    fn what_a_query_cannot_hold_is_encoded() {
        assert_eq!(
            query(r#"{"a":["b c"]}"#),
            "%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
        );
    }
}
