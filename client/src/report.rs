//! The result of a run.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::limits::Cpu;
use crate::plan::Plan;
use crate::stats::{Latencies, Row, Tally};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All work was done, or failed.
    Finished,
    /// The duration was over.
    Duration,
    /// The observer stopped it.
    Interrupted,
    /// So many connects failed in a row that no more were tried.
    ConnectsFailed(u64),
    /// So many requests in a row timed out that no more were tried.
    TimedOut(u64),
}

/// Requests. `sent` is `done` + `failed` + `censored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// In the plan; `None` where a duration ends the run.
    pub planned: Option<u64>,
    /// Sent.
    pub sent: u64,
    /// Answered in full, and right.
    pub done: u64,
    /// Sent and failed.
    pub failed: u64,
    /// Unanswered when the run ended, and not late by then.
    pub censored: u64,
    /// Age of the oldest of those, in nanoseconds.
    pub censored_oldest_ns: u64,
    /// In the plan and never sent: their connection failed, or the run ended. `None` where a duration ends the run.
    pub not_sent: Option<u64>,
}

/// Connections. `tried` is `connected` + `failed` + `censored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// In the plan if none fails; `None` where a duration ends the run.
    pub planned: Option<u64>,
    /// connect() called.
    pub tried: u64,
    /// Established.
    pub connected: u64,
    /// Failed before they were established.
    pub failed: u64,
    /// Not established when the run ended, and not late by then.
    pub censored: u64,
    /// In the plan and not tried; `None` where a duration ends the run.
    pub not_tried: Option<u64>,
    /// Most that were open at once.
    pub peak_open: u64,
}

/// What a run did, in numbers.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked for.
    pub plan: Plan,
    /// The address that was used, out of those of the host.
    pub addr: SocketAddr,
    /// Why it ended.
    pub ended: Ended,
    /// From the first connect() to the end.
    pub elapsed: Duration,
    /// Requests, by their fate.
    pub requests: Requests,
    /// Connections, by their fate.
    pub connections: Connections,
    /// Bytes received, right or wrong.
    pub bytes: u64,
    /// Histograms in nanoseconds.
    pub latency: Latencies,
    /// Failures by kind.
    pub failures: Vec<Row>,
    /// CPU time of this process in the run.
    pub cpu: Cpu,
    /// Most memory this process had resident, in bytes.
    pub peak_memory: Option<u64>,
}

impl Report {
    /// Puts the counts of a run together.
    pub(crate) fn new(plan: &Plan, addr: SocketAddr, ended: Ended, elapsed: Duration, tally: Tally, peak: u64) -> Self {
        let planned = plan.requests();
        let requests = Requests {
            planned,
            sent: tally.sent,
            done: tally.done,
            failed: tally.failed,
            censored: tally.censored,
            censored_oldest_ns: tally.censored_oldest_ns,
            not_sent: planned.map(|planned| planned.saturating_sub(tally.sent)),
        };
        let planned = plan.connections();
        let connections = Connections {
            planned,
            tried: tally.tried,
            connected: tally.connected,
            failed: tally.connects_failed,
            censored: tally.connects_censored,
            not_tried: planned.map(|planned| planned.saturating_sub(tally.tried)),
            peak_open: peak,
        };
        Report {
            plan: plan.clone(),
            addr,
            ended,
            elapsed,
            requests,
            connections,
            bytes: tally.bytes,
            latency: tally.latency,
            failures: tally.rows,
            cpu: Cpu::default(),
            peak_memory: None,
        }
    }

    /// Whether the run says nothing bad: nothing failed, nothing in the plan was left out, and something was done.
    pub fn is_good(&self) -> bool {
        let complete = match self.ended {
            Ended::Finished => self.requests.not_sent.unwrap_or_default() == 0,
            Ended::Duration => true,
            Ended::Interrupted | Ended::ConnectsFailed(_) | Ended::TimedOut(_) => false,
        };
        complete && self.requests.failed == 0 && self.connections.failed == 0 && self.requests.done > 0
    }

    /// Failed requests and failed connections.
    pub fn failures(&self) -> u64 {
        self.requests.failed + self.connections.failed
    }

    /// Requests done per second.
    pub fn requests_per_second(&self) -> f64 {
        per_second(self.requests.done, self.elapsed)
    }

    /// Connections established per second.
    pub fn connections_per_second(&self) -> f64 {
        per_second(self.connections.connected, self.elapsed)
    }

    /// Bytes received per second.
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.elapsed)
    }

    /// CPU time of this client per request sent, in microseconds.
    pub fn cpu_us_per_request(&self) -> Option<f64> {
        let each = self.cpu.total().as_secs_f64() * 1e6 / self.requests.sent as f64;
        (self.requests.sent > 0).then_some(each)
    }
}

fn per_second(n: u64, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64().max(1e-9)
}
