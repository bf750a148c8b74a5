//! One question over HTTP/1.1 on a stream that is there already: a TLS session with an engine, a channel
//! through SSH to its socket or to a published port.

use forge_driver::{Error, Kind, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// An answer longer than this is not read to its end.
const ANSWER_LIMIT: usize = 8 << 20;

/// A byte stream to somebody who answers.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// What `body` is; empty without one.
    pub kind: &'static str,
    /// What is handed over.
    pub body: Vec<u8>,
}

impl Question {
    /// Asks for what lies at `path`.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            kind: "",
            body: Vec::new(),
        }
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// Asks once; the stream is closed afterwards. Has no deadline: the caller has one.
///
/// # Errors
/// [`Kind::Unavailable`] when the other side breaks off or does not speak HTTP, [`Kind::Invalid`] for an
/// answer without end.
pub async fn ask(stream: impl Stream + 'static, question: Question) -> Result<Answer> {
    let broken = |error: hyper::Error| {
        Error::new(Kind::Unavailable, "the connection gave no answer").because(error)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut request = Request::builder()
        .method(question.method)
        .uri(question.path)
        .header(HOST, "localhost")
        .header(CONNECTION, "close");
    if !question.kind.is_empty() {
        request = request.header(CONTENT_TYPE, question.kind);
    }
    let request = request
        .body(Full::new(Bytes::from(question.body)))
        .map_err(|error| {
            Error::new(Kind::Invalid, "the question cannot be asked").because(error)
        })?;
    let asking = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| {
                Error::new(Kind::Invalid, "the answer broke off, or has no end")
                    .because(error.to_string())
            })?;
        Ok(Answer {
            status: head.status,
            body: body.to_bytes().to_vec(),
        })
    };
    tokio::pin!(asking, connection);
    tokio::select! {
        answer = &mut asking => answer,
        ended = &mut connection => {
            // What came before the end has been handed over: the answer may be whole all the same.
            let answer = asking.await;
            match (answer, ended) {
                (Err(_), Err(error)) => Err(broken(error)),
                (answer, _) => answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Somebody who says `answer` when asked, and what was asked.
    fn other(answer: &'static [u8]) -> (impl Stream, tokio::task::JoinHandle<String>) {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let asked = tokio::spawn(async move {
            let mut heard = vec![0; 4096];
            let count = theirs.read(&mut heard).await.expect("a question");
            theirs.write_all(answer).await.expect("heard");
            String::from_utf8_lossy(&heard[..count]).into_owned()
        });
        (ours, asked)
    }

    #[tokio::test]
    async fn bodies_come_in_all_three_forms() {
        let forms: [&[u8]; 3] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nhello",
        ];
        for form in forms {
            let (stream, asked) = other(form);
            let answer = ask(stream, Question::get("/x?y=1")).await.expect("answers");
            assert_eq!(
                (answer.status, answer.body),
                (StatusCode::OK, b"hello".to_vec())
            );
            let asked = asked.await.expect("asked");
            assert!(asked.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_body_is_handed_over_with_its_kind() {
        let (stream, asked) = other(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
        let question = Question {
            method: Method::POST,
            kind: "application/json",
            body: b"{}".to_vec(),
            ..Question::get("/things")
        };
        let answer = ask(stream, question).await.expect("answers");
        assert_eq!(answer.status, StatusCode::CREATED);
        let asked = asked.await.expect("asked").to_lowercase();
        for part in [
            "content-type: application/json\r\n",
            "content-length: 2\r\n",
            "\r\n\r\n{}",
        ] {
            assert!(asked.contains(part), "{part} in {asked}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for nonsense in [
            &b""[..],
            b"SSH-2.0-x\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        ] {
            let (stream, _asked) = other(nonsense);
            let answer = ask(stream, Question::get("/")).await;
            answer.expect_err("no answer");
        }
    }
}
