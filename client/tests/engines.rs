//! The engines measure by the same code: whatever the server does, their counts and classes are the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::SockRef;
use support::{Server, answer_once, command, finish, pattern, request, run, serve_well};

const ENGINES: [&str; 2] = ["epoll", "threads"];

/// Requests sent, done, failed and censored, and each failure with its count; the totals law holds.
fn counts(code: i32, port: &str, args: &[&str]) -> Vec<(Value, Value)> {
    let counted = ENGINES.map(|engine| {
        let all = [args, &["--engine", engine, "-q", "-j", "-", "-p", port]].concat();
        let ran = run(&mut command(&all));
        assert_eq!(ran.code, code, "{all:?}: {}{}", ran.out, ran.err);
        let json: Value = serde_json::from_str(&ran.out).unwrap();
        law(&json);
        let rows = json["failures"].as_array().unwrap().iter();
        let rows = rows.map(|row| serde_json::json!([row["phase"], row["kind"], row["count"]])).collect();
        let n = |name: &str| json["requests"][name].clone();
        (serde_json::json!([n("sent"), n("done"), n("failed"), n("censored")]), rows)
    });
    assert_eq!(counted[0], counted[1], "{args:?}");
    counted.into()
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
            let port = server.port();
            let args = ["-p", &port, "-c", "4", "-d", "1h", "-j", "-", "--plain", "--engine", engine];
            let mut child = command(&[&args[..], more].concat());
            let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap());
            lines.read_line(&mut String::new()).unwrap();
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
}
