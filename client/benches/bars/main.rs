//! The bars this client is built to: each measured figure beside its bound.
//!
//! Figures that do not depend on what else the machine does are printed as they are. CPU times are compared in pairs:
//! the same bytes, the same server, rounds in shuffled order, the median of the ratios with its 95 % interval. A tool
//! that is not installed is named with its package, and its rows are left out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod crowd;
mod face;
mod pair;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;
use client::report::Interval;
use serde_json::Value;

use pair::{CLIENTS, Pair, Words};
use support::rig::{self, Rig};

/// No run may last longer: ten million requests take two minutes or so.
const LONGEST: Duration = Duration::from_secs(900);
/// Body of the HTTP replies.
const BODY: usize = 1000;
/// The bar of connections open at once.
const CROWD: u64 = 50_000;
/// Connections of each client in a run of the pairs: all together take some 0.3 s.
const TRIES: u32 = 1000;
/// Load generators of Debian that speak HTTP: the package, the command, the bound.
const PEERS: [(&str, &str, &str, f64); 2] = [
    ("wrk", "wrk", "wrk -t 1 -c {clients} -d {seconds} http://127.0.0.1:{port}/", 0.90),
    ("h2load", "nghttp2-client", "h2load --h1 -t 1 -c {clients} -D {seconds} http://127.0.0.1:{port}/", 1.0),
];

/// Prints what the load client costs, beside its bounds
#[derive(Parser)]
#[command(name = "cargo bench -p client --")]
struct Args {
    /// Rounds of the pairs
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=999))]
    rounds: u32,
    /// Seconds of a run of the pairs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Ten million requests for the memory, not one
    #[arg(long)]
    full: bool,
    /// Only these: calls, memory, pacing, pairs, crowd
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Another load generator for the pairs; {port}, {clients} and {seconds} are filled in
    #[arg(long, value_name = "LABEL=COMMAND")]
    peer: Vec<String>,
    /// What the server speaks with those: unp, fixed:Q:R, echo or http:N
    #[arg(long, default_value = "http:1000")]
    face: String,
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<()> {
    rig::be_the_rig_if_asked();
    let args = Args::parse();
    let limit = rig::raise_limit();
    face::build();
    let mut out = io::stdout();
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|word| word == name);
    row(&mut out, ["bar", "measured", "95 % interval", "bound", ""])?;
    if wanted("calls") && support::have("strace", "system calls (package strace)") {
        calls(&mut out)?;
    }
    if wanted("memory") {
        memory(&mut out, limit - 64, args.full)?;
    }
    if wanted("pacing") {
        pacing(&mut out)?;
    }
    if wanted("pairs") {
        pairs(&mut out, &args)?;
    }
    if wanted("crowd") {
        many(&mut out, limit)?;
    }
    Ok(())
}

/// Whether this client has the engine.
fn has_engine(name: &str) -> bool {
    let help = Command::new(env!("CARGO_BIN_EXE_client")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    help.contains("--engine") && help.contains(name) && {
        let mut try_it = Command::new(env!("CARGO_BIN_EXE_client"));
        let server = face::Face::start("unp");
        face::unpin();
        let args = ["-q", "-t", "1", "-c", "1", "-p", &server.port, "--engine", name];
        try_it.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

fn calls(out: &mut impl Write) -> io::Result<()> {
    let rig = Rig::start();
    let mut bar = |what: &str, args: &[&str], bound: f64| {
        let calls = per_request(&rig, args);
        row(out, [what, &format!("{calls:.2}"), "", &format!("<= {bound}"), met(calls, bound)])
    };
    bar("system calls per request, kept, c=10", &["-k", "0"], 2.2)?;
    bar("system calls per connection, c=10", &[], 6.3)?;
    if has_engine("uring") {
        bar("system calls per request, kept, c=10, uring", &["-k", "0", "--engine", "uring"], 0.3)?;
    }
    for (tool, package, command, _) in PEERS {
        if is_there(tool, package) {
            let calls = pair::syscalls(&pair::words(&fill(command, 1)), &format!("http:{BODY}"));
            row(out, [&format!("  the same of {tool}"), &format!("{calls:.2}"), "", "", ""])?;
        }
    }
    Ok(())
}

/// Start and end of the program cancel out between a short and a long run.
fn per_request(rig: &Rig, args: &[&str]) -> f64 {
    let with = |tries| support::syscalls(&[&["-q", "-p", &rig.port, "-c", "10", "-t", tries], args].concat())["total"];
    (with("500") - with("100")) as f64 / 4000.0
}

fn memory(out: &mut impl Write, most: u64, full: bool) -> io::Result<()> {
    let rig = Rig::start();
    let mut bar = |what: &str, bytes: f64, bound: f64| {
        row(out, [what, &format!("{:.2} MB", bytes / 1e6), "", &format!("<= {:.2} MB", bound / 1e6), met(bytes, bound)])
    };
    for clients in [100, 1000, most.min(10_000)] {
        let many = clients.to_string();
        let json = run(&rig, &["-c", &many, "-k", "0", "-d", "3s", "-b", "100"]);
        assert_eq!(json["connections"]["peak_open"], clients);
        let bytes = json["client_peak_memory_bytes"].as_f64().unwrap();
        bar(&format!("memory at {clients} connections"), bytes, (8_000_000 + 256 * clients) as f64)?;
    }
    let peak = |tries: &str| {
        let json = run(&rig, &["-c", "10", "-k", "0", "-t", tries, "-b", "1"]);
        json["client_peak_memory_bytes"].as_f64().unwrap()
    };
    let (words, tries) = if full { ("10 million", "1m") } else { ("1 million", "100k") };
    let (short, long) = (peak("10k"), peak(tries));
    // The longest of many is longer, and each of the histograms grows by 8 KB for every doubling.
    bar(&format!("memory after {words} requests (0.1: {:.2} MB)", short / 1e6), long, short + 500_000.0)
}

/// What pacing adds to the time of a request on an idle server.
fn pacing(out: &mut impl Write) -> io::Result<()> {
    let rig = Rig::start();
    let json = run(&rig, &["-R", "2000", "-c", "10", "-k", "0", "-d", "3s"]);
    let p50 = |name: &str| json["latency"][name]["p50"].as_f64().unwrap() / 1e3;
    let more = p50("response_ns") - p50("service_ns");
    row(
        out,
        ["pacing at 2000/s, response p50 - service p50", &format!("{more:.1} us"), "", "<= 60 us", met(more, 60.0)],
    )?;
    let lag = json["honesty"]["lag_p99_ns"].as_f64().unwrap() / 1e3;
    row(out, ["pacing at 2000/s, schedule lag p99", &format!("{lag:.1} us"), "", "", ""])
}

fn pairs(out: &mut impl Write, args: &Args) -> io::Result<()> {
    let mut pairs = Vec::new();
    for (tool, package, command, bound) in PEERS {
        if is_there(tool, package) {
            pairs.extend(http(tool, &fill(command, args.seconds), Some(bound), args, BODY));
        }
    }
    for peer in &args.peer {
        let (label, command) = peer.split_once('=').expect("--peer LABEL=COMMAND");
        pairs.push(hooked(label, &fill(command, args.seconds), args));
    }
    let length = format!("{}s", args.seconds);
    let kept = ["-k", "0", "-w", "0", "-b", "100", "-d", &length];
    let ours = || pair::client(&kept);
    let more = |words: &[&str]| pair::client(&[&kept[..], words].concat());
    let bare = format!("{} 127.0.0.1 {{port}} {CLIENTS} {TRIES} 3000", face::program("bare-client").display());
    let pair =
        |what: &str, bound, own, other| Pair { what: what.into(), bound, face: "unp".into(), own, other, fresh: false };
    let tries = TRIES.to_string();
    pairs.push(Pair {
        fresh: true,
        ..pair("a connection over the bare loop's", Some(1.10), pair::client(&["-t", &tries]), pair::words(&bare))
    });
    pairs.push(pair("with latencies recorded over without", Some(1.03), ours(), more(&["--no-latency"])));
    for engine in ["uring", "threads", "fork"] {
        if has_engine(engine) {
            pairs.push(pair(&format!("engine {engine} over epoll"), None, more(&["--engine", engine]), ours()));
        }
    }
    pairs.push(pair("this client over itself (A/A: the noise)", None, ours(), ours()));
    let mut note = |round: usize| {
        _ = write!(
            io::stderr(),
            "\rround {round} of {}{}",
            args.rounds,
            if round as u32 == args.rounds { "\n" } else { "" }
        );
    };
    let ratios = pair::play(&pairs, args.rounds as usize, &mut note);
    writeln!(
        out,
        "\nCPU time of this client over that of another: the same bytes, c={CLIENTS}, {} rounds",
        args.rounds
    )?;
    for (pair, ratio) in pairs.iter().zip(ratios) {
        let Interval { value, low, high } = ratio.ratio;
        let bound = pair.bound.map_or(String::new(), |bound| format!("<= {bound:.2}"));
        let judged = pair.bound.map_or("", |bound| judge(value, high, bound));
        let interval = format!("{low:.3} to {high:.3}");
        row(out, [&pair.what, &format!("{value:.3}"), &interval, &bound, judged])?;
        writeln!(out, "  {:.2} us over {:.2} us", ratio.own_us, ratio.other_us)?;
    }
    Ok(())
}

/// A pair with an HTTP client: the request is the one that it sends itself.
fn http(label: &str, command: &str, bound: Option<f64>, args: &Args, body: usize) -> Option<Pair> {
    let other = pair::words(command);
    let Some(request) = pair::request_of(&other) else {
        _ = writeln!(io::stderr(), "LEFT OUT: {label} sends no HTTP request: {command}");
        return None;
    };
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n").len() + body;
    let (length, reply) = (format!("{}s", args.seconds), reply.to_string());
    let own = pair::client(&["-k", "0", "-w", "0", "-d", &length, "--request", &request, "--reply-bytes", &reply]);
    let what = format!("a request over {label}'s");
    Some(Pair { what, bound, face: format!("http:{body}"), own, other, fresh: false })
}

/// A pair with the command of `--peer`.
fn hooked(label: &str, command: &str, args: &Args) -> Pair {
    let length = format!("{}s", args.seconds);
    let own = |more: &[&str]| pair::client(&[&["-k", "0", "-w", "0", "-d", &length], more].concat());
    let parts: Vec<&str> = args.face.split(':').collect();
    let own: Words = match parts.as_slice() {
        ["unp"] => own(&["-b", "1000"]),
        ["echo"] => own(&["--echo", "-b", "100"]),
        ["fixed", ask, reply] => own(&["--request", &"x".repeat(ask.parse().unwrap()), "--reply-bytes", reply]),
        ["http", body] => {
            let pair = http(label, command, None, args, body.parse().unwrap());
            return pair.unwrap_or_else(|| panic!("{label} sends no HTTP request"));
        }
        _ => panic!("--face unp, fixed:Q:R, echo or http:N"),
    };
    let what = format!("a request over {label}'s");
    Pair { what, bound: None, face: args.face.clone(), own, other: pair::words(command), fresh: false }
}

fn many(out: &mut impl Write, limit: u64) -> io::Result<()> {
    let crowd = crowd::hold(CROWD, limit);
    let what = format!("connections open at once, {} processes", crowd.processes);
    let judged = if crowd.listed.min(crowd.merged) >= CROWD && crowd.failed == 0 { "met" } else { "NOT MET" };
    row(out, [&what, &crowd.listed.to_string(), "", &format!(">= {CROWD}"), judged])?;
    let (merged, failed, memory) = (crowd.merged, crowd.failed, crowd.peak_memory / 1e6);
    writeln!(
        out,
        "  merged report: {merged} open at once at most, {failed} failed; {memory:.1} MB for the largest client"
    )?;
    if crowd.failed > 0 {
        writeln!(out, "  most of them: {}", crowd.failure)?;
    }
    writeln!(out, "  a process may have {limit} descriptors here")
}

fn run(rig: &Rig, args: &[&str]) -> Value {
    let mut command = support::command(&[&["-q", "-j", "-", "-p", &rig.port], args].concat());
    let ran = support::run_within(LONGEST, &mut command);
    serde_json::from_str(&ran.expect(0, &[]).out).unwrap()
}

/// Whether the tool is there; if not, names its package.
fn is_there(tool: &str, package: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        _ = writeln!(io::stderr(), "LEFT OUT: {tool} is not installed: apt-get install {package}");
    }
    found
}

fn fill(command: &str, seconds: u32) -> String {
    command.replace("{clients}", &CLIENTS.to_string()).replace("{seconds}", &seconds.to_string())
}

fn met(value: f64, bound: f64) -> &'static str {
    if value <= bound { "met" } else { "NOT MET" }
}

/// A ratio is met where its whole interval is, and where only its median is that is said.
fn judge(value: f64, high: f64, bound: f64) -> &'static str {
    match value <= bound {
        true if high <= bound => "met",
        true => "met by the median",
        false => "NOT MET",
    }
}

fn row(out: &mut impl Write, [what, measured, interval, bound, judged]: [&str; 5]) -> io::Result<()> {
    let line = format!("{what:<52}{measured:>10}{interval:>18}{bound:>13}  {judged}");
    writeln!(out, "{}", line.trim_end())
}
