//! Each thing that can go wrong: one clear line with phase, count and advice, a true exit status, and never a hang.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::{Server, answer_once, client, command, pattern, request, run, serve_well};

const FEW: [&str; 4] = ["-c", "3", "-t", "4"];

fn few(server: &Server, more: &[&str]) -> support::Ran {
    client(server, &[&FEW[..], more].concat())
}

fn reset(conn: &TcpStream) {
    SockRef::from(conn).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn short_answers() {
    let server = Server::with(|conn| answer_once(conn, |n| pattern(n - 1)));
    few(&server, &["-b", "3000"]).expect_failures("request", "short answer", 12).expect(1, &["2999 of 3000 bytes"]);
}

#[test]
fn too_many_bytes() {
    let server = Server::with(|conn| answer_once(conn, |n| pattern(n + 2)));
    few(&server, &["-b", "100"]).expect_failures("request", "too many bytes", 12).expect(1, &["2 or more bytes"]);
    // Left over from one answer, they are seen in front of the next.
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        while request(&mut conn).is_some_and(|n| conn.get_mut().write_all(&pattern(n + 1)).is_ok()) {}
    });
    assert_eq!(client(&server, &["-c", "1", "-t", "2", "-k", "0"]).code, 1);
}

#[test]
fn wrong_bytes() {
    let server = Server::with(|conn| {
        answer_once(conn, |n| {
            let mut bytes = pattern(n);
            bytes[28] = b'X';
            bytes
        });
    });
    few(&server, &[]).expect_failures("request", "wrong bytes", 12).expect(1, &["offset 28: expected 'c', got 'X'"]);
    few(&server, &["--verify", "length"]).expect(0, &["OK: 12 answers, every length checked"]);
    few(&server, &["--verify", "none"]).expect(0, &["OK: 12 answers, unchecked"]);
}

#[test]
fn a_busy_server_is_quoted() {
    let server = Server::with(|conn| answer_once(conn, |_| b"ERR busy\n".to_vec()));
    let ran = few(&server, &[]).expect_failures("request", "ERR line from the server", 12);
    ran.expect(1, &["\"ERR busy\"", "use fewer clients (-c)"]);
}

#[test]
fn an_error_line_is_read_though_a_reset_follows() {
    // Closing on the unread request makes the kernel send a reset right behind the line.
    let server = Server::with(|mut conn| conn.write_all(b"ERR busy\n").unwrap());
    few(&server, &[]).expect_failures("request", "ERR line from the server", 12);
}

#[test]
fn a_server_that_closes_without_an_answer() {
    let server = Server::with(|conn| answer_once(conn, |_| Vec::new()));
    few(&server, &[]).expect_failures("request", "closed before first byte", 12);
    // One answer per connection, where more were wanted: the rest of that connection is not sent.
    let server = Server::with(|conn| answer_once(conn, pattern));
    let ran = client(&server, &["-c", "2", "-t", "3", "-k", "5"]);
    assert!(ran.out.contains("requests     6 done, 6 failed, 18 not sent, 0 censored"), "{}", ran.out);
    let ran = ran.expect(1, &["one request per connection? then use -k 1"]);
    assert!(ran.out.contains("connections  6 made, 0 failed, 0 not tried"), "{}", ran.out);
}

#[test]
fn a_server_that_resets() {
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        request(&mut conn);
        reset(conn.get_ref());
    });
    few(&server, &[]).expect_failures("request", "reset before first byte", 12);
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        request(&mut conn);
        conn.get_mut().write_all(&pattern(1000)).unwrap();
        reset(conn.get_ref());
    });
    few(&server, &[]).expect_failures("request", "reset in mid-answer", 12).expect(1, &["reset after 1000 of 3000"]);
}

#[test]
fn a_server_that_never_answers() {
    let server = Server::with(|mut conn| drop(conn.read_to_end(&mut Vec::new())));
    let ran = client(&server, &["-c", "3", "-t", "2", "--timeout", "150ms"]);
    ran.expect_failures("request", "timed out, no byte", 6).expect(1, &["no byte after 150 ms", "0 not sent"]);
}

#[test]
fn a_server_that_never_answers_does_not_hold_a_long_run() {
    let server = Server::with(|mut conn| drop(conn.read_to_end(&mut Vec::new())));
    let ran = client(&server, &["-c", "1", "-t", "1000", "--timeout", "50ms"]);
    ran.expect(1, &["gave up after 3 timeouts in a row; 997 connections were not tried"]);
}

#[test]
fn a_server_that_does_not_even_accept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let ran = run(&mut command(&["-q", "-p", &port, "-c", "2", "-t", "1", "--timeout", "100ms"]));
    ran.expect_failures("request", "timed out, no byte", 2);
    // With a duration it is no failure, but nothing good either.
    let ran = run(&mut command(&["-q", "-p", &port, "-c", "2", "-d", "200ms"]));
    ran.expect(1, &["0 done, 0 failed, 2 censored", "FAILED: nothing was answered"]);
}

#[test]
fn a_server_that_stops_in_mid_answer() {
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        request(&mut conn);
        conn.get_mut().write_all(&pattern(10)).unwrap();
        conn.read_to_end(&mut Vec::new()).ok();
    });
    let ran = client(&server, &["-c", "3", "-t", "2", "--timeout", "150ms"]);
    ran.expect_failures("request", "stalled in mid-answer", 6).expect(1, &["10 of 3000 bytes after 150 ms"]);
}

#[test]
fn a_server_that_dies_in_mid_run() {
    // After the tenth client the listener is gone.
    let server = Server::mortal(10, |conn, _| answer_once(conn, pattern));
    let ran = client(&server, &["-c", "1", "-t", "60"]);
    let ran = ran.expect_failures("connect", "connection refused", 50);
    assert!(ran.out.contains("requests     10 done, 0 failed, 50 not sent"), "{}", ran.out);
}

#[test]
fn a_server_that_is_gone_is_not_hammered() {
    let server = Server::mortal(1, |conn, _| answer_once(conn, pattern));
    let begin = Instant::now();
    let ran = client(&server, &["-c", "1", "-t", "1m"]);
    let ran = ran.expect_failures("connect", "connection refused", 1000);
    ran.expect(1, &["gave up after 1000 failed connects in a row; 998999 connections were not tried"]);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn nobody_listens_is_one_line() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for host in ["127.0.0.1", "localhost"] {
        let ran = run(&mut command(&["-i", host, "-p", &port, "-c", "50"]));
        let line = format!("127.0.0.1:{port}: Connection refused: nobody listens there; start a server first");
        if host == "127.0.0.1" {
            assert!(ran.err.contains(&line), "{}", ran.err);
        }
        assert!(
            ran.err.starts_with("client: connect ") && ran.err.contains("cargo run -p server01-fork"),
            "{}",
            ran.err
        );
        assert_eq!((ran.code, ran.err.lines().count(), ran.out.as_str()), (1, 1, ""));
    }
}

#[test]
fn bad_addresses_and_ports_are_one_line() {
    for (args, code, part) in [
        (&["-i", "no.such.host.invalid"][..], 1, "host \"no.such.host.invalid\""),
        (&["-i", ""], 1, "host \"\""),
        (&["-p", "0"], 2, "port 0 is no port to connect to"),
        (&["-c", "0"], 2, "at least 1"),
        (&["-b", "0"], 2, "at least 1"),
        (&["-t", "0"], 2, "at least 1"),
        (&["host"], 2, "5 values required"),
        (&["-j", "/no/such/folder/x.json"], 1, "/no/such/folder/x.json"),
    ] {
        let ran = run(&mut command(args)).expect(code, &[part]);
        assert_eq!(ran.out, "", "{args:?}");
    }
}

#[test]
fn waiting_for_a_close_that_does_not_come() {
    let server = Server::with(serve_well);
    let ran = client(&server, &["-c", "2", "-t", "2", "--close", "server", "--timeout", "100ms"]);
    ran.expect_failures("request", "server did not close", 4).expect(1, &["--close fin"]);
}

#[test]
fn too_few_descriptors_is_one_line() {
    let server = Server::with(serve_well);
    let limited = |limit: &str, clients: &str| {
        let line = format!("ulimit {limit}; exec \"$0\" -q -p {} -c {clients} -t 2", server.port());
        run(std::process::Command::new("sh").args(["-c", &line, env!("CARGO_BIN_EXE_client")]))
    };
    limited("-n 64", "100").expect(1, &["client: 100 clients need 132 descriptors, the hard limit is 64; use -c 32"]);
    limited("-n 64", "32").expect(0, &["OK"]);
    // The soft limit is the client's own to raise.
    limited("-Sn 64", "100").expect(0, &["OK: 200 answers"]);
}

/// Whatever goes wrong at random, every request is accounted for.
#[test]
fn no_request_is_lost() {
    let server = Server::mortal(usize::MAX, |conn, number| {
        let mut conn = BufReader::new(conn);
        let Some(n) = request(&mut conn) else { return };
        let bytes = match number * 7919 % 6 {
            0 | 1 => pattern(n),
            2 => pattern(n / 2),
            3 => b"ERR busy\n".to_vec(),
            4 => Vec::new(),
            _ => {
                reset(conn.get_ref());
                pattern(n / 3)
            }
        };
        conn.get_mut().write_all(&bytes).ok();
    });
    for k in ["1", "2"] {
        let ran = client(&server, &["-c", "4", "-t", "200", "-k", k, "-j", "-", "--timeout", "2s"]);
        assert_eq!(ran.code, 1);
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let number = |path: &str| json.pointer(path).and_then(serde_json::Value::as_u64).unwrap();
        let sum = number("/requests/done") + number("/requests/failed") + number("/requests/censored");
        assert_eq!(number("/requests/sent"), sum);
        assert_eq!(number("/requests/planned"), sum + number("/requests/not_sent"));
        assert_eq!(number("/connections/tried"), 800);
        let rows = json.pointer("/failures").and_then(serde_json::Value::as_array).unwrap();
        let counts: u64 = rows.iter().map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(counts, number("/requests/failed") + number("/connections/failed"));
        assert!(rows.len() >= 3, "{rows:?}");
    }
}

#[test]
fn the_report_survives_a_closed_stdout() {
    let server = Server::with(serve_well);
    let (done, read) = mpsc::channel();
    let mut child =
        command(&["-q", "-p", &server.port(), "-t", "5"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    std::thread::spawn(move || done.send(child.wait().unwrap().code()));
    // Not a panic (101), not a signal.
    assert_eq!(read.recv_timeout(Duration::from_secs(30)).unwrap(), Some(1));
}
