//! One run: a server, a load, and what the server spent on it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use client::{Plan, Until};
use procfs::process::Process;
use testkit::Server;

use crate::subject::Subject;

/// Bytes of an answer: small enough that the server and not the copying is measured.
pub const BYTES: u32 = 100;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Requests follow one another on connections that stay; 100 of them, so that a pool gets round to everybody.
    Kept,
    /// Connect, one request, close.
    Connect,
}

impl Workload {
    /// In words, for a headline.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Kept => "kept connections",
            Workload::Connect => "a connection per request",
        }
    }

    /// The load for a server.
    pub fn plan(self, server: &Server, clients: u32, until: Until) -> Plan {
        let per_connection = match self {
            Workload::Kept => 100,
            Workload::Connect => 1,
        };
        Plan { port: server.addr.port(), clients, until, bytes: BYTES, per_connection, ..Plan::default() }
    }
}

/// What a run cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Answers per second.
    pub rate: f64,
    /// CPU time of the server's family per answer, in microseconds.
    pub server_us: f64,
    /// CPU time of the client per answer, in microseconds.
    pub client_us: f64,
    /// Median time from send to last byte, in microseconds.
    pub median_us: f64,
}

/// Loads a fresh server. `None` where the design refuses so many clients.
///
/// # Errors
/// Where the server does not start, or an answer fails.
pub fn cost(subject: &Subject, workload: Workload, clients: u32, length: Duration) -> Result<Option<Cost>> {
    let Some(server) = subject.start(clients as usize)? else { return Ok(None) };
    // The first connections pay for page faults and the growth of tables.
    let warm_up = workload.plan(&server, clients, Until::Elapsed(length / 8));
    client::run(&warm_up, &mut ()).with_context(|| subject.name.clone())?;
    let before = cpu_us(&server);
    let report = client::run(&workload.plan(&server, clients, Until::Elapsed(length)), &mut ())?;
    let spent = cpu_us(&server) - before;
    ensure!(report.failures() == 0, "{}: {} failures with {clients} clients", subject.name, report.failures());
    let done = (report.requests.done as f64).max(1.0);
    Ok(Some(Cost {
        rate: report.requests_per_second(),
        server_us: spent / done,
        client_us: report.cpu_us_per_request().unwrap_or_default(),
        median_us: report.latency.service.value_at_quantile(0.5) as f64 / 1000.0,
    }))
}

/// User and system time of the family so far: of the living, and of the children that the first process has reaped.
fn cpu_us(server: &Server) -> f64 {
    let tick_us = 1e6 / procfs::ticks_per_second() as f64;
    let mut ticks = 0;
    for proc in server.family() {
        if let Ok(stat) = Process::new(proc.pid).and_then(|process| process.stat()) {
            ticks += stat.utime + stat.stime;
            if proc.pid == server.pid() {
                ticks += (stat.cutime + stat.cstime) as u64;
            }
        }
    }
    ticks as f64 * tick_us
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(super::median(Vec::new()).is_nan());
    }
}
