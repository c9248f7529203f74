//! The bars this client is built to: each measured figure beside its bound. Times are printed, not judged.
//!
//! The server is the rig of the tests, in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write};

use serde_json::Value;
use support::rig::{self, Rig};

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
    speed(&mut out, "kept, c=10", &run(&rig, &["-c", "10", "-k", "0", "-d", "3s"]))?;
    speed(&mut out, "connect, c=10", &run(&rig, &["-c", "10", "-t", "1000"]))?;
    speed(&mut out, "connect, rst, c=10", &run(&rig, &["-c", "10", "-d", "3s", "--close", "rst"]))
}

/// Start and end of the program cancel out between a short and a long run.
fn calls(rig: &Rig, args: &[&str]) -> String {
    let with = |tries| support::syscalls(&[&["-q", "-p", &rig.port, "-c", "10", "-t", tries], args].concat())["total"];
    format!("{:.2}", (with("500") - with("100")) as f64 / 4000.0)
}

fn run(rig: &Rig, args: &[&str]) -> Value {
    let ran = support::run(&mut support::command(&[&["-q", "-j", "-", "-p", &rig.port], args].concat()));
    serde_json::from_str(&ran.expect(0, &[]).out).unwrap()
}

fn speed(out: &mut impl Write, what: &str, json: &Value) -> io::Result<()> {
    let rate = json["requests_per_second"].as_f64().unwrap();
    let cpu = json["client_cpu"]["user_ns"].as_f64().unwrap() + json["client_cpu"]["system_ns"].as_f64().unwrap();
    let each = cpu / 1e3 / json["requests"]["sent"].as_f64().unwrap();
    row(out, &format!("requests/s, {what}"), &format!("{rate:.0}"), "-")?;
    row(out, &format!("client CPU per request, {what}"), &format!("{each:.1} us"), "-")
}

fn row(out: &mut impl Write, what: &str, measured: &str, bound: &str) -> io::Result<()> {
    writeln!(out, "{what:<44}{measured:>14}{bound:>14}")
}
