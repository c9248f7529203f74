//! The engines measure by the same code: whatever the server does, their counts and classes are the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::SockRef;
use support::{Server, answer_once, command, finish, have, pattern, request, run, serve_well};

const ENGINES: [&str; 4] = ["epoll", "threads", "uring", "fork"];
/// Those that have a schedule.
const OPEN: [&str; 3] = ["epoll", "threads", "uring"];

/// Requests sent, done, failed and censored, and each failure with its count; the totals law holds.
fn counts(code: i32, port: &str, args: &[&str]) -> Vec<(Value, Value)> {
    let engines: &[&str] = if args.contains(&"-R") { &OPEN } else { &ENGINES };
    let counted: Vec<(Value, Value)> = engines
        .iter()
        .map(|engine| {
            let all = [args, &["--engine", engine, "-q", "-j", "-", "-p", port]].concat();
            let ran = run(&mut command(&all));
            assert_eq!(ran.code, code, "{all:?}: {}{}", ran.out, ran.err);
            let json: Value = serde_json::from_str(&ran.out).unwrap();
            law(&json);
            let rows = json["failures"].as_array().unwrap().iter();
            let rows = rows.map(|row| serde_json::json!([row["phase"], row["kind"], row["count"]])).collect();
            let n = |name: &str| json["requests"][name].clone();
            (serde_json::json!([n("sent"), n("done"), n("failed"), n("censored")]), rows)
        })
        .collect();
    for (engine, other) in engines.iter().zip(&counted) {
        assert_eq!(counted[0], *other, "{engine} {args:?}");
    }
    counted
}

fn law(json: &Value) {
    let n = |path: &str| json.pointer(path).and_then(Value::as_u64).unwrap();
    let ends = n("/requests/done") + n("/requests/failed") + n("/requests/censored");
    assert_eq!(n("/requests/sent"), ends);
    let ends = n("/connections/connected") + n("/connections/failed") + n("/connections/censored");
    assert_eq!(n("/connections/tried"), ends);
}

#[test]
fn a_good_server() {
    let server = Server::with(serve_well);
    for args in [
        &["-c", "7", "-t", "20"][..],
        &["-c", "7", "-t", "20", "-k", "3", "--close", "rst"],
        &["-c", "7", "-t", "20", "-k", "0", "-b", "200000"],
        &["-c", "7", "-t", "5", "-k", "0", "-R", "1000"],
        &["-c", "7", "-t", "5", "-R", "1000", "--source", "127.0.0.3"],
        &["-c", "1", "-t", "5", "--echo"],
    ] {
        if args.contains(&"--echo") {
            let echo = Server::with(|mut conn| drop(std::io::copy(&mut conn.try_clone().unwrap(), &mut conn)));
            counts(0, &echo.port(), args);
        } else {
            counts(0, &server.port(), args);
        }
    }
}

#[test]
fn servers_that_fail() {
    let few = ["-c", "3", "-t", "4", "--timeout", "300ms"];
    let short = Server::with(|conn| answer_once(conn, |n| pattern(n - 1)));
    assert_eq!(counts(1, &short.port(), &few)[0].0, serde_json::json!([12, 0, 12, 0]));
    let reset = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        request(&mut conn);
        SockRef::from(conn.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    });
    assert_eq!(counts(1, &reset.port(), &few)[0].0, serde_json::json!([12, 0, 12, 0]));
    let silent = Server::with(|mut conn| drop(conn.read_to_end(&mut Vec::new())));
    counts(1, &silent.port(), &["-c", "3", "-t", "2", "--timeout", "300ms"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for engine in ENGINES {
        let refused = command(&["-q", "-p", &closed, "--engine", engine]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("nobody listens there"));
    }
}

#[test]
fn an_interrupted_run_reports() {
    let server = Server::with(serve_well);
    for engine in ENGINES {
        for more in [&["-k", "0"][..], &["-R", "200", "-k", "0"]] {
            if engine == "fork" && more.contains(&"-R") {
                continue;
            }
            let port = server.port();
            let args = ["-p", &port, "-c", "4", "-d", "1h", "-j", "-", "--plain", "--engine", engine];
            let mut child = command(&[&args[..], more].concat());
            let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            if engine == "fork" {
                at_work(child.id(), 4);
            } else {
                let mut lines = BufReader::new(child.stderr.take().unwrap());
                lines.read_line(&mut String::new()).unwrap();
            }
            kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
            let ran = finish(child).expect(130, &[]);
            let json: Value = serde_json::from_str(&ran.out).unwrap();
            law(&json);
            assert!(json["requests"]["done"].as_u64().unwrap() > 0);
        }
    }
}

#[test]
fn what_the_engine_cannot_do_is_a_usage_error() {
    run(&mut command(&["--engine", "threads", "-T", "2"])).expect(2, &["leave out -T"]);
    run(&mut command(&["--engine", "threads", "-c", "1025"])).expect(2, &["at most 1024"]);
    for (more, words) in [
        (&["-R", "100"][..], "leave out -R"),
        (&["-T", "2"], "leave out -T"),
        (&["-c", "1025"], "at most 1024"),
        (&["--misbehave", "silent"], "leave out --misbehave"),
        (&["--connect-rate", "5"], "leave out --connect-rate"),
        (&["--pin", "0"], "leave out --pin"),
        (&["--tui"], "--tui does not go with"),
        (&["--series", "-"], "--series does not go with"),
    ] {
        run(&mut command(&[&["--engine", "fork"], more].concat())).expect(2, &[words]);
    }
    run(&mut command(&["find", "--slo", "p99<1s", "--engine", "fork"])).expect(2, &["which has threads"]);
    run(&mut command(&["scan", "--children", "1,2", "--engine", "fork"])).expect(2, &["which has threads"]);
    run(&mut command(&["bench", "--server", "a=x", "--server", "b=y", "--engine", "fork"]))
        .expect(2, &["which has threads"]);
}

#[test]
fn a_full_accept_queue_does_not_outlast_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A second listen() only makes the queue shorter.
    SockRef::from(&listener).listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let _first = TcpStream::connect(addr).unwrap();
    let port = addr.port().to_string();
    for engine in ENGINES {
        let args = ["-c", "2", "-k", "0", "-d", "500ms", "-q", "-j", "-", "-p", &port, "--engine", engine];
        let ran = run(&mut command(&args));
        assert_eq!(ran.code, 1, "{}", ran.err);
        let json: Value = serde_json::from_str(&ran.out).unwrap();
        law(&json);
        assert_eq!(json["ended"], "duration", "{engine}");
    }
}

/// The children of a process.
fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits until a process has so many children and each of them has a connection; the children.
fn at_work(pid: u32, count: usize) -> Vec<i32> {
    let socket = |pid: &i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fd.path().read_link().ok()).any(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let children = children(pid);
        if children.len() == count && children.iter().all(socket) {
            return children;
        }
        assert!(Instant::now() < deadline, "{count} processes at work");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_gone(pid: i32) -> bool {
    // A zombie would still be there.
    kill(Pid::from_raw(pid), None).is_err()
}

fn forked(more: &[&str]) -> std::process::Child {
    let mut child = command(&[&["--engine", "fork", "-c", "3", "-k", "0", "-q", "-j", "-"], more].concat());
    child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_killed_process_is_told_and_the_rest_counts() {
    let server = Server::with(serve_well);
    let child = forked(&["-p", &server.port(), "-d", "1s"]);
    let members = at_work(child.id(), 3);
    kill(Pid::from_raw(members[1]), Signal::SIGKILL).unwrap();
    let words = format!("client process {} was killed by signal 9: its part of the counts is lost", members[1]);
    let ran = finish(child).expect(1, &[&words]);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    law(&json);
    assert_eq!(json["honesty"]["threads"], 2);
    assert_eq!(json["plan"]["clients"], 3);
    assert!(members.into_iter().all(is_gone));
}

#[test]
fn processes_end_with_their_parent() {
    let server = Server::with(serve_well);
    let mut child = forked(&["-p", &server.port(), "-d", "1h"]);
    let members = at_work(child.id(), 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !members.iter().copied().all(|pid| is_gone(pid) || is_zombie(pid)) {
        assert!(Instant::now() < deadline, "{members:?} outlive their parent");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Dead, and left to an init that does not wait for it at once.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn a_ring_serves_many_connections() {
    let server = Server::with(serve_well);
    let port = server.port();
    for more in [&["-c", "200", "-t", "25"][..], &["-c", "200", "-t", "25", "-T", "2"]] {
        let args = [more, &["--engine", "uring", "-q", "-j", "-", "-p", &port]].concat();
        let json: Value = serde_json::from_str(&run(&mut command(&args)).expect(0, &[]).out).unwrap();
        law(&json);
        assert_eq!(json["requests"]["done"], 5000, "{args:?}");
        assert_eq!(json["connections"]["connected"], 5000, "{args:?}");
    }
}

#[test]
fn without_a_ring_one_line_says_so() {
    if !have("strace", "without_a_ring_one_line_says_so") {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", "inject=io_uring_setup:error=EPERM"]);
    let server = Server::with(serve_well);
    strace.arg(env!("CARGO_BIN_EXE_client")).args(["--engine", "uring", "-q", "-p", &server.port()]);
    let ran = run(&mut strace);
    assert_eq!((ran.code, ran.err.lines().count()), (69, 1), "{}", ran.err);
    assert!(ran.err.starts_with("client: io_uring_setup: "), "{}", ran.err);
}
