//! When the client does things: pauses, warm-up, connects.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::{Server, client, command, finish, have, pattern, request, run, serve_well, syscalls};

fn json(server: &Server, args: &[&str]) -> Value {
    serde_json::from_str(&client(server, &[&["-j", "-"], args].concat()).expect(0, &[]).out).unwrap()
}

fn n(json: &Value, path: &str) -> u64 {
    json.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn clients_think_between_requests() {
    let server = Server::with(serve_well);
    for kept in ["0", "1", "2"] {
        let tries = if kept == "2" { "3" } else { "6" };
        let json = json(&server, &["-c", "2", "-k", kept, "-t", tries, "--think", "40ms"]);
        assert_eq!(n(&json, "/requests/done"), 12);
        // Each client pauses five times; that is no part of any request.
        assert!(n(&json, "/elapsed_ns") >= 200_000_000, "{kept}");
        assert!(n(&json, "/latency/response_ns/min") < 40_000_000, "{kept}");
    }
    client(&server, &["-c", "2", "-k", "0", "-t", "6", "--think", "exp:30ms"])
        .expect(0, &["they think", "30ms on average"]);
}

#[test]
fn a_kept_connection_that_is_closed_in_a_pause_is_made_again() {
    // The server has no patience: it closes a connection that is quiet for 10 ms.
    let server = Server::with(|conn| {
        conn.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        serve_well(conn);
    });
    client(&server, &["-c", "2", "-k", "0", "-t", "5", "--think", "60ms"])
        .expect(0, &["requests     10 done, 0 failed"]);
    assert_eq!(server.accepted(), 10);
    let server = Server::with(|conn| {
        conn.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        serve_well(conn);
    });
    client(&server, &["-c", "1", "-k", "0", "-d", "500ms", "-R", "20"]).expect(0, &["requests     10 done, 0 failed"]);
}

#[test]
fn connects_keep_to_their_rate() {
    let server = Server::with(serve_well);
    for args in
        [&["-c", "2", "-t", "10"][..], &["-c", "20", "-t", "5", "-k", "0"], &["-c", "20", "-t", "1", "-R", "1000"]]
    {
        let json = json(&server, &[args, &["--connect-rate", "100"]].concat());
        assert_eq!(n(&json, "/connections/connected"), 20);
        // Twenty at 100 a second, and one or two of them at once for the time that has passed before.
        assert!(n(&json, "/elapsed_ns") >= 150_000_000, "{args:?}");
    }
}

#[test]
fn a_warm_up_is_counted_but_not_recorded() {
    let server = Server::with(serve_well);
    for args in
        [&["-t", "100", "-w", "30"][..], &["-d", "600ms", "-w", "200ms", "-k", "0"], &["-d", "900ms", "-k", "0"]]
    {
        let json = json(&server, &[&["-c", "2"], args].concat());
        let [done, left_out] = ["/requests/done", "/honesty/warmup_done"].map(|path| n(&json, path));
        assert!(left_out >= 20 && left_out < done, "{args:?}: {left_out} of {done}");
        assert_eq!(n(&json, "/latency/response_ns/count"), done - left_out, "{args:?}");
    }
    client(&server, &["-d", "300ms", "-w", "100ms"])
        .expect(0, &["warm-up      100.0 ms: ", "are not in the latencies"]);
    // What fails in the warm-up has failed.
    let server = Server::mortal(usize::MAX, |conn, number| {
        if number > 0 {
            thread::spawn(move || serve_well(conn));
        }
    });
    client(&server, &["-c", "1", "-t", "9", "-w", "5"]).expect(1, &["8 done, 1 failed"]);
}

#[test]
fn a_slow_start_is_no_steady_run() {
    let start = Instant::now();
    let server = Server::with(move |conn| {
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            thread::sleep(Duration::from_millis(if start.elapsed() < Duration::from_millis(600) { 100 } else { 2 }));
            if conn.get_mut().write_all(&pattern(n)).is_err() {
                return;
            }
        }
    });
    let ran = client(&server, &["-c", "4", "-k", "0", "-d", "2500ms", "-w", "0"]);
    ran.expect(0, &["steadiness   ", "not steady, try --warmup "]);
}

#[test]
fn a_full_accept_queue_is_told_by_the_second_syn() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(1).unwrap();
    let listener = TcpListener::from(socket);
    let port = listener.local_addr().unwrap().port();
    let args = ["-q", "-p", &port.to_string(), "-c", "6", "-t", "1", "--connect-burst", "0"];
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody accepts yet. On loopback a connect is over at once, unless its SYN was dropped.
    let limit = Instant::now() + Duration::from_secs(20);
    while syns_sent(port) == 0 {
        assert!(Instant::now() < limit, "no SYN was dropped");
        thread::sleep(Duration::from_millis(5));
    }
    thread::spawn(move || {
        for conn in listener.incoming() {
            thread::spawn(move || serve_well(conn.unwrap()));
        }
    });
    finish(child).expect(0, &["waited for a SYN retransmission: the listen backlog overflowed", "OK: 6 answers"]);
}

/// Sockets that wait for the answer to a SYN to this port of loopback.
fn syns_sent(port: u16) -> usize {
    let peer = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(2) == Some(&peer.as_str()) && row.get(3) == Some(&"02")).count()
}

#[test]
fn nodelay_is_one_call_more_per_connection() {
    if !have("strace", "nodelay_is_one_call_more_per_connection") {
        return;
    }
    let server = Server::with(serve_well);
    let calls = |more: &[&str]| syscalls(&[&["-q", "-p", &server.port(), "-c", "1", "-t", "20"], more].concat());
    assert_eq!(calls(&["--nodelay"]).get("setsockopt"), Some(&20));
    assert_eq!(calls(&[]).get("setsockopt"), None);
}

#[test]
fn a_rate_that_is_not_kept_is_told() {
    // One connection, and each answer takes 20 ms: of 100 requests a second half are sent, in the second after too.
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            thread::sleep(Duration::from_millis(20));
            if conn.get_mut().write_all(&pattern(n)).is_err() {
                return;
            }
        }
    });
    let load = ["-R", "200", "-k", "0", "-c", "1", "-d", "1s", "--timeout", "200ms"];
    client(&server, &load).expect(0, &["WARNING: only ", "of the schedule was sent"]);
    let strict = [&load[..], &["--strict"]].concat();
    client(&server, &strict).expect(4, &["client: inconclusive: only ", "OK: "]);
    client(&server, &["-R", "20", "-k", "0", "-c", "2", "-d", "300ms", "--strict"]).expect(0, &["OK: 6 answers"]);
}

#[test]
fn usage_errors_are_told_from_runs_that_fail() {
    for (args, code) in [(&["-R", "x"][..], 2), (&["-R", "5", "--think", "1s"], 2), (&["--arrivals", "poisson"], 2)] {
        run(&mut command(args)).expect(code, &["error: "]);
    }
    let server = Server::with(serve_well);
    run(&mut command(&["-p", &server.port(), "--pin", "1023"])).expect(1, &["client: sched_setaffinity: "]);
}
