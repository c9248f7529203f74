//! A room full of people: the load of a chat. Members join, some of them talk by a schedule, all of them listen.
//!
//! The model: N members, S of them senders, an open loop. When each message is to be sent is fixed in advance, by the
//! rate; it carries its number. A message costs a *delivery* for each member who is to receive it, and the latency of a
//! delivery runs from the *intended* send: a room that stalls cannot hide it by keeping the senders waiting.
//!
//! One thread, one epoll instance, no client library: every server pays the same client. Latency is taken on up to 32
//! members, the *probes*; of the others each delivery is counted.

mod clock;
mod member;
mod run;
pub mod text;
pub mod wire;

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use crate::limits::Cpu;
use crate::machine::Machine;
use crate::report::ServerUse;
use crate::stats::{PERCENTILES, percentile};
pub use run::run;
pub use wire::Wire;

/// Shortest message: a mark and ten digits.
pub const SHORTEST: usize = 12;

/// What is asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Members of the room, the dead readers not counted.
    pub members: u32,
    /// How many of them talk.
    pub senders: u32,
    /// Messages a second, of all senders together.
    pub rate: f64,
    /// How long they talk, after the warm-up.
    pub duration: Duration,
    /// Talked for so long before, and not recorded.
    pub warmup: Duration,
    /// Bytes of a message.
    pub bytes: usize,
    /// Further members who join and never read again.
    pub dead: u32,
    /// What the server speaks.
    pub wire: Wire,
    /// How long a join, and the last deliveries, may take.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            host: "127.0.0.1".into(),
            port: 2000,
            members: 10,
            senders: 1,
            rate: 100.0,
            duration: Duration::from_secs(5),
            warmup: Duration::from_secs(1),
            bytes: 64,
            dead: 0,
            wire: Wire::Room,
            patience: Duration::from_secs(10),
        }
    }
}

/// A point of the run at which the caller may look at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// All have joined, and nothing is on its way.
    Joined,
    /// The first message that counts is due.
    Started,
    /// The last delivery has come, or is given up.
    Ended,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub plan: Plan,
    /// Where.
    pub machine: Machine,
    /// Seconds from the first connect to the last welcome.
    pub join_seconds: f64,
    /// Seconds until nothing of the joining was on its way any more: all have been told of all.
    pub settled_seconds: f64,
    /// Bytes that joining has brought to the members.
    pub join_bytes: u64,
    /// Messages that were due.
    pub offered: u64,
    /// Messages that were sent whole.
    pub sent: u64,
    /// Deliveries that should have come.
    pub expected: u64,
    /// Deliveries that came.
    pub delivered: u64,
    /// Seconds from the first message that counts to the last delivery.
    pub seconds: f64,
    /// From the intended send, in nanoseconds.
    #[serde(serialize_with = "percentiles")]
    pub latency: Histogram<u64>,
    /// From the actual send, in nanoseconds.
    #[serde(serialize_with = "percentiles")]
    pub from_send: Histogram<u64>,
    /// From the first delivery of a message to its last, among the probes, in nanoseconds.
    #[serde(serialize_with = "percentiles")]
    pub spread: Histogram<u64>,
    /// Members whose connection ended, and the last line that each was told.
    pub lost_members: Vec<String>,
    /// Of the dead readers: how each ended.
    pub dead: Vec<String>,
    /// CPU time of this client while they talked.
    pub cpu: Cpu,
    /// The server, where it was watched while they talked.
    pub server: Option<ServerUse>,
    /// Ctrl-C.
    pub interrupted: bool,
}

/// Above this share of one CPU the client may be what is measured.
pub const BUSY: f64 = 0.85;

impl Report {
    /// Deliveries that did not come.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.delivered)
    }

    /// Deliveries a second.
    pub fn rate(&self) -> f64 {
        self.delivered as f64 / self.seconds.max(1e-9)
    }

    /// CPU time of the server for a million deliveries.
    pub fn cpu_per_million(&self) -> Option<Duration> {
        let server = self.server.as_ref().filter(|_| self.delivered > 0)?;
        Some(server.cpu.total().mul_f64(1e6 / self.delivered as f64))
    }

    /// The client's share of one CPU.
    pub fn client_share(&self) -> f64 {
        self.cpu.total().as_secs_f64() / self.seconds.max(1e-9)
    }

    /// Whether everything came to everybody.
    pub fn is_good(&self) -> bool {
        self.lost() == 0 && self.sent == self.offered && self.lost_members.is_empty()
    }
}

/// A histogram in JSON: its percentiles, as far as the samples carry them.
fn percentiles<S: Serializer>(histogram: &Histogram<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    let named = PERCENTILES.iter().map(|p| (format!("p{}", *p as f64 / 10.0), percentile(histogram, *p)));
    let max = (!histogram.is_empty()).then(|| histogram.max());
    serializer.collect_map(named.chain([("max".to_owned(), max), ("count".to_owned(), Some(histogram.len()))]))
}
