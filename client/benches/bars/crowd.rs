//! Very many connections open at once. Descriptors are limited per process, so where one process may not have enough of
//! them, several clients share the load, each with a server of its own, and `client merge` makes one report of theirs.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::face::{self, Face};

/// Descriptors of a process beside those of its connections.
const RESERVE: u64 = 64;
/// All have to be open by then.
const OPEN: Duration = Duration::from_secs(90);
/// The load lasts so long at most: it is ended when all are open.
const LENGTH: &str = "100s";

/// What came of it.
pub struct Crowd {
    pub processes: u64,
    /// Most established connections that the kernel listed at once.
    pub listed: u64,
    /// Most that the clients had open, together, by the merged report.
    pub merged: u64,
    pub failed: u64,
    /// What most of those were.
    pub failure: String,
    pub peak_memory: f64,
}

/// Opens so many connections from as many processes as it takes.
pub fn hold(wanted: u64, limit: u64) -> Crowd {
    let processes = wanted.div_ceil(limit - RESERVE);
    let servers: Vec<Face> = (0..processes).map(|_| Face::start("unp")).collect();
    face::unpin();
    let dir = tempfile::tempdir().unwrap();
    let report = |n: usize| dir.path().join(format!("{n}.json"));
    let share = |n: u64| (wanted * (n + 1) / processes - wanted * n / processes).to_string();
    let start = |(n, server): (usize, &Face)| -> Child {
        let mut client = Command::new(env!("CARGO_BIN_EXE_client"));
        client.args([
            "-q",
            "-k",
            "0",
            "-b",
            "100",
            "--think",
            "1s-3s",
            "--timeout",
            "1m",
            "--connect-timeout",
            "1m",
            "-d",
            LENGTH,
            "-p",
            &server.port,
            "-c",
        ]);
        client.arg(share(n as u64)).arg("-j").arg(report(n)).stdout(Stdio::null()).spawn().unwrap()
    };
    let mut clients: Vec<Child> = servers.iter().enumerate().map(start).collect();
    let ports: BTreeSet<u16> = servers.iter().map(|server| server.port.parse().unwrap()).collect();
    let begin = Instant::now();
    let mut listed = 0;
    while listed < wanted
        && begin.elapsed() < OPEN
        && clients.iter_mut().any(|child| child.try_wait().unwrap().is_none())
    {
        listed = listed.max(established(&ports));
        std::thread::sleep(Duration::from_millis(200));
    }
    for client in &mut clients {
        // As Ctrl-C: it ends with its report.
        kill(Pid::from_raw(client.id() as i32), Signal::SIGINT).ok();
        client.wait().unwrap();
    }
    let sum = dir.path().join("sum");
    let mut merge = Command::new(env!("CARGO_BIN_EXE_client"));
    merge.arg("merge").args((0..clients.len()).map(report)).arg("-j").arg(&sum).stdout(Stdio::null()).status().unwrap();
    let all: Vec<_> = (0..clients.len()).map(report).collect();
    let read = |path: &std::path::Path| client::json::read(&mut fs::File::open(path).unwrap()).unwrap();
    let memory = all.iter().filter_map(|path| read(path).peak_memory).max().unwrap_or_default();
    // One report is merged with nothing.
    let sum = if clients.len() == 1 { read(&all[0]) } else { read(&sum) };
    let worst = sum.failures.iter().max_by_key(|row| row.count);
    let failure = worst.map(|row| row.example.clone()).unwrap_or_default();
    Crowd {
        processes,
        listed,
        merged: sum.connections.peak_open,
        failed: sum.failures(),
        failure,
        peak_memory: memory as f64,
    }
}

/// Connections to these ports of loopback that the kernel lists as established, by their clients' end.
fn established(ports: &BTreeSet<u16>) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let to_us = |line: &&str| {
        let mut cells = line.split_whitespace().skip(2);
        let (remote, state) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let port = remote.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        state == "01" && port.is_some_and(|port| ports.contains(&port))
    };
    table.lines().filter(to_us).count() as u64
}
