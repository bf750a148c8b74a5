use std::cell::RefCell;

use super::super::testing::{Reply, Server};
use super::*;

const BODY: &[u8] = b"0123456789abcdefghij";

fn patience() -> Patience {
    Patience {
        pause: Duration::from_millis(1),
        until: Instant::now() + Duration::from_secs(30),
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    fn fetch(&self, url: &str) -> Result<Vec<u8>> {
        let part = self.0.path().join("part");
        let seen = RefCell::new(0);
        file(
            &agent(url),
            url,
            &part,
            &self.0.path().join("state"),
            patience(),
            &AtomicBool::new(false),
            &|done, _| {
                *seen.borrow_mut() = done;
            },
        )?;
        let bytes = fs::read(part).expect("read");
        assert_eq!(seen.into_inner(), bytes.len() as u64);
        Ok(bytes)
    }
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let server = Server::start(vec![
        Reply::cut(BODY, 7, Some("\"v1\"")),
        Reply::rest(BODY, 7, Some("\"v1\"")),
    ]);
    assert_eq!(
        Place::new().fetch(&server.url("disk")).expect("whole"),
        BODY
    );
    let requests = server.requests();
    assert!(!requests[0].contains("range:"), "{}", requests[0]);
    assert!(
        requests[1].contains("range: bytes=7-\r\n"),
        "{}",
        requests[1]
    );
    assert!(
        requests[1].contains("if-range: \"v1\"\r\n"),
        "{}",
        requests[1]
    );
}

#[test]
fn another_version_starts_again() {
    let server = Server::start(vec![
        Reply::cut(b"old old old old old old", 7, Some("\"v1\"")),
        Reply::whole(BODY, Some("\"v2\"")),
    ]);
    assert_eq!(
        Place::new().fetch(&server.url("disk")).expect("whole"),
        BODY
    );
}

#[test]
fn a_server_without_ranges_starts_again() {
    let server = Server::start(vec![Reply::cut(BODY, 7, None), Reply::whole(BODY, None)]);
    assert_eq!(
        Place::new().fetch(&server.url("disk")).expect("whole"),
        BODY
    );
    assert!(
        !server.requests()[1].contains("range:"),
        "nothing to compare versions with"
    );
}

#[test]
fn a_part_of_an_earlier_process_is_used() {
    let place = Place::new();
    let server = Server::start(vec![
        Reply::cut(BODY, 7, Some("\"v1\"")),
        Reply::status("404 Not Found"),
        Reply::rest(BODY, 7, Some("\"v1\"")),
    ]);
    let error = place
        .fetch(&server.url("disk"))
        .expect_err("the second answer ends it");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(place.fetch(&server.url("disk")).expect("whole"), BODY);
    assert!(server.requests()[2].contains("range: bytes=7-\r\n"));
}

#[test]
fn a_part_that_is_whole_is_not_fetched_again() {
    let place = Place::new();
    fs::write(place.0.path().join("part"), BODY).expect("write");
    fs::write(place.0.path().join("state"), r#"{"validator":"\"v1\""}"#).expect("write");
    let server = Server::start(vec![Reply::raw(
        "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */20\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )]);
    let url = server.url("disk");
    let state = place.0.path().join("state");
    file(
        &agent(&url),
        &url,
        &place.0.path().join("part"),
        &state,
        patience(),
        &AtomicBool::new(false),
        &|_, _| {},
    )
    .expect("whole");
    assert_eq!(fs::read(place.0.path().join("part")).expect("read"), BODY);
}

#[test]
fn what_is_not_there_is_not_asked_for_twice() {
    let server = Server::start(vec![
        Reply::status("404 Not Found"),
        Reply::whole(BODY, None),
    ]);
    let error = Place::new().fetch(&server.url("disk")).expect_err("404");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_passing_fault_is_tried_again_but_not_for_ever() {
    let server = Server::start(vec![
        Reply::status("503 Service Unavailable"),
        Reply::whole(BODY, None),
    ]);
    assert_eq!(
        Place::new().fetch(&server.url("disk")).expect("whole"),
        BODY
    );

    let down = Server::start(
        (0..20)
            .map(|_| Reply::status("503 Service Unavailable"))
            .collect(),
    );
    let error = Place::new()
        .fetch(&down.url("disk"))
        .expect_err("503 for ever");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(down.requests().len(), ATTEMPTS as usize);
    assert!(error.line().contains("503"), "{}", error.line());
}

#[test]
fn a_redirection_is_followed() {
    let server = Server::start(vec![
        Reply::raw(
            "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
        Reply::whole(BODY, None),
    ]);
    assert_eq!(
        Place::new().fetch(&server.url("disk")).expect("whole"),
        BODY
    );
    assert!(server.requests()[1].starts_with("get /elsewhere "));
}

#[test]
fn a_cancelled_download_ends() {
    let place = Place::new();
    let server = Server::start(vec![Reply::whole(BODY, None)]);
    let url = server.url("disk");
    let cancelled = AtomicBool::new(true);
    let error = file(
        &agent(&url),
        &url,
        &place.0.path().join("p"),
        &place.0.path().join("s"),
        patience(),
        &cancelled,
        &|_, _| {},
    )
    .expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Interrupted);
}
