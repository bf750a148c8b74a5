//! An HTTP server for the tests of downloads: it gives one prepared answer after another.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// One answer, as bytes on the wire; the connection is closed behind it.
pub struct Reply(Vec<u8>);

impl Reply {
    pub fn raw(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    pub fn status(status: &str) -> Self {
        Self::raw(&format!(
            "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ))
    }

    pub fn whole(body: &[u8], tag: Option<&str>) -> Self {
        Self::with("200 OK", "", body, body.len(), tag)
    }

    /// Announces all of `body` and sends the first `sent` bytes.
    pub fn cut(body: &[u8], sent: usize, tag: Option<&str>) -> Self {
        Self::with("200 OK", "", &body[..sent], body.len(), tag)
    }

    /// What lies from `start` on.
    pub fn rest(body: &[u8], start: usize, tag: Option<&str>) -> Self {
        let range = format!(
            "content-range: bytes {start}-{}/{}\r\n",
            body.len() - 1,
            body.len()
        );
        Self::with(
            "206 Partial Content",
            &range,
            &body[start..],
            body.len() - start,
            tag,
        )
    }

    fn with(status: &str, headers: &str, body: &[u8], length: usize, tag: Option<&str>) -> Self {
        let tag = tag
            .map(|tag| format!("etag: {tag}\r\n"))
            .unwrap_or_default();
        let mut bytes =
            format!("HTTP/1.1 {status}\r\n{headers}{tag}content-length: {length}\r\nconnection: close\r\n\r\n").into_bytes();
        bytes.extend_from_slice(body);
        Self(bytes)
    }
}

/// A server on an address of the loopback network.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        thread::spawn(move || {
            for reply in replies {
                let Ok((stream, _)) = listener.accept() else {
                    return;
                };
                answer(stream, &reply, &seen);
            }
        });
        Self { address, requests }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The heads of the requests so far, in lower case.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("lock").clone()
    }
}

fn answer(mut stream: TcpStream, reply: &Reply, seen: &Mutex<Vec<String>>) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("timeout");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    seen.lock()
        .expect("lock")
        .push(String::from_utf8_lossy(&head).to_ascii_lowercase());
    // A client that has gone away is what some tests want.
    let _ = stream.write_all(&reply.0);
}
