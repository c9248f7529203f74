//! System calls per request, counted with strace: exact, and the same on every machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use client::Until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure::Workload;
use crate::subject::Subject;

/// Requests that each client makes while strace counts.
const TRIES: u32 = 40;

/// System calls of the server's whole family per request. `None` where the design refuses so many clients.
///
/// # Errors
/// Where strace or the server does not start, or an answer fails.
pub fn per_request(subject: &Subject, workload: Workload, clients: u32) -> Result<Option<f64>> {
    let Some(server) = subject.start(clients as usize)? else { return Ok(None) };
    let counts = std::env::temp_dir().join(format!("bench-strace-{}-{}", std::process::id(), server.addr.port()));
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&counts);
    for proc in server.family() {
        command.args(["-p", &proc.pid.to_string()]);
    }
    let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("strace")?;
    let mut attached = String::new();
    let mut stderr = BufReader::new(strace.stderr.take().context("strace")?);
    stderr.read_line(&mut attached)?;
    ensure!(attached.contains("attached"), "strace: {attached}");
    std::thread::spawn(move || stderr.lines().for_each(drop));

    let mut plan = workload.plan(&server, clients, Until::Tries(TRIES));
    if workload == Workload::Kept {
        plan.until = Until::Tries(1);
    }
    let report = client::run(&plan, &mut ())?;
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT)?;
    strace.wait()?;
    let text = fs::read_to_string(&counts).unwrap_or_default();
    let _ = fs::remove_file(&counts);
    ensure!(report.failures() == 0, "{}: {} failures under strace", subject.name, report.failures());
    let total = text.lines().find(|line| line.trim_end().ends_with("total")).context("strace counted nothing")?;
    let calls: f64 = total.split_whitespace().next().and_then(|word| word.parse().ok()).context("strace's total")?;
    Ok(Some(calls / report.requests.done as f64))
}
