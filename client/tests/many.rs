//! Ten thousand connections and more held open at once by one client, within its memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::rig::{self, Rig};

const WANTED: u64 = 10_000;
const MANY: u64 = 50_000;
const LEAST: u64 = 1000;
/// Lines of progress, one a second, within which all have to be open.
const LINES: usize = 60;
/// 8 MB, and 256 bytes for each connection; a build with debug assertions has more code to hold. `cargo bench -p client`
/// holds the release build against the same.
const BYTES: u64 = if cfg!(debug_assertions) { 9_000_000 } else { 8_000_000 };
const BYTES_EACH: u64 = 256;

fn main() {
    rig::be_the_rig_if_asked();
    let trials = vec![
        Trial::test("ten_thousand_connections", ten_thousand_connections),
        Trial::test("fifty_thousand_connections", fifty_thousand_connections),
        Trial::test("more_connections_than_one_address_has_ports", more_connections_than_one_address_has_ports),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn ten_thousand_connections() -> Result<(), Failed> {
    let clients = WANTED.min(rig::raise_limit() - 64);
    if clients < LEAST {
        return Err(format!("the hard limit of descriptors allows only {clients} connections").into());
    }
    hold_open(clients)
}

/// More than the ports of one address, where the limit of descriptors permits: the client then takes several of 127/8 by
/// itself. Where it does not, the client says what is missing, and as many as it permits are held.
fn fifty_thousand_connections() -> Result<(), Failed> {
    let hard = rig::raise_limit();
    if hard < MANY + 64 {
        let many = MANY.to_string();
        let ran = support::run(&mut support::command(&["-q", "-c", &many, "-k", "0", "-d", "1s"]));
        ran.expect(1, &["50000 clients need ", &format!("the hard limit is {hard}")]);
    }
    hold_open(MANY.min(hard.saturating_sub(64)))
}

/// The same in a network namespace with 200 ports for each address.
fn more_connections_than_one_address_has_ports() -> Result<(), Failed> {
    let test = "more_connections_than_one_address_has_ports";
    let namespaces = Command::new("unshare").args(["-n", "ip", "link", "show", "lo"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        let must = std::env::var_os("REQUIRE_ALL_TESTS").is_some_and(|value| value == "1");
        assert!(!must, "{test}: no network namespace");
        eprintln!("SKIPPED: {test}: needs unshare (util-linux), ip (iproute2) and the privilege to make a namespace");
        return Ok(());
    }
    let few = "ip link set lo up && echo '40000 40199' >/proc/sys/net/ipv4/ip_local_port_range && exec \"$0\"";
    let rig =
        Rig::start_by(Command::new("unshare").args(["-n", "sh", "-c", few]).arg(std::env::current_exe().unwrap()));
    let client = |args: &[&str]| {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/proc/{}/ns/net", rig.pid())).arg(env!("CARGO_BIN_EXE_client"));
        // No TIME_WAIT: it would take the ports of the next run.
        let always = ["-q", "-p", &rig.port, "-b", "100", "-j", "-", "--close", "rst"];
        support::run(inside.args(always).args(args))
    };
    for args in [&["-c", "900", "-k", "0", "-d", "1s"][..], &["-c", "900", "-k", "0", "-d", "1s", "-T", "2"]] {
        let ran = client(args).expect(0, &[]);
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(json["connections"]["peak_open"], 900);
        assert_eq!((&json["connections"]["failed"], &json["requests"]["failed"]), (&0.into(), &0.into()));
    }
    // One address alone does not have the ports, and the report says so.
    let ran = client(&["-c", "900", "-k", "0", "-d", "1s", "-S", "127.0.0.1"]).expect(1, &[]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["failures"][0]["kind"], "no_local_port", "{json:#}");
    Ok(())
}

/// So many connections are open at once, within the client's memory.
fn hold_open(clients: u64) -> Result<(), Failed> {
    let rig = Rig::start();
    let many = clients.to_string();
    // Patient: a busy machine takes its time to serve so many at once.
    let patience = ["--timeout", "1m", "--connect-timeout", "1m"];
    let args = ["--plain", "-p", &rig.port, "-c", &many, "-k", "0", "-d", "1h", "-b", "100", "-j", "-"];
    let args = [&args[..], &patience].concat();
    let mut child = support::command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let all_open = (0..LINES).any(|_| {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.ends_with(&format!(" {clients} open\n"))
    });
    let memory = peak_memory(&status);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let ran = support::finish(child).expect(130, &[]);
    assert!(all_open, "{}", ran.out);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let count = |path: &str| json.pointer(path).and_then(serde_json::Value::as_u64);
    assert_eq!(count("/connections/peak_open"), Some(clients));
    assert_eq!((count("/connections/connected"), count("/requests/failed")), (Some(clients), Some(0)));
    let bar = BYTES + BYTES_EACH * clients;
    assert!(memory > 0 && memory <= bar, "{memory} bytes for {clients} connections, at most {bar} allowed");
    Ok(())
}

fn peak_memory(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
