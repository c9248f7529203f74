//! The result of a run.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::honesty::{self, Level};
use crate::limits::Cpu;
use crate::machine::Machine;
use crate::misbehave::Fates;
use crate::plan::Plan;
use crate::stats::{Latencies, Row, Tally};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What happened in one slice of the run's time. Slices have the same length, so that they can be drawn and compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Nanoseconds from the start of the run.
    pub start_ns: u64,
    /// Length in nanoseconds; the last slice may be shorter.
    pub length_ns: u64,
    /// Requests that were to start in this slice: those of the schedule, or in a closed loop those sent.
    pub offered: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered in full, and right.
    pub done: u64,
    /// Requests and connections that failed.
    pub failed: u64,
    /// Connections established.
    pub connected: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Open connections at the end of the slice.
    pub open: u64,
    /// Response times of the requests done: how many were in [2^(k/4), 2^((k+1)/4)) nanoseconds, as pairs (k, how
    /// many), k rising.
    pub heat: Vec<(u16, u64)>,
    /// Longest response time, in nanoseconds.
    pub max_ns: u64,
}

/// How far the figures of a run can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Honesty {
    /// Requests that the schedule asked for; in a closed loop those sent.
    pub offered: u64,
    /// Share of them that were not sent, in percent.
    pub missed_percent: f64,
    /// Requests of the schedule for which no connection was tried, because none was free before the deadline or the end.
    pub missed: u64,
    /// Requests of the schedule that found every connection busy and had to wait for one.
    pub waited: u64,
    /// How late this client was with requests for which a connection was free: 99 % at most, in nanoseconds. Zero in a
    /// closed loop.
    pub lag_p99_ns: u64,
    /// The latest of those, in nanoseconds.
    pub lag_max_ns: u64,
    /// Longest turns of the client's own loop, from one wait for events to the next: 99 % at most, in nanoseconds.
    pub loop_p99_ns: u64,
    /// Share of one core that the busiest thread of this client used, in percent.
    pub client_cpu_percent: f64,
    /// Threads of this client.
    pub threads: u32,
    /// What everybody else on this machine used, in percent of one core, if the server is on it.
    pub others_cpu_percent: Option<f64>,
    /// Requests that were to start so early are not in the histograms, in nanoseconds from the start of the run.
    pub warmup_ns: u64,
    /// So many answers are not in the histograms for this reason.
    pub warmup_done: u64,
    /// How evenly requests were done: correlation of their number with the time; 1 is a straight line.
    pub linearity: Option<f64>,
    /// Requests done per second after the warm-up, with a 95 % interval from batch means; `None` in a short run.
    pub rate: Option<Interval>,
    /// Whether the rate keeps its level; `None` in a short run.
    pub steady: Option<bool>,
    /// If it does not because of the start: so much of it should be left out, in nanoseconds.
    pub propose_warmup_ns: Option<u64>,
    /// If it does not all along: by so many percent it changed.
    pub drift_percent: Option<f64>,
    /// What limited the rate.
    pub limited_by: Limit,
    /// Connects that waited for a SYN to be sent again.
    pub syn_retransmitted: u64,
}

/// A value and the bounds it has with 95 % confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// What limited the rate of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Not known: too short, or nothing near a limit.
    #[default]
    Unknown,
    /// This client used up its core.
    Client,
    /// The server was waited for, and its cores were busy.
    Server,
    /// The schedule: everything asked for was done in time.
    Rate,
    /// The number of clients: each had one request under way, and neither side was busy.
    Concurrency,
}

/// The part of a run behind its warm-up, where it had one: what belongs to the same requests as the latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steady {
    /// Nanoseconds from the start of the run.
    pub from_ns: u64,
    /// Requests sent from there on.
    pub sent: u64,
    /// Requests done from there on.
    pub done: u64,
    /// CPU time of this process from there on.
    pub cpu: Cpu,
}

/// A rate that was set by hand while the run went on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steer {
    /// Nanoseconds from the start of the run: requests that were to start from there on follow the new rate.
    pub at_ns: u64,
    /// Requests per second.
    pub rate: f64,
}

/// What the server's processes used during the run: the process given or started, and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUse {
    /// Process id of the first process.
    pub pid: i32,
    /// CPU time of the whole tree, those that have ended included.
    pub cpu: Cpu,
    /// The same from the end of the warm-up on, where there was one.
    #[serde(default)]
    pub steady_cpu: Option<Cpu>,
    /// Context switches because a process waited.
    pub voluntary_switches: u64,
    /// Context switches because the kernel gave the CPU to another.
    pub involuntary_switches: u64,
    /// Most memory that was resident at once, all processes together, in bytes.
    pub peak_rss_bytes: u64,
    /// Most processes at once.
    pub peak_processes: u64,
    /// Most threads at once.
    pub peak_threads: u64,
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
    /// The part behind the warm-up; `None` where there was no warm-up, or nothing behind it.
    pub steady: Option<Steady>,
    /// Rates set by hand, in the order of time.
    pub steered: Vec<Steer>,
    /// Most memory this process had resident, in bytes.
    pub peak_memory: Option<u64>,
    /// The run in slices of time.
    pub series: Vec<Slice>,
    /// How far the figures can be trusted.
    pub honesty: Honesty,
    /// What became of the clients that misbehaved, where there were any.
    pub abusers: Option<Fates>,
    /// What the server used, where it was watched.
    pub server: Option<ServerUse>,
    /// Where and when it was made.
    pub machine: Option<Machine>,
}

impl Requests {
    fn of(plan: &Plan, tally: &Tally) -> Self {
        let planned = plan.requests();
        Requests {
            planned,
            sent: tally.sent,
            done: tally.done,
            failed: tally.failed,
            censored: tally.censored,
            censored_oldest_ns: tally.censored_oldest_ns,
            not_sent: planned.map(|planned| planned.saturating_sub(tally.sent)),
        }
    }
}

impl Connections {
    fn of(plan: &Plan, tally: &Tally, peak_open: u64) -> Self {
        let planned = plan.connections();
        Connections {
            planned,
            tried: tally.tried,
            connected: tally.connected,
            failed: tally.connects_failed,
            censored: tally.connects_censored,
            not_tried: planned.map(|planned| planned.saturating_sub(tally.tried)),
            peak_open,
        }
    }
}

impl Report {
    /// Puts the counts of a run together.
    pub(crate) fn new(plan: &Plan, addr: SocketAddr, ended: Ended, elapsed: Duration, tally: Tally, peak: u64) -> Self {
        let requests = Requests::of(plan, &tally);
        let connections = Connections::of(plan, &tally, peak);
        let offered = if plan.rate.is_some() { tally.offered } else { tally.sent };
        let series = tally.series.into_slices();
        let level = Level::of(plan, &series, tally.warm_until);
        let honesty = Honesty {
            offered,
            missed: tally.missed,
            waited: tally.waited,
            missed_percent: 100.0 * offered.saturating_sub(tally.sent) as f64 / offered.max(1) as f64,
            lag_p99_ns: tally.lag.value_at_quantile(0.99),
            lag_max_ns: tally.lag.max(),
            loop_p99_ns: tally.turns.value_at_quantile(0.99),
            warmup_ns: tally.warm_until,
            warmup_done: tally.warm_done,
            syn_retransmitted: tally.syn_retransmitted,
            linearity: level.linearity,
            rate: level.rate,
            steady: level.steady,
            propose_warmup_ns: level.propose_warmup_ns,
            drift_percent: level.drift_percent,
            ..Honesty::default()
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
            steady: None,
            steered: Vec::new(),
            peak_memory: None,
            series,
            honesty,
            abusers: None,
            server: None,
            machine: None,
        }
    }

    /// Judges the rate anew, from a series that was put in.
    pub fn judge_rate(&mut self) {
        let level = match self.steered.is_empty() {
            true => Level::of(&self.plan, &self.series, self.honesty.warmup_ns),
            // It was not to keep its level.
            false => Level::default(),
        };
        self.honesty.linearity = level.linearity;
        self.honesty.rate = level.rate;
        self.honesty.steady = level.steady;
        self.honesty.propose_warmup_ns = level.propose_warmup_ns;
        self.honesty.drift_percent = level.drift_percent;
    }

    /// Judges what limited the rate: after the run, and again when `server` has been filled in.
    pub fn judge(&mut self) {
        self.honesty.limited_by = honesty::limit(self);
    }

    /// Why the figures should not be built upon, one line each; empty if they may.
    pub fn doubts(&self) -> Vec<String> {
        honesty::doubts(self)
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

    /// CPU time of this client and the requests sent in that time: behind the warm-up, as the latencies are.
    pub fn measured_cpu(&self) -> (Cpu, u64) {
        self.steady.map_or((self.cpu, self.requests.sent), |steady| (steady.cpu, steady.sent))
    }

    /// CPU time of the server and the requests done in that time: behind the warm-up, as the latencies are.
    pub fn measured_server_cpu(&self) -> Option<(Cpu, u64)> {
        let server = self.server.as_ref()?;
        let steady = self.steady.filter(|steady| steady.done > 0).zip(server.steady_cpu);
        Some(steady.map_or((server.cpu, self.requests.done), |(steady, cpu)| (cpu, steady.done)))
    }

    /// CPU time of this client per request sent, in microseconds.
    pub fn cpu_us_per_request(&self) -> Option<f64> {
        each_us(self.measured_cpu())
    }

    /// CPU time of the server per request done, in microseconds; `None` where it was not watched.
    pub fn server_us_per_request(&self) -> Option<f64> {
        each_us(self.measured_server_cpu()?)
    }
}

fn each_us((cpu, requests): (Cpu, u64)) -> Option<f64> {
    (requests > 0).then(|| cpu.total().as_secs_f64() * 1e6 / requests as f64)
}

fn per_second(n: u64, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64().max(1e-9)
}
