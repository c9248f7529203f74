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
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::time::{ClockId, clock_gettime};
use support::{command, run};

/// In the environment of the server: how many microseconds it waits before each answer; `burn:N` uses so much CPU time
/// instead, and `start:N` does so in its first 500 ms only.
const ROLE: &str = "CLIENT_TEST_SERVER";

fn main() {
    if let Some(habit) = std::env::var_os(ROLE) {
        serve(Box::leak(habit.into_string().unwrap().into_boxed_str()));
    }
    let tests: [(&str, fn()); 13] = [
        ("the_server_lives_as_long_as_its_load", the_server_lives_as_long_as_its_load),
        ("a_server_of_forked_clients_is_watched_alone", a_server_of_forked_clients_is_watched_alone),
        ("a_server_that_ends_at_once_is_one_clear_line", a_server_that_ends_at_once_is_one_clear_line),
        ("gates_decide_the_exit_status", gates_decide_the_exit_status),
        ("a_slower_server_is_called_slower", a_slower_server_is_called_slower),
        ("a_server_is_the_same_as_itself", a_server_is_the_same_as_itself),
        ("a_dearer_server_is_called_dearer", a_dearer_server_is_called_dearer),
        ("cpu_time_is_of_the_same_requests_as_the_latencies", cpu_time_is_of_the_same_requests_as_the_latencies),
        ("files_of_many_runs_are_written_or_refused", files_of_many_runs_are_written_or_refused),
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

fn serve(habit: &'static str) -> ! {
    let begin = Instant::now();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    loop {
        let (conn, _) = listener.accept().unwrap();
        std::thread::spawn(move || {
            let mut conn = BufReader::new(conn);
            while let Some(n) = support::request(&mut conn) {
                match habit.split_once(':') {
                    Some(("burn", us)) => burn(us),
                    Some((_, us)) if begin.elapsed() < Duration::from_millis(500) => burn(us),
                    _ if habit.contains(':') || habit == "0" => {}
                    _ => std::thread::sleep(Duration::from_micros(habit.parse().unwrap())),
                }
                if conn.get_mut().write_all(&support::pattern(n)).is_err() {
                    return;
                }
            }
        });
    }
}

/// Uses so many microseconds of CPU time, however many others want the CPU too.
fn burn(us: &str) {
    // Not getrusage, which knows of a running thread what the last tick has found.
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let end = used() + Duration::from_micros(us.parse().unwrap());
    while used() < end {}
}

fn server(delay: u32) -> String {
    habitual(&delay.to_string())
}

fn habitual(habit: &str) -> String {
    format!("env {ROLE}={habit} {}", std::env::current_exe().unwrap().display())
}

fn a_server_of_forked_clients_is_watched_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let load = ["-q", "-c", "4", "-t", "50", "-j", path, "--engine", "fork"];
    let ran = run(&mut command(&[&load[..], &["--server-cmd", &server(0)]].concat()));
    ran.expect(0, &["OK: 200 answers", "a process each", "server"]);
    let report = client::json::read(&mut std::fs::File::open(path).unwrap()).unwrap();
    assert_eq!((report.plan.clients, report.requests.planned, report.honesty.threads), (4, Some(200), 4));
    assert_ne!(report.plan.port, 2000);
    // The clients are no part of the server, which is a shell and this program.
    assert!(report.server.unwrap().peak_processes <= 2);
    let ran = run(&mut command(&[&load[..], &["--server-cmd", "false"]].concat()));
    ran.expect(1, &["false: ended with status 1 before it listened"]);
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

fn bench(more: &[&str]) -> (support::Ran, serde_json::Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let always =
        ["bench", "-q", "--rounds", "8", "-c", "2", "-t", "200", "-k", "0", "-j", file.path().to_str().unwrap()];
    let ran = run(&mut command(&[&always[..], more].concat())).expect(0, &[]);
    (ran, serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap())
}

/// What the machine does meanwhile may leave a figure undecided, but it makes no difference out of nothing.
fn a_server_is_the_same_as_itself() {
    let (a, b) = (format!("a={}", habitual("burn:100")), format!("b={}", habitual("burn:100")));
    // A machine that is busy with something else may leave it undecided, and says so. It must not say more than that.
    let called_same = (0..4).any(|_| {
        let (ran, json) = bench(&["--server", &a, "--server", &b]);
        let verdicts: Vec<&str> =
            json["comparisons"].as_array().unwrap().iter().map(|line| line["verdict"].as_str().unwrap()).collect();
        assert!(verdicts.iter().all(|verdict| ["same", "undecided"].contains(verdict)), "{}", ran.out);
        verdicts.contains(&"same") && ran.out.contains(" the same within ")
    });
    assert!(called_same, "four times undecided");
}

fn a_dearer_server_is_called_dearer() {
    let (a, b) = (format!("a={}", habitual("burn:200")), format!("dear={}", habitual("burn:1000")));
    let (ran, json) = bench(&["--server", &a, "--server", &b, "--baseline", "a"]);
    let ran =
        ran.expect(0, &["dear has more server CPU per request than a", "process control CPU time, us per request"]);
    let line = json["comparisons"].as_array().unwrap().iter().find(|line| line["metric"] == "server CPU").unwrap();
    let (ratio, band) = (line["ratio"]["low"].as_f64().unwrap(), line["band"].as_f64().unwrap());
    assert!(line["verdict"] == "more" && ratio > 1.0 + band && ratio > 2.0, "{line}");
    // Figure 30.1: the server CPU time beyond that of the baseline, which has none.
    let table = ran.out.split("process control CPU time").nth(1).unwrap();
    let extra = |name: &str| -> f64 {
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        row.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(extra("a"), 0.0);
    assert!(extra("dear") > 500.0, "{table}");
}

fn cpu_time_is_of_the_same_requests_as_the_latencies() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let start = habitual("start:2000");
    let load = ["-q", "-c", "2", "-k", "0", "-d", "1500ms", "-j", path, "--server-cmd", &start, "-w"];
    let report = |warmup| {
        run(&mut command(&[&load[..], &[warmup]].concat())).expect(0, &["OK"]);
        client::json::read(&mut std::fs::File::open(path).unwrap()).unwrap()
    };
    let whole = report("0");
    assert!(whole.steady.is_none() && whole.server.as_ref().unwrap().steady_cpu.is_none());
    let report = report("700ms");
    let steady = report.steady.unwrap();
    assert!(steady.from_ns >= 700_000_000 && steady.sent < report.requests.sent, "{steady:?}");
    // Looks at the run are 100 ms apart, so that many requests more than those of the latencies at most are left out.
    assert!(steady.done <= report.latency.response.len() && steady.done > report.latency.response.len() / 2);
    assert!(steady.cpu.total() < report.cpu.total(), "{steady:?}");
    // In its first 500 ms a request cost the server most, however little of the CPU it got then.
    let server = report.server.as_ref().unwrap();
    let all_us = server.cpu.total().as_secs_f64() * 1e6 / report.requests.done as f64;
    let steady_us = report.server_us_per_request().unwrap();
    assert!(steady_us > 0.0 && steady_us < all_us, "{steady_us} of {all_us}");
    assert!(server.cpu.total() > server.steady_cpu.unwrap().total(), "{server:?}");
}

fn files_of_many_runs_are_written_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (a, b) = (format!("a={}", server(0)), format!("b={}", server(0)));
    let (html, csv, svg, hgrm) = (path("x.html"), path("x.csv"), path("x.svg"), path("x.hgrm"));
    let files = ["--html", &html, "--csv", &csv, "--svg", &svg, "--hgrm", &hgrm];
    let load = ["-q", "-c", "2", "-t", "60"];

    let bench = ["bench", "--rounds", "2", "--server", &a, "--server", &b, "--baseline", "a"];
    run(&mut command(&[&bench[..], &load, &files].concat())).expect(0, &["a again"]);
    // Three arms, two rounds, and the head.
    assert_eq!(read("x.csv").lines().count(), 7, "{}", read("x.csv"));
    let page = read("x.html");
    roxmltree::Document::parse_with_options(&page, xml()).unwrap();
    for part in ["Medians of 2 rounds", "Comparisons", "b / a", "minus that of a", "<h2>b</h2>"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        read("x.svg").contains("<svg")
            && read("x.a.hgrm").contains("Percentile")
            && dir.path().join("x.b.hgrm").exists()
    );
    let ran = run(&mut command(&[&bench[..], &load, &["--csv", "-"]].concat())).expect(0, &[]);
    assert!(ran.out.starts_with("server,round,") && ran.out.lines().count() == 7, "{}", ran.out);

    let cmd = server(0);
    let scan = ["scan", "--children", "1,2", "--server-cmd", &cmd];
    run(&mut command(&[&scan[..], &load[..1], &load[3..], &files].concat())).expect(0, &["children"]);
    assert!(read("x.csv").contains("children 1,") && read("x.csv").contains("children 2,"), "{}", read("x.csv"));
    roxmltree::Document::parse_with_options(&read("x.html"), xml()).unwrap();
    assert!(read("x.html").contains("<h2>children 2</h2>"));
    let find = ["find", "-q", "--slo", "errors<1%", "-R", "50:100", "-d", "200ms", "--server-cmd", &cmd];
    run(&mut command(&[&find[..], &files[..4]].concat())).expect(0, &["highest rate"]);
    assert!(read("x.csv").contains("100/s, probe "), "{}", read("x.csv"));

    for (args, option) in
        [(&bench[..], "--series"), (&scan[..], "--series"), (&find[..], "--hgrm"), (&find[..], "--series")]
    {
        let ran = run(&mut command(&[args, &[option, "y"]].concat()));
        let ran = ran.expect(2, &[&format!("{option} does not go with client {}", args[0])]);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
    for args in [&bench[..], &scan[..], &find[..]] {
        let ran = run(&mut command(&[args, &["--explain"]].concat()));
        ran.expect(2, &[&format!("--explain does not go with client {}", args[0])]);
    }
    let ran = run(&mut command(&[&bench[..], &["--html", "/no/such/x"]].concat()));
    ran.expect(1, &["open /no/such/x: No such file"]);
}

fn xml<'a>() -> roxmltree::ParsingOptions<'a> {
    roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() }
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
    let ran = run(&mut command(&["merge", &a, &b, "-j", sum.to_str().unwrap()])).expect(0, &["OK: 120 answers"]);
    let read = |path: &str| client::json::read(&mut std::fs::File::open(path).unwrap()).unwrap();
    let (a, b, sum) = (read(&a), read(&b), read(sum.to_str().unwrap()));
    assert_eq!(sum.requests.sent, a.requests.sent + b.requests.sent);
    let mut both = a.latency.response.clone();
    both.add(&b.latency.response).unwrap();
    assert_eq!(sum.latency.response, both);
    // One after the other, so the course has both and the time between them.
    let done = |report: &client::Report| report.series.iter().map(|slice| slice.done).sum::<u64>();
    assert_eq!((done(&sum), done(&a) + done(&b)), (120, 120));
    let started = |report: &client::Report| report.machine.as_ref().unwrap().started_ns;
    assert_eq!(started(&sum), started(&a));
    let between = u128::from(started(&b) - started(&a));
    assert_eq!(sum.elapsed.as_nanos(), between + b.elapsed.as_nanos());
    assert!(ran.err.contains("the runs were not at the same time"), "{}", ran.err);
    let half = |at: u64| sum.series.iter().filter(|slice| slice.start_ns < at).map(|slice| slice.done).sum::<u64>();
    assert!((60..120).contains(&half(between as u64)), "{} before the second began", half(between as u64));

    // At the same time: the merged course is no longer than theirs and carries both in each part.
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64() + 1.0;
    let (cmd, start) = (server(0), format!("{at:.3}"));
    let mut runs = Vec::new();
    for name in ["c", "d"] {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        let args = [
            "-q",
            "-c",
            "2",
            "-k",
            "0",
            "-d",
            "1s",
            "-w",
            "0",
            "--start-at",
            &start,
            "-j",
            &path,
            "--server-cmd",
            &cmd,
        ];
        let child = command(&args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
        runs.push((path, child.unwrap()));
    }
    let paths: Vec<String> =
        runs.into_iter().map(|(path, child)| (path, support::finish(child).expect(0, &["OK"])).0).collect();
    let merge = ["merge", &paths[0], &paths[1], "-j", dir.path().join("sum").to_str().unwrap()].map(str::to_owned);
    let ran = run(&mut command(&merge.iter().map(String::as_str).collect::<Vec<_>>())).expect(0, &["steadiness", "OK"]);
    assert!(!ran.err.contains("same time"), "{}", ran.err);
    let (c, d, sum) = (read(&paths[0]), read(&paths[1]), read(dir.path().join("sum").to_str().unwrap()));
    assert_eq!(done(&sum), done(&c) + done(&d));
    assert!(sum.elapsed < c.elapsed + d.elapsed && sum.honesty.rate.is_some());
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
