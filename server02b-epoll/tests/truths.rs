//! Verified kernel behavior (j): what epoll reports when, level- and edge-triggered, and which
//! clients wait if a loop reads until EAGAIN.
// This is test code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

#[allow(dead_code)] // main of the example
#[path = "../examples/starvation.rs"]
mod starvation;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use starvation::Reads;
use testkit::{Peer, Server, eventually, procs};

const LEVEL: EpollFlags = EpollFlags::EPOLLIN;
const EDGE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

/// A client, the server's socket of its connection, and an epoll instance that watches this socket.
struct Watched {
    client: TcpStream,
    conn: TcpStream,
    epoll: Epoll,
}

impl Watched {
    /// The client has sent `bytes` bytes, and all of them have arrived.
    fn with(bytes: usize, interest: EpollFlags) -> Watched {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let (conn, _) = listener.accept().unwrap();
        client.write_all(&vec![b'x'; bytes]).unwrap();
        arrived(&conn, bytes);
        let watched =
            Watched { client, conn, epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap() };
        watched.epoll.add(&watched.conn, EpollEvent::new(interest, 7)).unwrap();
        watched
    }

    fn is_reported(&self) -> bool {
        reported(&self.epoll) == 1
    }

    fn read(&mut self, n: usize) {
        self.conn.read_exact(&mut vec![0; n]).unwrap();
    }

    fn send_one(&mut self, unread_before: usize) {
        self.client.write_all(b"x").unwrap();
        arrived(&self.conn, unread_before + 1);
    }

    fn modify(&self, interest: EpollFlags) {
        self.epoll.modify(&self.conn, &mut EpollEvent::new(interest, 7)).unwrap();
    }
}

/// How many events epoll_wait returns with timeout 0.
fn reported(epoll: &Epoll) -> usize {
    epoll.wait(&mut [EpollEvent::empty(); 8], 0_u8).unwrap()
}

fn arrived(conn: &TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes + 1];
    eventually("the bytes arrive", || {
        (bytes == 0 || conn.peek(&mut buffer).unwrap() >= bytes).then_some(())
    });
}

#[test]
fn truth_j_level_triggered_reports_until_all_bytes_are_read() {
    let mut watched = Watched::with(2048, LEVEL);
    for left in (0..4).rev() {
        assert!(watched.is_reported() && watched.is_reported(), "{left}");
        watched.read(512);
    }
    assert!(!watched.is_reported(), "all bytes are read");
}

#[test]
fn truth_j_edge_triggered_reports_once_and_again_when_one_more_byte_arrives() {
    let mut watched = Watched::with(2048, EDGE);
    assert!(watched.is_reported());
    watched.read(512);
    assert!(
        !watched.is_reported() && !watched.is_reported(),
        "1536 bytes are unread and not reported again"
    );
    watched.send_one(1536);
    assert!(watched.is_reported());
    assert!(!watched.is_reported());
}

#[test]
fn truth_j_add_and_mod_report_what_is_already_there() {
    let mut watched = Watched::with(1, EDGE);
    assert!(watched.is_reported(), "ADD reports bytes that arrived before");
    assert!(!watched.is_reported());
    watched.modify(EDGE);
    assert!(watched.is_reported(), "MOD reports unread bytes again");
    assert!(!watched.is_reported());
    watched.read(1);
    watched.modify(EDGE);
    assert!(!watched.is_reported(), "no byte is unread");
}

#[test]
fn truth_j_edge_triggered_listener_with_three_queued_clients_is_reported_once() {
    for (interest, accepted) in [(EDGE, 1), (LEVEL, 3)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        let _clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(listener.as_fd(), EpollEvent::new(interest, 0)).unwrap();
        let mut conns = Vec::new();
        while reported(&epoll) == 1 {
            conns.push(listener.accept().unwrap()); // one accept for each event
        }
        assert_eq!(conns.len(), accepted, "{interest:?}");
        let left = std::iter::from_fn(|| match listener.accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            accepted => Some(accepted.unwrap()),
        });
        assert_eq!(left.count(), 3 - accepted, "the other clients stay queued");
    }
}

#[test]
fn truth_j_oneshot_reports_once_until_mod_enables_it_again() {
    let oneshot = LEVEL | EpollFlags::EPOLLONESHOT;
    let mut watched = Watched::with(1, oneshot);
    assert!(watched.is_reported());
    watched.send_one(1);
    assert!(!watched.is_reported(), "a second thread gets no event");
    watched.modify(oneshot);
    assert!(watched.is_reported());
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Reading until EAGAIN does not end while a client sends faster than the loop reads. On a busy
/// machine this client may get too little CPU time, so the test tries several times.
#[test]
fn truth_j_reading_until_eagain_starves_the_other_clients() {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let fair = median(starvation::waits(Reads::OneBlock, 30).unwrap());
        let starved = median(starvation::waits(Reads::UntilEagain, 30).unwrap());
        eprintln!(
            "a quiet client waits {fair:?} (one block per event), {starved:?} (until EAGAIN)"
        );
        if starved >= 5 * fair {
            return;
        }
        seen.push((fair, starved));
    }
    panic!("never starved: {seen:?}");
}

/// One event reports 10000 requests, and no byte arrives later. The server answers all of them,
/// with either trigger.
#[test]
fn truth_j_server_answers_all_unread_requests_with_either_trigger() {
    for bin in [env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_BIN_EXE_server02b-edge")] {
        let server = Server::start(bin, &[]);
        let mut greedy = server.connect();
        greedy.send("2\n".repeat(10_000));
        let mut quiet: Peer = server.connect();
        quiet.ask(10);
        assert!(greedy.read_exactly(20_000) == b"ab".repeat(10_000), "{bin}");
        let idle = eventually("the server is idle", || {
            let before = procs::cpu_ns(server.pid());
            std::thread::sleep(Duration::from_millis(50)); // the interval of the measurement
            (procs::cpu_ns(server.pid()) - before < 1_000_000).then_some(true)
        });
        assert!(idle);
    }
}
