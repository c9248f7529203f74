//! Ten thousand connections held open at once by one client, within its memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::rig::{self, Rig};

const WANTED: u64 = 10_000;
const LEAST: u64 = 1000;
/// Lines of progress, one a second, within which all have to be open.
const LINES: usize = 60;
/// 8 MB, and 256 bytes for each connection.
const BYTES: u64 = 8_000_000;
const BYTES_EACH: u64 = 256;

fn main() {
    rig::be_the_rig_if_asked();
    let trials = vec![Trial::test("ten_thousand_connections", ten_thousand_connections)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn ten_thousand_connections() -> Result<(), Failed> {
    let clients = WANTED.min(rig::raise_limit() - 64);
    if clients < LEAST {
        return Err(format!("the hard limit of descriptors allows only {clients} connections").into());
    }
    let rig = Rig::start();
    let many = clients.to_string();
    let args = ["--plain", "-p", &rig.port, "-c", &many, "-k", "0", "-d", "1h", "-b", "100", "-j", "-"];
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
