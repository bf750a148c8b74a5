//! One large file over HTTP: resumed where it was cut off, retried a bounded number of times.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forge_driver::{Context, Error, Kind, Result, atomic};
use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};

/// Attempts in a row that brought nothing new.
const ATTEMPTS: u32 = 5;
/// Attempts in all, so that a server that gives one byte at a time ends too.
const ATTEMPTS_IN_ALL: u32 = 200;
/// No byte for so long: the attempt is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// Published checksums are small.
const SUMS_LIMIT: u64 = 4 << 20;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// The pause before the second attempt; it doubles up to 32 times this.
    pub pause: Duration,
    /// When to give up.
    pub until: Instant,
}

/// What is remembered beside a part of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartState {
    /// The validator of the version that the part belongs to (RFC 9110, 8.8): a strong entity tag or
    /// the time of the last change.
    validator: Option<String>,
}

/// How an attempt ended that did not end well.
enum Cut {
    /// Trying again may help.
    Try(Error),
    /// It will not.
    Final(Error),
}

/// The agent for `url`: an https address is never left for plain http.
pub(super) fn agent(url: &str) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .https_only(url.starts_with("https://"))
        .max_redirects(5)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

/// The text of a small file; `None` when the server has none.
pub(super) fn text(
    agent: &Agent,
    url: &str,
    patience: Patience,
    cancelled: &AtomicBool,
) -> Result<Option<String>> {
    let failed = || format!("failed to fetch `{url}`");
    retry(patience, url, cancelled, || {
        let mut response = agent.get(url).call().map_err(transport)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE => {
                return Ok((None, true));
            }
            status => return Err(refused(status)),
        }
        match response
            .body_mut()
            .with_config()
            .limit(SUMS_LIMIT)
            .read_to_string()
        {
            Ok(text) => Ok((Some(text), true)),
            Err(error) => Err(transport(error)),
        }
    })
    .map_err(|error| error.context(failed()))
}

/// Brings the file at `url` to `part`, going on behind what is there already when the server still has
/// that version, and from the start when not. `progress` gets what is there and the whole.
pub(super) fn file(
    agent: &Agent,
    url: &str,
    part: &Path,
    state: &Path,
    patience: Patience,
    cancelled: &AtomicBool,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<()> {
    retry(patience, url, cancelled, || {
        attempt(agent, url, part, state, cancelled, progress)
    })
    .map_err(|error| error.context(format!("failed to download `{url}`")))
}

/// Repeats `work` until it ends well, fails for good, or makes no headway for too long. It says with
/// `true` in its second value that it is done, with `false` that it got further.
fn retry<T>(
    patience: Patience,
    url: &str,
    cancelled: &AtomicBool,
    mut work: impl FnMut() -> Result<(T, bool), Cut>,
) -> Result<T> {
    let mut idle = 0;
    let mut last = None;
    for _ in 0..ATTEMPTS_IN_ALL {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        match work() {
            Ok((value, true)) => return Ok(value),
            Ok((_, false)) => idle = 0,
            Err(Cut::Final(error)) => return Err(error),
            Err(Cut::Try(error)) => {
                idle += 1;
                last = Some(error);
            }
        }
        let pause = patience.pause * 2_u32.pow(idle.min(5));
        if idle >= ATTEMPTS || Instant::now() + pause >= patience.until {
            break;
        }
        thread::sleep(pause);
    }
    Err(last
        .unwrap_or_else(|| Error::new(Kind::Timeout, format!("`{url}` keeps breaking off")))
        .hint("run the same command again: it goes on where it stopped"))
}

fn attempt(
    agent: &Agent,
    url: &str,
    part: &Path,
    state: &Path,
    cancelled: &AtomicBool,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<((), bool), Cut> {
    let there = fs::metadata(part).map_or(0, |meta| meta.len());
    let known: PartState = fs::read(state)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let mut request = agent.get(url);
    // Without a validator two versions could be joined; then it starts again.
    let resumes = there > 0 && known.validator.is_some();
    if let Some(validator) = known.validator.as_ref().filter(|_| resumes) {
        request = request
            .header(header::RANGE, format!("bytes={there}-"))
            .header(header::IF_RANGE, validator);
    }
    let mut response = request.call().map_err(transport)?;
    let (start, whole) = match response.status() {
        StatusCode::OK => (0, length(&response)),
        StatusCode::PARTIAL_CONTENT if resumes => match range(&response) {
            Some((start, whole)) if start == there => (there, whole),
            _ => {
                forget(part, state)?;
                return Err(Cut::Try(Error::new(
                    Kind::Failed,
                    "the server sent another part than was asked for",
                )));
            }
        },
        // Nothing lies behind what is there: it is whole, or another version.
        StatusCode::RANGE_NOT_SATISFIABLE if resumes => {
            if range(&response).is_some_and(|(_, whole)| whole == Some(there)) {
                return Ok(((), true));
            }
            forget(part, state)?;
            return Err(Cut::Try(Error::new(
                Kind::Failed,
                "the server has another version now",
            )));
        }
        status => return Err(refused(status)),
    };
    if start == 0 {
        let validator = validator(&response);
        let text = serde_json::to_vec(&PartState { validator }).unwrap_or_default();
        forget(part, state)?;
        atomic::write(state, &text, 0o600).map_err(Cut::Final)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(part)
        .map_err(|error| {
            Cut::Final(atomic::full(
                error,
                &format!("failed to write `{}`", part.display()),
            ))
        })?;
    let (done, ended) = copy(
        &mut response,
        &mut file,
        part,
        start,
        whole,
        cancelled,
        progress,
    )?;
    match whole {
        Some(whole) if done > whole => {
            forget(part, state)?;
            Err(Cut::Try(Error::new(
                Kind::Failed,
                "the server sent more than it announced",
            )))
        }
        Some(whole) if done < whole => Ok(((), false)).and_then(|further| {
            if done > there || start == 0 && done > 0 && there == 0 {
                Ok(further)
            } else {
                Err(Cut::Try(ended.unwrap_or_else(|| {
                    Error::new(
                        Kind::Unavailable,
                        format!("it broke off after {done} of {whole} bytes"),
                    )
                })))
            }
        }),
        _ => match ended {
            Some(error) => Err(Cut::Try(error)),
            None => Ok(((), true)),
        },
    }
}

/// Appends the body to `file`; how many bytes are there then, and what ended it before its end.
fn copy(
    response: &mut Response<ureq::Body>,
    file: &mut File,
    part: &Path,
    start: u64,
    whole: Option<u64>,
    cancelled: &AtomicBool,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<(u64, Option<Error>), Cut> {
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; 256 << 10];
    let mut done = start;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Cut::Final(Error::new(Kind::Interrupted, "interrupted")));
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((done, None)),
            Ok(count) => {
                file.write_all(&buffer[..count]).map_err(|error| {
                    Cut::Final(atomic::full(
                        error,
                        &format!("failed to write `{}`", part.display()),
                    ))
                })?;
                done += count as u64;
                progress(done, whole);
            }
            Err(error) => {
                return Ok((
                    done,
                    Some(Error::new(Kind::Unavailable, "the connection broke off").because(error)),
                ));
            }
        }
    }
}

fn forget(part: &Path, state: &Path) -> Result<(), Cut> {
    for path in [part, state] {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error)
                .or_fail(Kind::Io, || {
                    format!("failed to remove `{}`", path.display())
                })
                .map_err(Cut::Final);
        }
    }
    Ok(())
}

fn transport(error: ureq::Error) -> Cut {
    let hopeless = matches!(
        error,
        ureq::Error::BadUri(_)
            | ureq::Error::RequireHttpsOnly(_)
            | ureq::Error::TooManyRedirects
            | ureq::Error::RedirectFailed
    );
    let error = Error::new(Kind::Unavailable, "the server could not be asked").because(error);
    if hopeless {
        Cut::Final(error)
    } else {
        Cut::Try(error)
    }
}

fn refused(status: StatusCode) -> Cut {
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Kind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Refused,
        _ => Kind::Unavailable,
    };
    let error = Error::new(kind, format!("the server answered {status}"));
    let passing = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    if passing {
        Cut::Try(error)
    } else {
        Cut::Final(error)
    }
}

fn text_of<'a>(response: &'a Response<ureq::Body>, name: &header::HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn length(response: &Response<ureq::Body>) -> Option<u64> {
    text_of(response, &header::CONTENT_LENGTH)?.parse().ok()
}

/// `bytes 5-9/10` or `bytes */10` (RFC 9110, 14.4): where it starts, and the whole.
fn range(response: &Response<ureq::Body>) -> Option<(u64, Option<u64>)> {
    let (span, whole) = text_of(response, &header::CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let start = if span == "*" {
        0
    } else {
        span.split_once('-')?.0.parse().ok()?
    };
    Some((start, whole.parse().ok()))
}

/// What `If-Range` may carry: a strong tag, else a date (RFC 9110, 13.1.5).
fn validator(response: &Response<ureq::Body>) -> Option<String> {
    text_of(response, &header::ETAG)
        .filter(|tag| tag.starts_with('"'))
        .or_else(|| text_of(response, &header::LAST_MODIFIED))
        .map(str::to_owned)
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
