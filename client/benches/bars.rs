//! The bars this client is built to: each measured figure beside its bound. Times are printed, not judged.
//!
//! The server is the rig of the tests, in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use support::rig::{self, Rig};

/// No run may last longer: ten million requests take two minutes or so.
const LONGEST: Duration = Duration::from_secs(900);
/// Pairs of runs for a ratio.
const PAIRS: usize = 9;

fn main() -> io::Result<()> {
    rig::be_the_rig_if_asked();
    let most = rig::raise_limit() - 64;
    let rig = Rig::start();
    let mut out = io::stdout();
    row(&mut out, "bar", "measured", "bound")?;
    if support::have("strace", "system calls") {
        row(&mut out, "system calls per request, kept, c=10", &calls(&rig, &["-k", "0"]), "<= 2.2")?;
        row(&mut out, "system calls per connection, c=10", &calls(&rig, &[]), "<= 6.3")?;
    }
    for clients in [100, 1000, most.min(10_000)] {
        let many = clients.to_string();
        let json = run(&rig, &["-c", &many, "-k", "0", "-d", "3s", "-b", "100"]);
        assert_eq!(json["connections"]["peak_open"], clients);
        let bytes = json["client_peak_memory_bytes"].as_f64().unwrap();
        let bound = format!("<= {:.2} MB", (8_000_000 + 256 * clients) as f64 / 1e6);
        row(&mut out, &format!("memory at {clients} connections"), &format!("{:.2} MB", bytes / 1e6), &bound)?;
    }
    flat_memory(&mut out, &rig)?;
    recording(&mut out, &rig)?;
    pacing(&mut out, &rig)?;
    speed(&mut out, "kept, c=10", &run(&rig, &["-c", "10", "-k", "0", "-d", "3s"]))?;
    speed(&mut out, "connect, c=10", &run(&rig, &["-c", "10", "-t", "1000"]))?;
    speed(&mut out, "connect, rst, c=10", &run(&rig, &["-c", "10", "-d", "3s", "--close", "rst"]))
}

/// Start and end of the program cancel out between a short and a long run.
fn calls(rig: &Rig, args: &[&str]) -> String {
    let with = |tries| support::syscalls(&[&["-q", "-p", &rig.port, "-c", "10", "-t", tries], args].concat())["total"];
    format!("{:.2}", (with("500") - with("100")) as f64 / 4000.0)
}

/// The peak of a long run beside that of a short one.
fn flat_memory(out: &mut impl Write, rig: &Rig) -> io::Result<()> {
    let peak = |tries: &str| {
        let json = run(rig, &["-c", "10", "-k", "0", "-t", tries, "-b", "1"]);
        json["client_peak_memory_bytes"].as_f64().unwrap() / 1e6
    };
    let (short, long) = (peak("10k"), peak("1m"));
    let bound = format!("<= {:.2} MB", short + 0.25);
    row(out, "memory after 10 million requests", &format!("{long:.2} MB"), &bound)
}

/// CPU time per request with latencies recorded, over that without: the median of pairs.
fn recording(out: &mut impl Write, rig: &Rig) -> io::Result<()> {
    let load = ["-c", "10", "-k", "0", "-d", "700ms", "-w", "0", "-b", "100"];
    let without = [&load[..], &["--no-latency"]].concat();
    let mut ratios: Vec<f64> = (0..PAIRS).map(|_| cpu_us(&run(rig, &load)) / cpu_us(&run(rig, &without))).collect();
    ratios.sort_by(f64::total_cmp);
    row(out, "cost of recording, CPU with over without", &format!("{:.3}", ratios[PAIRS / 2]), "<= 1.03")
}

/// What pacing adds to the time of a request on an idle server.
fn pacing(out: &mut impl Write, rig: &Rig) -> io::Result<()> {
    let json = run(rig, &["-R", "2000", "-c", "10", "-k", "0", "-d", "3s"]);
    let p50 = |name: &str| json["latency"][name]["p50"].as_f64().unwrap() / 1e3;
    let more = p50("response_ns") - p50("service_ns");
    row(out, "pacing at 2000/s, response p50 - service p50", &format!("{more:.1} us"), "<= 60 us")?;
    let lag = json["honesty"]["lag_p99_ns"].as_f64().unwrap() / 1e3;
    row(out, "pacing at 2000/s, schedule lag p99", &format!("{lag:.1} us"), "-")
}

fn run(rig: &Rig, args: &[&str]) -> Value {
    let mut command = support::command(&[&["-q", "-j", "-", "-p", &rig.port], args].concat());
    let ran = support::run_within(LONGEST, &mut command);
    serde_json::from_str(&ran.expect(0, &[]).out).unwrap()
}

fn speed(out: &mut impl Write, what: &str, json: &Value) -> io::Result<()> {
    let rate = json["requests_per_second"].as_f64().unwrap();
    let each = cpu_us(json);
    row(out, &format!("requests/s, {what}"), &format!("{rate:.0}"), "-")?;
    row(out, &format!("client CPU per request, {what}"), &format!("{each:.1} us"), "-")
}

fn cpu_us(json: &Value) -> f64 {
    let cpu = json["client_cpu"]["user_ns"].as_f64().unwrap() + json["client_cpu"]["system_ns"].as_f64().unwrap();
    cpu / 1e3 / json["requests"]["sent"].as_f64().unwrap()
}

fn row(out: &mut impl Write, what: &str, measured: &str, bound: &str) -> io::Result<()> {
    writeln!(out, "{what:<46}{measured:>14}{bound:>14}")
}
