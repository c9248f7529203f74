//! Kernel truth (j): when epoll reports what, level- and edge-triggered, and who waits for a loop that drains.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)] // test code

#[allow(dead_code)] // its main
#[path = "../examples/starvation.rs"]
mod starvation;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use starvation::Reads;
use testkit::{PATIENCE, Peer, Server, eventually, procs};

const LEVEL: EpollFlags = EpollFlags::EPOLLIN;
const EDGE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

/// A client, the server's end of its connection, and whether the kernel reports that end.
struct Watched {
    client: TcpStream,
    conn: TcpStream,
    epoll: Epoll,
}

impl Watched {
    /// The client has sent `bytes`, and all of them have arrived.
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

/// Events that are there now: epoll_wait without a wait.
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
fn truth_j_level_triggered_reports_as_long_as_something_is_there() {
    let mut watched = Watched::with(2048, LEVEL);
    for left in (0..4).rev() {
        assert!(watched.is_reported() && watched.is_reported(), "{left}");
        watched.read(512);
    }
    assert!(!watched.is_reported(), "all is read");
}

#[test]
fn truth_j_edge_triggered_reports_once_and_again_when_one_more_byte_comes() {
    let mut watched = Watched::with(2048, EDGE);
    assert!(watched.is_reported());
    watched.read(512);
    assert!(
        !watched.is_reported() && !watched.is_reported(),
        "1536 bytes wait, and nobody says so"
    );
    watched.send_one(1536);
    assert!(watched.is_reported());
    assert!(!watched.is_reported());
}

#[test]
fn truth_j_add_and_mod_look_again() {
    let mut watched = Watched::with(1, EDGE);
    assert!(watched.is_reported(), "ADD reports what came before it");
    assert!(!watched.is_reported());
    watched.modify(EDGE);
    assert!(watched.is_reported(), "MOD reports what is still there");
    assert!(!watched.is_reported());
    watched.read(1);
    watched.modify(EDGE);
    assert!(!watched.is_reported(), "nothing is there");
}

#[test]
fn truth_j_an_edge_triggered_listener_with_three_waiting_is_reported_once() {
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
        assert_eq!(left.count(), 3 - accepted, "the others wait");
    }
}

#[test]
fn truth_j_oneshot_reports_once_until_it_is_armed_again() {
    let oneshot = LEVEL | EpollFlags::EPOLLONESHOT;
    let mut watched = Watched::with(1, oneshot);
    assert!(watched.is_reported());
    watched.send_one(1);
    assert!(!watched.is_reported(), "a second thread would not be told");
    watched.modify(oneshot);
    assert!(watched.is_reported());
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Draining one client that sends faster than it is read is a loop without an end. On a busy machine the flood itself
/// may be kept from the CPU for a while, and then it is no flood.
#[test]
fn truth_j_reading_until_eagain_starves_the_others() {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let fair = median(starvation::waits(Reads::OneBlock, 30).unwrap());
        let starved = median(starvation::waits(Reads::UntilEagain, 30).unwrap());
        eprintln!(
            "a quiet client waits {fair:?} with one block for each event, {starved:?} with all until EAGAIN"
        );
        if starved >= 5 * fair {
            return;
        }
        seen.push((fair, starved));
    }
    panic!("never starved: {seen:?}");
}

/// What the truth is for: the server does its duty with either trigger. More than one block waits when it is reported,
/// no byte more comes, and every request of it is answered.
#[test]
fn truth_j_the_server_answers_all_that_waits_with_either_trigger() {
    for bin in [env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_BIN_EXE_server02b-edge")] {
        let server = Server::start(bin, &[]);
        let mut greedy = server.connect();
        greedy.send("2\n".repeat(10_000));
        let mut quiet: Peer = server.connect();
        quiet.ask(10);
        assert!(greedy.read_exactly(20_000) == b"ab".repeat(10_000), "{bin}");
        let idle = eventually("it rests", || {
            let before = procs::cpu_ns(server.pid());
            std::thread::sleep(PATIENCE / 200); // the measure: CPU time over this long
            (procs::cpu_ns(server.pid()) - before < 1_000_000).then_some(true)
        });
        assert!(idle);
    }
}
