//! Whether the client tells the truth where the truth is known: a server that is stopped for a while, requests that are
//! due at known times.
//!
//! The server is stopped by signals, so it is a process of its own, and these tests run one after the other.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::rig::{self, Rig};

/// Other programs on the machine delay the server and the client too: the best of so many runs counts.
const ATTEMPTS: usize = 20;
const STOP: Duration = Duration::from_millis(100);
const EVERY: Duration = Duration::from_secs(1);
const RUN: f64 = 5.0;
/// What pacing may add, in lengths of a request. A timer that counts milliseconds would add some 500 us to the 20 us or
/// so of a request.
const MOST_PACING: f64 = 5.0;

fn main() {
    rig::be_the_rig_if_asked();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("a_server_that_stops", a_server_that_stops),
        Trial::test("pacing_costs_little", pacing_costs_little),
        Trial::test("a_rate_is_kept_in_every_shape", a_rate_is_kept_in_every_shape),
        Trial::test("threads_share_one_schedule", threads_share_one_schedule),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(rig: &Rig, args: &[&str]) -> Value {
    let ran = support::run(&mut support::command(&[&["-q", "-j", "-", "-p", &rig.port], args].concat()));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
    serde_json::from_str(&ran.out).unwrap()
}

fn number(json: &Value, path: &str) -> f64 {
    json.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"))
}

fn ms(json: &Value, path: &str) -> f64 {
    number(json, path) / 1e6
}

/// A request of this test's own, which is answered when the server goes on: so it is known how long it really stood.
fn ask(conn: &mut TcpStream) {
    let mut answer = [0; 1];
    conn.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"a");
}

/// Stops the server for 100 ms in every second until `over`; says how long each stop really was, in milliseconds.
fn stops(rig: &Rig, over: &AtomicBool) -> Vec<f64> {
    let mut conn = TcpStream::connect(("127.0.0.1", rig.port.parse().unwrap())).unwrap();
    let mut lengths = Vec::new();
    let start = Instant::now();
    for second in 0.. {
        let due = EVERY * second + EVERY / 2;
        while start.elapsed() < due {
            if over.load(Ordering::SeqCst) {
                return lengths;
            }
            thread::sleep((due - start.elapsed().min(due)).min(Duration::from_millis(5)));
        }
        let stopped = Instant::now();
        kill(rig.pid(), Signal::SIGSTOP).unwrap();
        conn.write_all(b"1\n").unwrap();
        thread::sleep(STOP.saturating_sub(stopped.elapsed()));
        kill(rig.pid(), Signal::SIGCONT).unwrap();
        ask(&mut conn);
        lengths.push(stopped.elapsed().as_secs_f64() * 1e3);
    }
    lengths
}

/// The response time in milliseconds that `share` of evenly spread requests exceed, if those that meet a stop wait for
/// its end and the others do not wait at all.
fn exceeded_by(share: f64, stops: &[f64]) -> f64 {
    let longest = stops.iter().copied().fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, longest);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        let beyond: f64 = stops.iter().map(|stop| (stop - middle).max(0.0)).sum();
        if beyond > share * RUN * 1e3 { low = middle } else { high = middle }
    }
    low
}

fn a_server_that_stops() -> Result<(), Failed> {
    assert!((exceeded_by(0.05, &[100.0; 5]) - 50.0).abs() < 0.1 && (exceeded_by(0.01, &[100.0; 5]) - 90.0).abs() < 0.1);
    let rig = Rig::start();
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let over = Arc::new(AtomicBool::new(false));
        let (json, stops) = thread::scope(|scope| {
            let stopper = scope.spawn(|| stops(&rig, &over));
            let json = run(&rig, &["-R", "1000", "-k", "0", "-c", "10", "-d", "5s", "-w", "0"]);
            over.store(true, Ordering::SeqCst);
            (json, stopper.join().unwrap())
        });
        let [p95, p99] = ["/latency/response_ns/p95", "/latency/response_ns/p99"].map(|path| ms(&json, path));
        let [true95, true99] = [exceeded_by(0.05, &stops), exceeded_by(0.01, &stops)];
        let (sent, service) = (number(&json, "/requests/sent"), ms(&json, "/latency/service_ns/p95"));
        let text = format!(
            "{} stops: p95 {p95:.1} ms, p99 {p99:.1} ms (on paper {true95:.1} and {true99:.1}; 50 and 90 with exact \
             stops), service p95 {service:.2} ms, {sent} sent",
            stops.len()
        );
        eprintln!("{text}");
        let right = (p95 - true95).abs() <= 3.0 && (p99 - true99).abs() <= 2.0 && (sent - 5000.0).abs() <= 5.0;
        // Only ten requests can meet a stop on ten connections: by their service times the server looks much better.
        if right && service < p95 / 2.0 {
            return Ok(());
        }
        seen.push(text);
    }
    Err(seen.join("\n").into())
}

/// Requests that are due one by one on an idle server: what the pacing adds is of the order of a request.
fn pacing_costs_little() -> Result<(), Failed> {
    let rig = Rig::start();
    let mut best = f64::MAX;
    for _ in 0..ATTEMPTS {
        let json = run(&rig, &["-R", "2000", "-k", "0", "-c", "4", "-d", "1s", "-b", "100"]);
        let [service, response] = ["/latency/service_ns/p50", "/latency/response_ns/p50"].map(|path| ms(&json, path));
        best = best.min((response - service) / service);
        eprintln!("response p50 - service p50 = {:.1} us", 1e3 * (response - service));
        if best < MOST_PACING {
            return Ok(());
        }
    }
    Err(format!("pacing adds {best} times a request").into())
}

fn a_rate_is_kept_in_every_shape() -> Result<(), Failed> {
    let rig = Rig::start();
    let shapes = [&["-R", "1000"][..], &["-R", "500:1500"], &["-R", "1000", "--arrivals", "poisson", "--seed", "5"]];
    for shape in [&shapes[..], &[&["-R", "1k", "--arrivals", "burst:20"]]].concat() {
        for kept in [&["-k", "0", "-c", "20"][..], &["-k", "1", "--max-open", "50"], &["-k", "3", "-c", "30"]] {
            let json = run(&rig, &[shape, kept, &["-d", "500ms", "-b", "100"]].concat());
            let [due, sent, done] = ["/honesty/offered", "/requests/sent", "/requests/done"].map(|p| number(&json, p));
            assert!((due - 500.0).abs() <= 100.0, "{shape:?} {kept:?} {due}");
            assert!(shape.contains(&"poisson") || (due - 500.0).abs() <= 1.0, "{shape:?} {kept:?} {due}");
            assert_eq!((sent, done, number(&json, "/honesty/missed")), (due, due, 0.0), "{shape:?} {kept:?}");
            assert_eq!(number(&json, "/latency/response_ns/count"), done);
            let slices = json["series"].as_array().unwrap();
            assert!((20..=128).contains(&slices.len()), "{}", slices.len());
            let sum = |name: &str| slices.iter().map(|slice| slice[name].as_f64().unwrap()).sum::<f64>();
            assert_eq!((sum("offered"), sum("done")), (due, done));
        }
    }
    // A seed repeats its arrivals, another has others.
    let args = ["-R", "1000", "--arrivals", "poisson", "-t", "40", "-c", "10", "--seed"];
    let elapsed = |seed: &str| number(&run(&rig, &[&args[..], &[seed]].concat()), "/elapsed_ns");
    assert!((elapsed("1") / elapsed("1") - 1.0).abs() < 0.2);
    Ok(())
}

fn threads_share_one_schedule() -> Result<(), Failed> {
    let rig = Rig::start();
    for kept in [&["-k", "0"][..], &["-k", "1"]] {
        let json = run(&rig, &[&["-T", "3", "-R", "3000", "-c", "30", "-d", "1s", "-b", "100"], kept].concat());
        assert_eq!(["/requests/sent", "/requests/done"].map(|path| number(&json, path)), [3000.0, 3000.0]);
        assert_eq!(number(&json, "/honesty/threads"), 3.0);
    }
    let json = run(&rig, &["-T", "2", "--pin", "0", "-c", "7", "-t", "100", "-k", "2", "-b", "100"]);
    assert_eq!(number(&json, "/requests/done"), 1400.0);
    assert_eq!(number(&json, "/latency/service_ns/count"), 1400.0);
    let slices = json["series"].as_array().unwrap();
    assert_eq!(slices.iter().map(|slice| slice["done"].as_u64().unwrap()).sum::<u64>(), 1400);
    // Stopped, each of several threads is.
    let args = ["-T", "2", "-p", &rig.port, "-c", "4", "-k", "0", "-d", "1h", "-b", "100"];
    let mut child = support::command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stderr.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    support::finish(child).expect(130, &[" done, 0 failed, 4 censored", "INTERRUPTED"]);
    Ok(())
}
