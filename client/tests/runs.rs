//! What the client does when all is well: the right bytes, counts, closes and reports.

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use client::{Ended, Plan, Until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Server, answer_once, client, command, finish, pattern, request, run, serve_well};

#[test]
fn the_books_run() {
    let server = Server::with(serve_well);
    let ran = client(&server, &["-c", "5", "-t", "50"]).expect(
        0,
        &[
            "closed loop: 5 clients x 50 connections x 1 request of 3000 bytes to 127.0.0.1:",
            "requests     250 done, 0 failed, 0 not sent, 0 censored",
            "connections  250 made, 0 failed, 0 not tried, ",
            "OK: 250 answers, every byte checked",
        ],
    );
    assert_eq!((server.accepted(), ran.err.as_str()), (250, ""));
    assert!(ran.out.lines().skip(1).all(|line| line.len() <= 80), "{}", ran.out);
}

#[test]
fn the_positional_form() {
    let server = Server::with(serve_well);
    let ran = run(&mut command(&["localhost", &server.port(), "3", "4", "5"]));
    ran.expect(0, &["3 clients x 4 connections x 1 request of 5 bytes", "OK: 12 answers"]);
    // localhost may be ::1 too; the server has seen no connection that was only a probe.
    assert_eq!(server.accepted(), 12);
}

#[test]
fn requests_per_connection() {
    let server = Server::with(serve_well);
    client(&server, &["-c", "3", "-t", "4", "-k", "5"]).expect(0, &["OK: 60 answers"]);
    assert_eq!(server.accepted(), 12);
    client(&server, &["-c", "3", "-t", "40", "-k", "0"]).expect(0, &["OK: 120 answers"]);
    assert_eq!(server.accepted(), 15);
    client(&server, &["-c", "3", "-d", "300ms", "-k", "0"]).expect(0, &["3 censored", "OK: "]);
    assert_eq!(server.accepted(), 18);
}

#[test]
fn answers_of_many_sizes() {
    let server = Server::with(serve_well);
    for bytes in ["1", "26", "65535", "65536", "65537", "131072", "1m", "5m"] {
        client(&server, &["-c", "3", "-t", "3", "-k", "2", "-b", bytes]).expect(0, &["OK: 18 answers"]);
    }
}

#[test]
fn answers_byte_by_byte() {
    let server = Server::with(|conn| {
        conn.set_nodelay(true).unwrap();
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            for byte in pattern(n) {
                conn.get_mut().write_all(&[byte]).unwrap();
            }
        }
    });
    client(&server, &["-c", "2", "-t", "3", "-k", "2", "-b", "300"]).expect(0, &["OK: 12 answers"]);
}

#[test]
fn who_closes_and_how() {
    let (tell, told) = mpsc::channel();
    let server = Server::with(move |conn| {
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            conn.get_mut().write_all(&pattern(n)).unwrap();
            // A reset may cut in between; the next read tells.
        }
        tell.send(conn.read(&mut [0]).map_err(|error| error.kind())).unwrap();
    });
    client(&server, &["-c", "1", "-t", "1", "--close", "fin"]).expect(0, &["OK: 1"]);
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(0));

    let (tell, told) = mpsc::channel();
    let server = Server::with(move |mut conn| {
        let mut seen = [0; 64];
        let n = conn.read(&mut seen).unwrap();
        assert_eq!(&seen[..n], b"3000\n");
        conn.write_all(&pattern(3000)).unwrap();
        tell.send(conn.read(&mut seen).map_err(|error| error.kind())).unwrap();
    });
    client(&server, &["-c", "1", "-t", "1", "--close", "rst"]).expect(0, &["OK: 1"]);
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), Err(ErrorKind::ConnectionReset));

    let server = Server::with(|conn| answer_once(conn, pattern));
    client(&server, &["-c", "4", "-t", "25", "--close", "server"]).expect(0, &["OK: 100"]);
    client(&server, &["-c", "4", "-t", "25"]).expect(0, &["OK: 100"]);
}

#[test]
fn json_to_a_file_and_to_stdout() {
    let server = Server::with(serve_well);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let ran = client(&server, &["-c", "2", "-t", "60", "-j", path]).expect(0, &["OK: 120 answers"]);
    let from_file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let from_stdout: serde_json::Value =
        serde_json::from_str(&client(&server, &["-c", "2", "-t", "60", "-j", "-"]).out).unwrap();
    for json in [&from_file, &from_stdout] {
        assert_eq!(json["schema"], 1);
        assert_eq!(json["good"], true);
        assert_eq!(json["plan"]["until"]["tries"], 60);
        assert_eq!(json["requests"]["done"], 120);
        assert_eq!(json["latency"]["service_ns"]["count"], 120);
        assert!(json["latency"]["service_ns"]["p90"].as_u64().unwrap() > 0);
        assert!(json["latency"]["service_ns"]["p99"].is_null());
    }
    assert!(ran.err.is_empty(), "{}", ran.err);
}

#[test]
fn progress_is_lines_where_there_is_no_terminal() {
    let server = Server::with(serve_well);
    let ran = run(&mut command(&["-p", &server.port(), "-c", "2", "-k", "0", "-d", "1300ms"])).expect(0, &["OK"]);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.starts_with("   1 s  ") && ran.err.ends_with(" requests/s, 2 open\n"), "{}", ran.err);
    let short = run(&mut command(&["-p", &server.port(), "-t", "5"])).expect(0, &["OK"]);
    assert_eq!(short.err, "");
}

#[test]
fn explain_tells_what_the_numbers_mean() {
    let server = Server::with(serve_well);
    client(&server, &["-t", "1", "--explain"]).expect(0, &["What the numbers mean", "censored      Unanswered"]);
    assert!(client::explain::TEXT.lines().all(|line| line.len() <= 80));
}

#[test]
fn ctrl_c_stops_and_reports() {
    let server = Server::with(serve_well);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = command(&["-p", &server.port(), "-c", "2", "-k", "0", "-d", "1h"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The first line of progress: the run is under way.
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        finish(child).expect(130, &[" done, 0 failed, 2 censored", "INTERRUPTED"]);
    }
}

#[test]
fn the_library_runs_without_the_command() {
    let server = Server::with(serve_well);
    let plan = Plan { port: server.addr.port(), clients: 3, until: Until::Tries(7), bytes: 10, ..Plan::default() };
    let report = client::run(&plan, &mut ()).unwrap();
    assert!(report.is_good());
    assert_eq!((report.ended, report.requests.done, report.bytes), (Ended::Finished, 21, 210));
    assert_eq!(report.latency.service.len(), 21);
    assert!(client::run(&Plan { clients: 0, ..plan }, &mut ()).is_err());
}
