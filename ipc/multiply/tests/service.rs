//! The real programs as black boxes: the rows of the protocol, and hostile clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Command;
use std::time::Instant;

use testkit::procs::{anonymous_bytes, descriptors, limit_descriptors, status_kib};
use testkit::{End, Peer, Server, eventually};

const SERVER: &str = env!("CARGO_BIN_EXE_multiply-server");
const NAIVE: &str = env!("CARGO_BIN_EXE_naive-server");

/// What a server must be back to: descriptors, threads, processes.
fn base(server: &Server) -> (usize, u64, usize) {
    (descriptors(server.pid()).len(), status_kib(server.pid(), "Threads"), server.family().len())
}

/// A request is answered, everything is back at the base line, nothing was said to be a defect, and SIGTERM ends it.
fn finish(mut server: Server, before: (usize, u64, usize)) {
    assert_eq!(ask(&mut server.connect(), b"6 7\n"), "42.0\n");
    eventually("back at the base line", || (base(&server) == before).then_some(()));
    let log = server.log();
    assert!(!log.contains("panicked") && !log.contains("ALERT"), "{log}");
    server.stop().unwrap();
}

fn ask(peer: &mut Peer, request: &[u8]) -> String {
    peer.send(request);
    assert_eq!(line(peer), "Data received\n", "{}", request.escape_ascii());
    line(peer)
}

fn line(peer: &mut Peer) -> String {
    let mut text = String::new();
    while !text.ends_with('\n') {
        text.push(char::from(peer.read_exactly(1)[0]));
    }
    text
}

#[test]
fn rows_m1_to_m5_on_one_connection() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    let mut peer = server.connect();
    for (request, expected) in [
        (&b"5 10\n"[..], "50.0\n"),
        (b"-3 5\n", "-15.0\n"),
        (b"7 / 2\n", "3.5\n"),
        (b"1.5 + 2\n", "3.5\n"),
        (b"1 - 2\r\n", "-1.0\n"),
        (b"1e308 10\n", "ERR overflow\n"),
        (b"1e999 0\n", "ERR overflow\n"),
        (b"1 / 0\n", "ERR divide by zero\n"),
        (b"\n", "ERR two numbers expected\n"),
        (b"6\n", "ERR two numbers expected\n"),
        (b"6 \n", "ERR two numbers expected\n"),
        (b" 6 7\n", "ERR two numbers expected\n"),
        (b"6  7\n", "ERR two numbers expected\n"),
        (b"6 7 8\n", "ERR two numbers expected\n"),
        (b"6\t7\n", "ERR two numbers expected\n"),
        (b"6 ^ 7\n", "ERR two numbers expected\n"),
        (b"6 x\n", "ERR number expected\n"),
        (b"nan 1\n", "ERR number expected\n"),
        (b"inf 1\n", "ERR number expected\n"),
        (b"+6 7\n", "ERR number expected\n"),
        (b"6,7 1\n", "ERR number expected\n"),
        (b"\xff 7\n", "ERR number expected\n"),
        (b"6\x00 7\n", "ERR number expected\n"),
    ] {
        assert_eq!(ask(&mut peer, request), expected, "{}", request.escape_ascii());
    }
    drop(peer);
    finish(server, before);
}

/// M6: refused and closed, and the server has not grown by what it was sent.
#[test]
fn a_line_without_an_end() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    ask(&mut server.connect(), b"1 1\n");
    let memory = anonymous_bytes(server.pid());
    for size in [128, 65_536, 1 << 20] {
        let mut peer = server.connect();
        let sender = peer.send_in_background(vec![b'1'; size], true);
        let (bytes, end) = peer.read_to_end();
        assert_eq!((&bytes[..], end == End::Silence), (&b"ERR line too long\n"[..], false));
        sender.join().unwrap();
    }
    let grown = anonymous_bytes(server.pid()).saturating_sub(memory);
    assert!(grown < 512 * 1024, "grew by {grown} bytes");
    finish(server, before);
}

/// M7: the same check for both servers. Ours passes at every split; the naive one answers a wrong product.
fn product_when_split(server: &Server, at: usize, newline: &[u8]) -> String {
    let mut peer = server.connect();
    let request = [b"5 10", newline].concat();
    let unread = |peer: &Peer| eventually("taken", || testkit_taken(server, peer).then_some(()));
    peer.send(&request[..at]);
    unread(&peer);
    let _ = peer.try_send(&request[at..]);
    peer.half_close_or_gone();
    String::from_utf8_lossy(&peer.read_to_end().0).into_owned()
}

/// True when the server has received all that this client sent: its socket's receive queue is empty again.
fn testkit_taken(server: &Server, peer: &Peer) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (here, there) = (server.addr.port(), peer.addr().port());
    let row = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words[1].ends_with(&format!(":{here:04X}")) && words[2].ends_with(&format!(":{there:04X}")));
    // Gone from the table, or nothing left to receive.
    row.is_none_or(|words| words[4].ends_with(":00000000"))
}

trait Gone {
    fn half_close_or_gone(&mut self);
}

impl Gone for Peer {
    /// The naive server may have closed already.
    fn half_close_or_gone(&mut self) {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.half_close()));
    }
}

#[test]
fn a_split_request_is_one_request() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    for at in 1..5 {
        assert_eq!(product_when_split(&server, at, b"\n"), "Data received\n50.0\n", "split at {at}");
    }
    finish(server, before);
}

#[test]
fn the_naive_server_fails_the_same_check() {
    let server = Server::start(NAIVE, &[]);
    // Seen by the client itself as well: the wrong product, and no error.
    let naive = Command::new(env!("CARGO_BIN_EXE_naive-client"))
        .args(["-p", &server.addr.port().to_string(), "--split", "3", "5", "10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&naive.stdout).into_owned();
    assert!(naive.status.success() && text.contains("5.0") && !text.contains("50.0"), "{text}");
    // And with the check that the other server passes.
    assert!(product_when_split(&server, 3, b"\n").ends_with("5.0"));
    assert_ne!(product_when_split(&server, 3, b"\n"), "Data received\n50.0\n");
}

#[test]
fn the_naive_client_reads_two_messages_as_one() {
    let server = Server::start(NAIVE, &[]);
    let naive = Command::new(env!("CARGO_BIN_EXE_naive-client"))
        .args(["-p", &server.addr.port().to_string(), "--repeat", "500", "5", "10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&naive.stdout).into_owned();
    assert!(text.contains("\"Data received50.0\""), "{text}");
}

/// A small generator, so that the reference sees the same numbers again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A decimal of at most 31 bits over a power of two, so that it is exact.
    fn decimal(&mut self) -> f64 {
        (self.next() % 2_000_001) as f64 / 16.0 - 62_500.0
    }
}

#[test]
fn ten_thousand_random_lines_pipelined() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    let (mut numbers, mut lines, mut expected) = (Numbers(0x9e37_79b9_7f4a_7c15), String::new(), String::new());
    for _ in 0..10_000 {
        let (a, b) = (numbers.decimal(), numbers.decimal());
        let op = b"+-*/ "[(numbers.next() % 5) as usize];
        let (word, result) = match op {
            b'+' => (" + ", a + b),
            b'-' => (" - ", a - b),
            b'/' => (" / ", a / b),
            b'*' => (" * ", a * b),
            _ => (" ", a * b),
        };
        lines.push_str(&format!("{a}{word}{b}\n"));
        let result = if op == b'/' && b == 0.0 { "ERR divide by zero".into() } else { format!("{result:?}") };
        expected.push_str(&format!("Data received\n{result}\n"));
    }
    let mut peer = server.connect();
    let sender = peer.send_in_background(lines.into_bytes(), true);
    let (bytes, end) = peer.read_to_end();
    sender.join().unwrap();
    assert!(bytes == expected.as_bytes() && end == End::Eof, "{} of {} bytes", bytes.len(), expected.len());
    finish(server, before);
}

#[test]
fn length_prefixed() {
    let server = Server::start(SERVER, &["--framing", "length"]);
    let mut peer = server.connect();
    for byte in b"\0\0\0\x045 10\0\0\0\x036 7" {
        peer.send([*byte]);
    }
    let expected = b"\0\0\0\x0dData received\0\0\0\x0450.0\0\0\0\x0dData received\0\0\0\x0442.0";
    assert_eq!(peer.read_exactly(expected.len()), expected);
    peer.send(b"\xff\xff\xff\xff");
    assert_eq!(peer.read_exactly(21), b"\0\0\0\x11ERR line too long");
}

#[test]
fn slow_silent_reset_and_half_closing() {
    let server = Server::start(SERVER, &["-n", "2", "--line-timeout", "300", "--idle-timeout", "300"]);
    let before = base(&server);
    let (mut slow, mut silent) = (server.connect(), server.connect());
    slow.send("5 1");
    assert_eq!(slow.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    assert_eq!(silent.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    let mut half = server.connect();
    half.send("2 3\n4");
    half.half_close();
    assert_eq!(half.read_to_end(), (b"Data received\n6.0\n".to_vec(), End::Eof));
    let mut reset = server.connect();
    reset.send("2 3\n4 5");
    reset.reset();
    finish(server, before);
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let server = Server::start(SERVER, &["-n", "1", "--write-timeout", "300"]);
    let before = base(&server);
    ask(&mut server.connect(), b"1 1\n");
    let memory = anonymous_bytes(server.pid());
    let greedy = server.connect();
    let sender = greedy.send_in_background(b"1 1\n".repeat(4 << 20), false);
    server.wait_log("ERR timeout");
    assert!(anonymous_bytes(server.pid()).saturating_sub(memory) < 512 * 1024);
    sender.join().unwrap();
    drop(greedy);
    finish(server, before);
}

#[test]
fn a_full_house_is_refused_and_a_queue_is_served() {
    let server = Server::start(SERVER, &["-n", "1", "--max-conns", "2"]);
    let before = base(&server);
    let (mut served, mut waiting) = (server.connect(), server.connect());
    assert_eq!(ask(&mut served, b"1 2\n"), "2.0\n");
    waiting.send("3 4\n");
    assert_eq!(server.connect().read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    assert!(waiting.is_waiting());
    drop(served);
    assert_eq!(waiting.read_exactly(19), b"Data received\n12.0\n");
    drop(waiting);
    eventually("both have gone", || (base(&server) == before).then_some(()));
    finish(server, before);
}

#[test]
fn out_of_descriptors_and_back() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    let old = limit_descriptors(server.pid(), before.0 as u64);
    let mut waiting = server.connect();
    waiting.send("3 4\n");
    server.wait_log("Too many open files");
    limit_descriptors(server.pid(), old);
    assert_eq!(waiting.read_exactly(19), b"Data received\n12.0\n");
    drop(waiting);
    finish(server, before);
}

#[test]
fn a_stop_answers_what_was_received_and_is_bounded_by_the_grace() {
    let mut server = Server::start(SERVER, &["--grace", "300"]);
    let mut peer = server.connect();
    assert_eq!(ask(&mut peer, b"2 2\n"), "4.0\n");
    let start = Instant::now();
    server.stop().unwrap();
    assert_eq!(peer.read_to_end().1, End::Eof);
    assert!(start.elapsed() < testkit::PATIENCE / 2);
}
