//! What this version teaches: two threads for each client, and no send while the room is locked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use testkit::{Peer, Server, TIMEOUT, eventually, procs};

const BIN: &str = env!("CARGO_BIN_EXE_v1-threads");
const NAIVE: &str = env!("CARGO_BIN_EXE_naive-lock");
/// No rate limit.
const FREE: [&str; 4] = ["--rate", "1000000", "--burst", "1000000"];

struct Talker(BufReader<TcpStream>);

impl Talker {
    fn new(addr: SocketAddr) -> Talker {
        let conn = TcpStream::connect(addr).unwrap();
        conn.set_read_timeout(Some(TIMEOUT)).unwrap();
        Talker(BufReader::new(conn))
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Reads until a line ends like this.
    fn hear(&mut self, end: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(end) {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "end of file before {end:?}");
        }
    }

    /// True if no line comes within a second.
    fn hears_nothing(&mut self) -> bool {
        self.0.get_mut().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut line = String::new();
        self.0
            .read_line(&mut line)
            .is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

/// Two members who talk. Before, a third one stopped reading, and a fourth one sent more than any
/// buffer holds.
fn with_a_dead_reader(server: &Server, nicks: bool) -> (Talker, Talker) {
    let greet = |nick: &str| if nicks { format!("{nick}\n") } else { String::new() };
    let (mut alice, mut bob) = (Talker::new(server.addr), Talker::new(server.addr));
    let mut dead = Peer::connect_small_window(server.addr);
    let mut speaker = Talker::new(server.addr);
    if nicks {
        alice.say("alice");
        alice.hear("commands");
        bob.say("bob");
        bob.hear("commands");
    }
    dead.send(greet("dead"));
    speaker.0.get_mut().write_all(greet("speaker").as_bytes()).unwrap();
    // All are in the room when all have read the first line.
    eventually("all are in", || {
        speaker.say("are you there");
        (dead.unread() > 0).then_some(())
    });
    alice.say("hello");
    bob.hear("hello");
    bob.say("hello");
    alice.hear("hello");

    // alice and bob read all the time, in threads: only the dead reader is slow.
    let line = format!("{}\n", "x".repeat(900));
    let flood = thread::spawn(move || {
        speaker.0.get_mut().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        // 16 MiB, or until the server stops reading.
        let _ = (0..18_000).try_for_each(|_| speaker.0.get_mut().write_all(line.as_bytes()));
        speaker
    });
    let drain = |mut talker: Talker| {
        thread::spawn(move || {
            talker.0.get_mut().set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            let mut line = String::new();
            while talker.0.read_line(&mut line).is_ok_and(|n| n > 0) {
                line.clear();
            }
            talker.0.get_mut().set_read_timeout(Some(TIMEOUT)).unwrap();
            talker
        })
    };
    let (alice, bob) = (drain(alice), drain(bob));
    // The connections stay open to the end of the test.
    std::mem::forget((flood.join().unwrap(), dead));
    (alice.join().unwrap(), bob.join().unwrap())
}

#[test]
fn write_while_the_room_is_locked_stops_the_room() {
    let server = Server::start(NAIVE, &[]);
    let (mut alice, mut bob) = with_a_dead_reader(&server, false);
    alice.say("is anybody there");
    assert!(bob.hears_nothing(), "one client that does not read should have stopped the room");
    assert!(procs::thread_states(server.pid()).iter().all(|state| *state == 'S'), "all sleep");
}

#[test]
fn write_while_the_room_is_unlocked_does_not() {
    // The queues hold the whole flood, so that no member is kicked because this machine is busy.
    let server = Server::start(BIN, &[&FREE[..], &["--outbox", "67108864"]].concat());
    let (mut alice, mut bob) = with_a_dead_reader(&server, true);
    alice.say("is anybody there");
    bob.hear("is anybody there");
}

#[test]
fn two_threads_for_each_client() {
    let server = Server::start(BIN, &FREE);
    let threads = || procs::thread_states(server.pid()).len();
    let alone = threads();
    assert_eq!(alone, 2, "the main thread accepts, and one thread waits for signals");
    let talkers: Vec<Talker> = (0..20).map(|_| Talker::new(server.addr)).collect();
    eventually("two threads for each", || (threads() == alone + 40).then_some(()));
    drop(talkers);
    eventually("they end with their clients", || (threads() == alone).then_some(()));
}
