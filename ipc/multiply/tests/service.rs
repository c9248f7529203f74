//! The server as a black box: the rows of the protocol, and hostile clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use testkit::procs::{anonymous_bytes, descriptors, limit_descriptors, status_kib};
use testkit::{End, Peer, Server, eventually};

const SERVER: &str = env!("CARGO_BIN_EXE_multiply-server");

/// Descriptors, threads and processes. At the end they must be what they were at the start.
fn base(server: &Server) -> (usize, u64, usize) {
    (descriptors(server.pid()).len(), status_kib(server.pid(), "Threads"), server.family().len())
}

/// Checks that a request is answered, that the counts are as before, that the log has no defect,
/// and that SIGTERM ends the server.
fn finish(mut server: Server, before: (usize, u64, usize)) {
    assert_eq!(ask(&mut server.connect(), b"6 7\n"), "42.0\n");
    eventually("the counts are as before", || (base(&server) == before).then_some(()));
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

/// M6: the session ends with an error, and the server's memory does not grow.
#[test]
fn a_line_without_a_newline_is_an_error_and_needs_no_memory() {
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

/// A small random number generator.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// An integer divided by 16, which a double represents exactly.
    fn decimal(&mut self) -> f64 {
        (self.next() % 2_000_001) as f64 / 16.0 - 62_500.0
    }
}

#[test]
fn ten_thousand_pipelined_random_lines_are_answered() {
    let server = Server::start(SERVER, &[]);
    let before = base(&server);
    let (mut numbers, mut lines, mut expected) =
        (Numbers(0x9e37_79b9_7f4a_7c15), String::new(), String::new());
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
        let result = if op == b'/' && b == 0.0 {
            "ERR divide by zero".into()
        } else {
            format!("{result:?}")
        };
        expected.push_str(&format!("Data received\n{result}\n"));
    }
    let mut peer = server.connect();
    let sender = peer.send_in_background(lines.into_bytes(), true);
    let (bytes, end) = peer.read_to_end();
    sender.join().unwrap();
    assert!(
        bytes == expected.as_bytes() && end == End::Eof,
        "{} of {} bytes",
        bytes.len(),
        expected.len()
    );
    finish(server, before);
}

/// A message with its length.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// The answer to a request with its length.
fn framed_answer(result: &str) -> Vec<u8> {
    [framed(b"Data received"), framed(result.as_bytes())].concat()
}

#[test]
fn a_length_prefixed_request_split_at_any_byte_is_answered() {
    let server = Server::start(SERVER, &["--framing", "length"]);
    let mut peer = server.connect();
    let (two, expected) = (
        [framed(b"5 10"), framed(b"6 7")].concat(),
        [framed_answer("50.0"), framed_answer("42.0")].concat(),
    );
    for byte in &two {
        peer.send([*byte]);
    }
    assert_eq!(peer.read_exactly(expected.len()), expected, "byte by byte");
    for cut in 1..two.len() {
        peer.send(&two[..cut]);
        peer.send(&two[cut..]);
        assert_eq!(peer.read_exactly(expected.len()), expected, "cut at {cut}");
    }
    peer.send(two.repeat(1000));
    assert_eq!(peer.read_exactly(1000 * expected.len()), expected.repeat(1000));
}

/// The length alone says where the next message begins.
#[test]
fn a_length_prefixed_message_may_contain_any_bytes() {
    let server = Server::start(SERVER, &["--framing", "length"]);
    let before = descriptors(server.pid()).len();
    let mut peer = server.connect();
    let most = [&b"1 "[..], &[b'0'; 125]].concat();
    for (message, result) in [
        (&b""[..], "ERR two numbers expected"),
        (b" ", "ERR two numbers expected"),
        (b"5 10\n", "ERR number expected"),
        (b"5\n10", "ERR two numbers expected"),
        (b"\0\0\0\x04 5", "ERR number expected"),
        (b"5 \xff\xff\xff\xff", "ERR number expected"),
        (b"5 10\r", "50.0"),
        (&most, "0.0"),
    ] {
        peer.send(framed(message));
        let expected = framed_answer(result);
        assert_eq!(peer.read_exactly(expected.len()), expected, "{}", message.escape_ascii());
    }
    drop(peer);
    eventually("closed", || (descriptors(server.pid()).len() == before).then_some(()));
}

/// One more than the limit, the sign bit, -1, text of the other framing: the session ends before
/// the message arrives, and bytes that follow are not stored.
#[test]
fn a_length_that_is_too_large_ends_the_session() {
    let server = Server::start(SERVER, &["--framing", "length"]);
    server.connect().send(framed(b"1 1"));
    let memory = anonymous_bytes(server.pid());
    for length in [
        128u32,
        0x8000_0000,
        u32::MAX,
        i32::MAX as u32,
        u32::from_be_bytes(*b"5 10"),
        u32::from_be_bytes(*b"GET "),
    ] {
        for more in [0, 1, 1 << 20] {
            let mut peer = server.connect();
            let bytes = [&length.to_be_bytes()[..], &vec![b'1'; more]].concat();
            let sender = peer.send_in_background(bytes, false);
            let (answer, end) = peer.read_to_end();
            assert_eq!(
                (answer, end == End::Silence),
                (framed(b"ERR line too long"), false),
                "{length:#x} and {more}"
            );
            sender.join().unwrap();
        }
    }
    let grown = anonymous_bytes(server.pid()).saturating_sub(memory);
    assert!(grown < 512 * 1024, "grew by {grown} bytes");
}

/// After a FIN it is not a request, and without further bytes it is a timeout. The complete request
/// before it is answered.
#[test]
fn a_part_of_a_length_prefixed_message_is_not_answered() {
    let server = Server::start(SERVER, &["--framing", "length", "--line-timeout", "300"]);
    let whole = framed(b"5 10");
    for cut in 1..whole.len() {
        let mut peer = server.connect();
        peer.send([&whole[..], &whole[..cut]].concat());
        peer.half_close();
        assert_eq!(peer.read_to_end(), (framed_answer("50.0"), End::Eof), "FIN after {cut}");
    }
    for cut in [1, 4, 7] {
        let mut peer = server.connect();
        peer.send(&whole[..cut]);
        assert_eq!(peer.read_to_end(), (framed(b"ERR timeout"), End::Eof), "silence after {cut}");
    }
}

/// A result that is too small becomes the nearest double, which may be zero. A result larger than
/// the largest double has no nearest double: that is the overflow.
#[test]
fn underflow_is_rounded_and_overflow_is_an_error() {
    let server = Server::start(SERVER, &[]);
    let mut peer = server.connect();
    for (request, expected) in [
        ("1e-308 1e-308", "0.0"),
        ("-1e-308 1e-308", "-0.0"),
        ("1e-308 / 1e308", "0.0"),
        ("1e-400 1", "0.0"),
        ("5e-324 1", "5e-324"),
        ("5e-324 / 2", "0.0"),
        ("1e-200 1e-123", "1e-323"),
        ("1 / 1e-400", "ERR divide by zero"),
        ("1 / -0", "ERR divide by zero"),
        ("1e308 + 1e308", "ERR overflow"),
        ("-1e308 - 1e308", "ERR overflow"),
        ("1 / 1e-320", "ERR overflow"),
        ("1.7976931348623157e308 1", "1.7976931348623157e308"),
        ("0.1 + 0.2", "0.30000000000000004"),
    ] {
        assert_eq!(
            ask(&mut peer, format!("{request}\n").as_bytes()),
            format!("{expected}\n"),
            "{request}"
        );
    }
}

#[test]
fn slow_silent_half_closed_and_reset_clients_free_their_workers() {
    let server =
        Server::start(SERVER, &["-n", "2", "--line-timeout", "300", "--idle-timeout", "300"]);
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
fn a_client_that_never_reads_is_closed() {
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
fn clients_over_the_limit_are_rejected_and_queued_clients_are_served() {
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
    eventually("both are closed", || (base(&server) == before).then_some(()));
    finish(server, before);
}

#[test]
fn a_server_without_descriptors_serves_again_when_there_are_some() {
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
fn a_shutdown_ends_idle_sessions_at_once_and_others_at_the_shutdown_timeout() {
    let timeouts = ["--idle-timeout", "3600000", "--write-timeout", "3600000"];
    let mut server = Server::start(SERVER, &[&timeouts[..], &["--grace", "300"]].concat());
    let mut idle = server.connect();
    assert_eq!(ask(&mut idle, b"2 2\n"), "4.0\n");
    // This client does not read its answers, so its session ends at the shutdown timeout only.
    let greedy = server.connect();
    let sender = greedy.send_in_background(b"1 1\n".repeat(4 << 20), false);
    let answers = greedy.second_handle();
    eventually("it is answered", || answers.peek(&mut [0]).is_ok_and(|n| n > 0).then_some(()));
    server.stop().unwrap();
    assert_eq!(idle.read_to_end().1, End::Eof);
    sender.join().unwrap();
}

#[test]
fn events_are_one_json_object_a_line() {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut command = std::process::Command::new(SERVER);
    command
        .args(["-p", "0", "--events"])
        .stdout(out.reopen().unwrap())
        .stderr(std::process::Stdio::null());
    let server = Server::start_blind(&mut command);
    let mut peer = server.connect();
    ask(&mut peer, b"5 10\n");
    ask(&mut peer, b"\x1b[2J\"\xff 7\n");
    drop(peer);
    let lines = eventually("all events of the session", || {
        let text = std::fs::read_to_string(out.path()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() == 4).then_some(lines)
    });
    let kinds: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["connected", "request", "request", "closed"]);
    assert_eq!((&lines[1]["request"], &lines[1]["answer"]), (&"5 10".into(), &"50.0".into()));
    assert_eq!(lines[2]["request"], "\\x1b[2J\\\"\\xff 7");
    assert_eq!(lines[3]["why"], "the client left");
}

/// A pipe that no process reads has room for few events. The clients are still answered.
#[test]
fn events_that_nobody_reads_do_not_block_the_workers() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = std::process::Command::new(SERVER);
    command.args(["-p", "0", "-n", "2", "--events"]).stdout(writer);
    let mut server = Server::start_blind(command.stderr(std::process::Stdio::null()));
    for _ in 0..2 {
        let mut peer = server.connect();
        peer.send(b"1 1\n".repeat(2000));
        assert_eq!(peer.read_exactly(18 * 2000), b"Data received\n1.0\n".repeat(2000));
    }
    server.stop().unwrap();
    drop(reader);
}
