//! No request is lost: whatever the server does, sent = done + failed + censored, and every run ends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use client::random::Random;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::SockRef;
use support::{Server, command, finish, pattern, request, run, serve_well};

/// Runs, each with other options and other luck.
const RUNS: u64 = 24;

/// Serves a connection, and every few requests something goes wrong.
fn fail_at_random(conn: TcpStream, mut luck: Random) {
    if luck.unit() < 0.03 {
        return;
    }
    let mut conn = BufReader::new(conn);
    while let Some(n) = request(&mut conn) {
        let answer = pattern(n);
        let cut = n / 2;
        let good = match (luck.unit() * 40.0) as u32 {
            0 => conn.get_mut().write_all(&answer[..cut]).is_err(),
            1 => conn.get_mut().write_all(b"ERR busy\n").is_err(),
            2 => conn.get_mut().write_all(&[&answer[..], b"more"].concat()).is_ok(),
            3 => conn.get_mut().write_all(&vec![b'X'; n]).is_ok(),
            4 => {
                SockRef::from(conn.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
                false
            }
            5 => {
                // Stuck, until the client has had enough of it.
                conn.read_to_end(&mut Vec::new()).ok();
                false
            }
            6 => conn.get_ref().shutdown(Shutdown::Both).is_err(),
            7 => {
                let halves = [&answer[..cut], &answer[cut..]];
                halves.iter().all(|half| {
                    std::thread::sleep(Duration::from_millis(2));
                    conn.get_mut().write_all(half).is_ok()
                })
            }
            _ => conn.get_mut().write_all(&answer).is_ok(),
        };
        if !good {
            return;
        }
    }
}

fn choose<'a>(luck: &mut Random, from: &[&'a [&'a str]]) -> &'a [&'a str] {
    from[(luck.unit() * from.len() as f64) as usize]
}

fn options(luck: &mut Random) -> Vec<&'static str> {
    let mut args = vec!["-q", "-j", "-", "-b", "200", "--timeout", "100ms"];
    args.extend(choose(luck, &[&["-c", "1"], &["-c", "7"], &["-c", "20"]]));
    args.extend(choose(luck, &[&["-k", "0"], &["-k", "1"], &["-k", "3"]]));
    args.extend(choose(
        luck,
        &[&["-d", "300ms"], &["-d", "300ms", "-w", "50ms"], &["-t", "20"], &["-t", "20", "-w", "9"]],
    ));
    args.extend(choose(
        luck,
        &[
            &[],
            &["-R", "2000"],
            &["-R", "100:3000", "--arrivals", "poisson"],
            &["-R", "1500", "--arrivals", "burst:50", "--deadline", "30ms"],
            &["--think", "0ms-4ms"],
            &["--connect-rate", "700"],
        ],
    ));
    args.extend(choose(luck, &[&[], &["-T", "2"], &["--close", "rst"], &["--nodelay"], &["--no-latency"]]));
    args
}

/// Everything that was begun has one end.
fn check(json: &Value, args: &[&str]) {
    let n = |path: &str| json.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}"));
    let (sent, done) = (n("/requests/sent"), n("/requests/done"));
    assert_eq!(sent, done + n("/requests/failed") + n("/requests/censored"), "{args:?}");
    let [tried, failed, censored] = ["tried", "failed", "censored"].map(|name| n(&format!("/connections/{name}")));
    assert_eq!(tried, n("/connections/connected") + failed + censored, "{args:?}");
    let recorded = if args.contains(&"--no-latency") { 0 } else { done - n("/honesty/warmup_done") };
    for name in ["first_byte", "service", "total", "response"] {
        assert_eq!(n(&format!("/latency/{name}_ns/count")), recorded, "{name} {args:?}");
    }
    let rows: u64 = json["failures"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(rows, n("/requests/failed") + failed, "{args:?}");
    let sum =
        |name: &str| json["series"].as_array().unwrap().iter().map(|slice| slice[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("done"), sum("failed")), (done, rows), "{args:?}");
    if args.contains(&"-R") {
        // A request of the schedule was sent, or missed, or its connection came to nothing.
        let rest = n("/honesty/offered") - n("/honesty/missed") - sent;
        assert!(rest <= failed + censored, "{args:?}");
    } else {
        assert_eq!(n("/honesty/offered"), sent);
    }
}

#[test]
fn whatever_the_server_does() {
    let luck = Mutex::new(Random::new(1));
    let server = Server::with(move |conn| {
        let seed = luck.lock().unwrap().bits();
        fail_at_random(conn, Random::new(seed));
    });
    let port = server.port();
    for seed in 0..RUNS {
        let args = options(&mut Random::new(seed));
        let ran = run(&mut command(&[&args[..], &["-p", &port]].concat()));
        assert!(matches!(ran.code, 0 | 1), "{args:?}: {}", ran.err);
        let json: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ran.err));
        check(&json, &args);
        assert_eq!(json["good"], ran.code == 0, "{args:?}");
    }
}

#[test]
fn stopped_in_the_middle() {
    let server = Server::with(serve_well);
    let port = server.port();
    for args in [
        &["-R", "500", "-k", "0"][..],
        &["-R", "500", "-k", "1", "--arrivals", "poisson"],
        &["-R", "10m", "-k", "0", "-T", "2"],
        &["--think", "10ms", "-k", "0"],
        &["-T", "2", "-k", "1"],
    ] {
        let all = [args, &["-p", &port, "-c", "4", "-d", "1h", "-j", "-", "--plain"]].concat();
        let mut child = command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        lines.read_line(&mut String::new()).unwrap();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let ran = finish(child).expect(130, &[]);
        let json: Value = serde_json::from_str(&ran.out).unwrap();
        check(&json, args);
        assert_eq!(json["ended"], "interrupted");
        assert!(json["requests"]["done"].as_u64().unwrap() > 0, "{args:?}");
    }
}

#[test]
fn a_server_that_dies_leaves_nothing_open() {
    for (args, code) in [(&["-R", "1000", "-k", "0"][..], 1), (&["-R", "1000", "-k", "1"], 1), (&["--think", "1ms"], 1)]
    {
        // The third connection is the last; what comes after it is refused.
        let server = Server::mortal(3, |conn, number| {
            if number < 2 {
                std::thread::spawn(move || serve_well(conn));
            }
        });
        let port = server.port();
        let args = [args, &["-p", &port, "-c", "3", "-d", "2s", "-q", "-j", "-", "--timeout", "200ms"]].concat();
        let ran = run(&mut command(&args));
        assert_eq!(ran.code, code, "{args:?} {}", ran.err);
        check(&serde_json::from_str(&ran.out).unwrap(), &args);
    }
}

#[test]
fn a_deadline_is_from_the_intended_start() {
    // One connection, and each answer takes 20 ms: of requests that are due every 10 ms most wait too long.
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            std::thread::sleep(Duration::from_millis(20));
            if conn.get_mut().write_all(&pattern(n)).is_err() {
                return;
            }
        }
    });
    let port = server.port();
    let load = ["-p", &port, "-R", "100", "-k", "0", "-c", "1", "-d", "1s", "-q", "-j", "-"];
    let n = |json: &Value, path: &str| json.pointer(path).and_then(Value::as_u64).unwrap();
    let with = [&load[..], &["--deadline", "100ms"]].concat();
    let ran = run(&mut command(&with));
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    check(&json, &with);
    assert_eq!(ran.code, 1);
    assert_eq!(n(&json, "/honesty/offered"), 100);
    let late = n(&json, "/honesty/missed") + n(&json, "/requests/failed");
    assert!(late >= 30, "{late}");
    assert!(n(&json, "/latency/response_ns/max") <= 101_000_000);
    // Without it each of them is served in the end, and its wait is charged.
    let json: Value = serde_json::from_str(&run(&mut command(&load)).out).unwrap();
    check(&json, &load);
    assert!(n(&json, "/latency/response_ns/max") >= 500_000_000);
    assert!(n(&json, "/latency/response_ns/max") > 5 * n(&json, "/latency/service_ns/max"));
    assert!(n(&json, "/honesty/waited") >= 80);
}

#[test]
fn a_time_to_start_at_that_is_over_is_refused() {
    let server = Server::with(serve_well);
    let args = ["-p", &server.port(), "--start-at", "2001-01-01T00:00:00Z"];
    run(&mut command(&args)).expect(1, &["client: the time to start at is over"]);
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + Duration::from_secs(1);
    let soon = format!("{:.3}", soon.as_secs_f64());
    let begun = std::time::Instant::now();
    run(&mut command(&["-q", "-p", &server.port(), "-t", "5", "--start-at", &soon])).expect(0, &["OK: 25 answers"]);
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}
