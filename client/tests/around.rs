//! What is done around runs: servers started and watched, gates, comparisons. The server is this test program itself,
//! started again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod support;

use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use support::{command, run};

/// In the environment of the server: how many microseconds it waits before each answer.
const ROLE: &str = "CLIENT_TEST_SERVER";

fn main() {
    if let Some(delay) = std::env::var_os(ROLE) {
        serve(Duration::from_micros(delay.to_str().unwrap().parse().unwrap()));
    }
    let tests: [(&str, fn()); 8] = [
        ("the_server_lives_as_long_as_its_load", the_server_lives_as_long_as_its_load),
        ("a_server_that_ends_at_once_is_one_clear_line", a_server_that_ends_at_once_is_one_clear_line),
        ("gates_decide_the_exit_status", gates_decide_the_exit_status),
        ("a_slower_server_is_called_slower", a_slower_server_is_called_slower),
        ("merged_counts_are_sums", merged_counts_are_sums),
        ("runs_are_compared", runs_are_compared),
        ("a_scan_has_a_row_per_value", a_scan_has_a_row_per_value),
        ("doctor_and_usage", doctor_and_usage),
    ];
    let args = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&args, tests.map(trial).into()).exit();
}

fn serve(delay: Duration) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    loop {
        let (conn, _) = listener.accept().unwrap();
        std::thread::spawn(move || {
            let mut conn = BufReader::new(conn);
            while let Some(n) = support::request(&mut conn) {
                if !delay.is_zero() {
                    std::thread::sleep(delay);
                }
                if conn.get_mut().write_all(&support::pattern(n)).is_err() {
                    return;
                }
            }
        });
    }
}

fn server(delay: u32) -> String {
    format!("env {ROLE}={delay} {}", std::env::current_exe().unwrap().display())
}

fn the_server_lives_as_long_as_its_load() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let ran = run(&mut command(&["-q", "-t", "50", "-j", path, "--server-cmd", &server(0)]));
    ran.expect(0, &["OK: 250 answers", "server"]);
    let report = client::json::read(&mut std::fs::File::open(path).unwrap()).unwrap();
    let used = report.server.unwrap();
    assert!(used.peak_processes >= 1 && used.peak_rss_bytes > 100_000 && used.voluntary_switches > 0, "{used:?}");
    assert!(!std::path::Path::new(&format!("/proc/{}", used.pid)).exists(), "the server is still there");
}

fn a_server_that_ends_at_once_is_one_clear_line() {
    let ran = run(&mut command(&["-q", "--server-cmd", "echo no such port >&2; exit 3"]));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("ended with status 3") && ran.err.lines().count() == 1, "{ran:?}");
    run(&mut command(&["-q", "--server-cmd", "/no/such/server"])).expect(1, &["start /no/such/server"]);
    run(&mut command(&["-q", "--server-pid", "2147483647"])).expect(1, &["no such process"]);
}

fn gates_decide_the_exit_status() {
    let load = |slo: &str| run(&mut command(&["-q", "-t", "50", "--slo", slo, "--server-cmd", &server(0)]));
    load("p90<1m,errors<0.1%,rate>1").expect(0, &["OK"]);
    load("p90<1us,errors<0.1%").expect(3, &["gate breached: p90<1us: it is "]);
    load("p99.9<1m").expect(4, &["gate not known: p99.9<1m: 250 samples, 10000 are needed"]);
    run(&mut command(&["--slo", "p99"])).expect(2, &["p99<10ms"]);
}

fn a_slower_server_is_called_slower() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (a, b) = (format!("a={}", server(0)), format!("slow={}", server(20_000)));
    let path = file.path().to_str().unwrap();
    let args = ["bench", "-q", "--server", &a, "--server", &b, "--rounds", "6", "-c", "2", "-t", "20", "-j", path];
    run(&mut command(&args)).expect(0, &["slow has fewer requests per second than a", "a again"]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rate = &json["comparisons"][0];
    assert_eq!((rate["metric"].as_str(), rate["verdict"].as_str()), (Some("rate"), Some("less")), "{rate}");
    assert!(rate["ratio"]["high"].as_f64().unwrap() < 1.0, "{rate}");
    assert_eq!(rate["p"].as_f64(), Some(2.0 / 64.0));
}

fn saved(dir: &tempfile::TempDir, name: &str, delay: u32) -> String {
    let path = dir.path().join(name).to_str().unwrap().to_owned();
    let args = ["-q", "-c", "2", "-t", "30", "-j", &path, "--server-cmd", &server(delay)];
    run(&mut command(&args)).expect(0, &["OK"]);
    path
}

fn merged_counts_are_sums() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, sum) = (saved(&dir, "a", 0), saved(&dir, "b", 0), dir.path().join("sum"));
    run(&mut command(&["merge", &a, &b, "-j", sum.to_str().unwrap()])).expect(0, &["OK: 120 answers"]);
    let read = |path: &str| client::json::read(&mut std::fs::File::open(path).unwrap()).unwrap();
    let (a, b, sum) = (read(&a), read(&b), read(sum.to_str().unwrap()));
    assert_eq!(sum.requests.sent, a.requests.sent + b.requests.sent);
    let mut both = a.latency.response.clone();
    both.add(&b.latency.response).unwrap();
    assert_eq!(sum.latency.response, both);
}

fn runs_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<String> = (0..8).map(|n| saved(&dir, &format!("{n}"), if n < 4 { 0 } else { 20_000 })).collect();
    let mut args = vec!["compare"];
    args.extend(files[..4].iter().map(String::as_str));
    args.push(":");
    args.extend(files[4..].iter().map(String::as_str));
    run(&mut command(&args)).expect(0, &["4 does -", "% requests per second against 0"]);
    run(&mut command(&["compare", &files[0], &files[4], "--strict"])).expect(4, &["says nothing about chance"]);
}

fn a_scan_has_a_row_per_value() {
    let cmd = server(0);
    let ran = run(&mut command(&["scan", "-q", "--children", "1,2,4", "-t", "20", "--server-cmd", &cmd]));
    let ran = ran.expect(0, &["children"]);
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    let args = ["scan", "-q", "-R", "100:200:50", "-d", "200ms", "-k", "0", "--server-cmd", &cmd];
    assert_eq!(run(&mut command(&args)).expect(0, &["rate"]).out.lines().count(), 4);
    run(&mut command(&["scan", "-c", "4"])).expect(2, &["scan needs"]);
    let args = ["find", "-q", "--slo", "errors<1%", "-R", "50:100", "-d", "200ms", "--server-cmd", &cmd];
    run(&mut command(&args)).expect(0, &["highest rate that keeps it: 100/s"]);
    let args = ["find", "-q", "--slo", "p50<1us", "-R", "100:200", "-d", "300ms", "--server-cmd", &cmd];
    run(&mut command(&args)).expect(3, &["BREACHED"]);
}

fn doctor_and_usage() {
    let ran = run(&mut command(&["doctor"]));
    assert!(ran.out.contains("ip_local_port_range") && matches!(ran.code, 0 | 1), "{ran:?}");
    for name in ["bench", "compare", "find", "scan", "merge", "doctor", "report"] {
        run(&mut command(&["--help"])).expect(0, &[name]);
        run(&mut command(&[name, "--help"])).expect(0, &["Usage: client"]);
    }
    run(&mut command(&["bench"])).expect(2, &["--server"]);
}
