//! Verified kernel behaviour (o): a stream has no messages. The naive pair assumes that it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use socket2::SockRef;
use testkit::{Peer, Server, eventually};

const SERVER: &str = env!("CARGO_BIN_EXE_multiply-server");
const NAIVE: &str = env!("CARGO_BIN_EXE_naive-server");

/// Both ends of a TCP connection over loopback.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sender.set_nodelay(true).unwrap();
    (sender, listener.accept().unwrap().0)
}

/// Waits until `n` bytes can be received at once.
fn arrived(stream: &TcpStream, n: usize) {
    let mut buffer = vec![0; n];
    eventually("all has arrived", || (stream.peek(&mut buffer).unwrap() == n).then_some(()));
}

#[test]
fn truth_o_two_sends_are_one_recv() {
    let (mut sender, mut receiver) = pair();
    sender.write_all(b"Data received").unwrap();
    sender.write_all(b"50.0").unwrap();
    arrived(&receiver, 17);
    let mut buffer = [0; 1024];
    let n = receiver.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"Data received50.0");
}

/// The receive buffer is smaller than the bytes of one send: no recv can return all of them.
#[test]
fn truth_o_one_send_is_many_recv() {
    const ALL: usize = 1 << 20;
    let (mut sender, mut receiver) = pair();
    SockRef::from(&receiver).set_recv_buffer_size(16 * 1024).unwrap();
    let sent = std::thread::spawn(move || sender.write_all(&vec![7; ALL]).unwrap());
    let (mut buffer, mut got, mut calls) = (vec![0; ALL], 0, 0);
    while got < ALL {
        let n = receiver.read(&mut buffer).unwrap();
        assert!(n > 0);
        got += n;
        calls += 1;
    }
    sent.join().unwrap();
    assert!(calls > 1, "{calls} recv for one send");
}

/// One byte per segment, in both framings: the answers are the same as after one write.
#[test]
fn truth_o_the_protocol_round_trips_under_one_byte_writes() {
    for (framing, requests, answers) in [
        ("line", &b"5 10\n7 / 2\n"[..], &b"Data received\n50.0\nData received\n3.5\n"[..]),
        (
            "length",
            b"\0\0\0\x045 10\0\0\0\x057 / 2",
            b"\0\0\0\x0dData received\0\0\0\x0450.0\0\0\0\x0dData received\0\0\0\x033.5",
        ),
    ] {
        let server = Server::start(SERVER, &["--framing", framing]);
        let mut peer = server.connect();
        for byte in requests {
            peer.send([*byte]);
            eventually("taken", || taken(&server, &peer).then_some(()));
        }
        assert_eq!(peer.read_exactly(answers.len()), answers, "{framing}");
    }
}

/// The naive server takes the first byte for the whole request and sends no result.
#[test]
fn truth_o_the_naive_server_fails_under_one_byte_writes() {
    let server = Server::start(NAIVE, &[]);
    assert_eq!(answer_when_split(&server, 1, b""), "Data received");
}

/// M7: sends the request in two segments, the second after the server has read the first.
fn answer_when_split(server: &Server, at: usize, newline: &[u8]) -> String {
    let mut peer = server.connect();
    let request = [b"5 10", newline].concat();
    let unread = |peer: &Peer| eventually("taken", || taken(server, peer).then_some(()));
    peer.send(&request[..at]);
    unread(&peer);
    let _ = peer.try_send(&request[at..]);
    peer.half_close_or_gone();
    String::from_utf8_lossy(&peer.read_to_end().0).into_owned()
}

/// True if the server has read everything that this client has sent: its receive queue is empty.
fn taken(server: &Server, peer: &Peer) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (here, there) = (server.addr.port(), peer.addr().port());
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| {
        words[1].ends_with(&format!(":{here:04X}")) && words[2].ends_with(&format!(":{there:04X}"))
    });
    // Closed, or nothing to read.
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
fn truth_o_a_split_request_is_one_request() {
    let server = Server::start(SERVER, &[]);
    for at in 1..5 {
        assert_eq!(answer_when_split(&server, at, b"\n"), "Data received\n50.0\n", "split at {at}");
    }
}

#[test]
fn truth_o_one_recv_is_not_a_request() {
    let server = Server::start(NAIVE, &[]);
    // The naive client prints the wrong product and no error.
    let naive = Command::new(env!("CARGO_BIN_EXE_naive-client"))
        .args(["-p", &server.addr.port().to_string(), "--split", "3", "5", "10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&naive.stdout).into_owned();
    assert!(naive.status.success() && text.contains("5.0") && !text.contains("50.0"), "{text}");
    // The other server passes this check.
    assert!(answer_when_split(&server, 3, b"\n").ends_with("5.0"));
    assert_ne!(answer_when_split(&server, 3, b"\n"), "Data received\n50.0\n");
}

#[test]
fn truth_o_one_recv_is_not_an_answer() {
    let server = Server::start(NAIVE, &[]);
    let naive = Command::new(env!("CARGO_BIN_EXE_naive-client"))
        .args(["-p", &server.addr.port().to_string(), "--repeat", "500", "5", "10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&naive.stdout).into_owned();
    assert!(text.contains("\"Data received50.0\""), "{text}");
}
