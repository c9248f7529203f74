//! Clients that misbehave beside measured ones: each habit as a server sees it, and what the report says of it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use support::{Ran, Server, client, serve_well};

const RESET: &str = "ConnectionReset";

/// What abusers did, as a server that knows them by their deeds has seen it.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers requests of 100 bytes, and notes every other line, half a line, or error.
fn watching() -> (Server, Seen) {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    let server = Server::with(move |conn: TcpStream| {
        let mut conn = BufReader::new(conn);
        loop {
            let mut line = Vec::new();
            let end = match conn.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) if line == b"100\n" => None,
                Ok(_) => Some(String::from_utf8_lossy(&line).into_owned()),
                Err(error) => Some(format!("{:?}", error.kind())),
            };
            if let Some(end) = end {
                note.lock().unwrap().push(end);
                conn.get_mut().write_all(b"ERR no\n").ok();
                return;
            }
            if conn.get_mut().write_all(&support::pattern(100)).is_err() {
                return;
            }
        }
    });
    (server, seen)
}

/// Whether it comes true within a few seconds: what the server sees, it sees after the client has ended.
fn eventually(mut look: impl FnMut() -> bool) -> bool {
    (0..5000).any(|_| {
        let seen = look();
        if !seen {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        seen
    })
}

/// What it has noted, without the resets of measured clients whose last answer came too late to be read.
fn lines(seen: &Seen) -> Vec<String> {
    seen.lock().unwrap().iter().filter(|line| *line != RESET).cloned().collect()
}

fn misbehave(server: &Server, kind: &str) -> Ran {
    let args = ["-c", "10", "-b", "100", "-k", "0", "-d", "400ms", "-w", "0", "--misbehave", kind];
    client(server, &args).expect(0, &["closed loop: 9 clients", "abusers      1 x ", "OK"])
}

#[test]
fn lines_that_are_no_requests() {
    for (kind, text) in [("huge-number", "99999999999999999999\n"), ("garbage:10%", "")] {
        let (server, seen) = watching();
        misbehave(&server, kind).expect(0, &["ended with an ERR line"]);
        let seen = lines(&seen);
        assert!(!seen.is_empty() && seen.iter().all(|line| text.is_empty() || line == text), "{seen:?}");
    }
}

#[test]
fn requests_without_an_end_are_held_open() {
    for (kind, text) in [("silent", ""), ("half-request", "10"), ("no-newline", "100")] {
        let (server, seen) = watching();
        misbehave(&server, kind).expect(0, &["1 connections tried, 1 made", "1 open at the end"]);
        // The end of the client is the end of what it had begun to say.
        let said = || lines(&seen);
        assert!(eventually(|| text.is_empty() || said() == [text]), "{kind} {:?}", said());
    }
}

#[test]
fn slow_ones_are_slow() {
    let (server, seen) = watching();
    misbehave(&server, "slow-send:20ms").expect(0, &["answered in full", "a byte every 20ms"]);
    // At most the one that the end of the run has cut.
    assert!(lines(&seen).iter().all(|line| "100".starts_with(line)), "{seen:?}");
    let server = Server::with(serve_well);
    misbehave(&server, "slow-read:20ms").expect(0, &["1 connections tried, 1 made", "1 open at the end"]);
}

#[test]
fn a_half_close_is_answered() {
    let (server, _) = watching();
    misbehave(&server, "half-close").expect(0, &["answered in full"]);
}

#[test]
fn resets_reach_the_server() {
    let (server, seen) = watching();
    misbehave(&server, "rst-after-connect").expect(0, &["reset by the abuser"]);
    // More than the nine measured clients can have made.
    assert!(eventually(|| seen.lock().unwrap().iter().filter(|line| *line == RESET).count() > 9));
    let server = Server::with(serve_well);
    misbehave(&server, "rst-mid-reply").expect(0, &["reset by the abuser"]);
}

#[test]
fn a_server_that_throws_them_out() {
    // Nothing within 50 ms: closed.
    let server = Server::with(|conn: TcpStream| {
        conn.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let mut first = [0];
        if conn.peek(&mut first).is_ok() {
            conn.set_read_timeout(None).unwrap();
            serve_well(conn);
        }
    });
    misbehave(&server, "silent").expect(0, &["closed by the server", "the longest ended after"]);
    // With what was sent unread: reset.
    let server = Server::with(|mut conn: TcpStream| {
        let mut line = [0; 4];
        if conn.read_exact(&mut line).is_ok() && line == *b"100\n" {
            conn.write_all(&support::pattern(100)).ok();
            serve_well(conn);
        }
    });
    misbehave(&server, "huge-number").expect(0, &["reset by the server"]);
}

#[test]
fn the_share_is_of_all_clients() {
    let server = Server::with(serve_well);
    let args = ["-c", "8", "-t", "5", "--misbehave", "silent:25%"];
    client(&server, &args).expect(0, &["6 clients", "abusers      2 x silent", "30 done"]);
    let args = ["-q", "127.0.0.1", &server.port(), "8", "5", "100", "--misbehave", "slow-send:1s:50%"];
    support::run(&mut support::command(&args)).expect(0, &["4 clients", "abusers      4 x slow-send", "20 done"]);
    for (args, word) in [
        (&["--misbehave", "loud"][..], "slow-send:T"),
        (&["--misbehave", "slow-send"], "needs a time"),
        (&["--misbehave", "slow-read:0s"], "is no time"),
        (&["--misbehave", "silent:0%"], "above 0% and below 100%"),
        (&["--misbehave", "silent:100%"], "above 0% and below 100%"),
        (&["--misbehave", "silent:x%"], "a share such as 10%"),
        (&["--misbehave", "silent:1s"], "has a share behind it"),
        (&["-c", "1", "--misbehave", "silent"], "no client to be measured"),
    ] {
        client(&server, args).expect(2, &[word]);
    }
}
