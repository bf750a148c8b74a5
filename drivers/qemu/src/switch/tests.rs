//! Real sockets on both sides.

use super::*;
use std::thread::{self, JoinHandle};

const BROADCAST: Address = [0xff; 6];

struct Segment {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Segment {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let mut segment = Self { dir, thread: None };
        segment.start();
        segment
    }

    fn start(&mut self) {
        let dir = self.dir.path().to_owned();
        self.thread = Some(thread::spawn(move || run(&dir, Duration::from_secs(600))));
        while !serves(self.dir.path()) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn peer(&self, number: u8) -> Peer {
        let path = self.dir.path().join(format!("{PORT}{number}"));
        let socket = UnixDatagram::bind(&path).expect("binds");
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("sets");
        Peer {
            socket,
            switch: self.dir.path().join(SOCKET),
            address: [0x52, 0x54, 0, 0, 0, number],
        }
    }

    /// Ends the switch the way a removed network does.
    fn end(&mut self) {
        fs::remove_file(self.dir.path().join(SOCKET)).expect("removes");
        self.thread
            .take()
            .expect("runs")
            .join()
            .expect("no panic")
            .expect("ends well");
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

struct Peer {
    socket: UnixDatagram,
    switch: PathBuf,
    address: Address,
}

impl Peer {
    fn send(&self, to: Address, payload: &[u8]) {
        let frame = [&to[..], &self.address, payload].concat();
        self.socket.send_to(&frame, &self.switch).expect("sends");
    }

    fn payload(&self) -> Vec<u8> {
        let mut frame = vec![0; FRAME_LIMIT];
        let count = self.socket.recv(&mut frame).expect("a frame");
        frame[12..count].to_vec()
    }

    fn is_idle(&self) -> bool {
        self.socket.set_nonblocking(true).expect("sets");
        let answer = self.socket.recv(&mut [0; 16]);
        self.socket.set_nonblocking(false).expect("sets");
        answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

#[test]
fn no_frame_crosses_between_two_networks() {
    let (one, two) = (Segment::new(), Segment::new());
    let (a, b) = (one.peer(1), one.peer(2));
    let (c, d) = (two.peer(1), two.peer(2));
    a.send(BROADCAST, b"to all");
    assert_eq!(b.payload(), b"to all");
    // A frame of the other network, sent later, is the first that its peers see.
    c.send(BROADCAST, b"elsewhere");
    assert_eq!(d.payload(), b"elsewhere");
    assert!(a.is_idle() && c.is_idle() && d.is_idle() && b.is_idle());
}

#[test]
fn a_learned_address_gets_its_frames_alone() {
    let segment = Segment::new();
    let (a, b, c) = (segment.peer(1), segment.peer(2), segment.peer(3));
    b.send(BROADCAST, b"hello");
    assert_eq!(a.payload(), b"hello");
    assert_eq!(c.payload(), b"hello");
    a.send(b.address, b"for b");
    assert_eq!(b.payload(), b"for b");
    a.send(BROADCAST, b"end");
    assert_eq!(c.payload(), b"end", "the frame for b did not come here");
}

#[test]
fn the_largest_frame_passes_and_a_stub_does_not() {
    let segment = Segment::new();
    let (a, b) = (segment.peer(1), segment.peer(2));
    a.socket.send_to(b"short", &a.switch).expect("sends");
    let long = vec![7; FRAME_LIMIT - 12];
    a.send(BROADCAST, &long);
    assert_eq!(b.payload(), long);
}

#[test]
fn a_machine_that_takes_nothing_does_not_stop_the_others() {
    let segment = Segment::new();
    let (a, b, paused) = (segment.peer(1), segment.peer(2), segment.peer(3));
    for number in 0..2000_u16 {
        a.send(BROADCAST, &number.to_be_bytes());
        assert_eq!(b.payload(), number.to_be_bytes());
    }
    assert_eq!(paused.payload(), 0_u16.to_be_bytes());
}

#[test]
fn a_successor_goes_on_where_the_switch_ended() {
    let mut segment = Segment::new();
    let (a, b) = (segment.peer(1), segment.peer(2));
    a.send(BROADCAST, b"before");
    assert_eq!(b.payload(), b"before");
    segment.end();
    assert!(!serves(segment.dir.path()));
    segment.start();
    b.send(a.address, b"after");
    assert_eq!(a.payload(), b"after");
}

#[test]
fn a_second_switch_leaves_the_first_alone() {
    let segment = Segment::new();
    run_switch(segment.dir.path()).expect("returns at once");
    assert!(serves(segment.dir.path()));
}

#[test]
fn it_ends_by_itself_when_nobody_is_attached() {
    let dir = tempfile::tempdir().expect("folder");
    // A port whose machine is gone counts for nothing.
    drop(UnixDatagram::bind(dir.path().join(format!("{PORT}dead"))).expect("binds"));
    run(dir.path(), Duration::ZERO).expect("ends");
    assert!(!dir.path().join(SOCKET).exists());
}

#[test]
fn the_sockets_are_their_owner_s_alone() {
    let segment = Segment::new();
    for name in [SOCKET, "switch.lock"] {
        let mode = fs::metadata(segment.dir.path().join(name))
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
