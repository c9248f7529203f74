//! What to do: the plan of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::CouldNotRun;
use crate::misbehave::Misbehave;
use crate::random::Random;
use crate::source::Sources;
use crate::workload::{MOST_PIPELINED, Sizes, Talk};

/// More threads than this help nobody.
pub const MOST_THREADS: u32 = 1024;

/// A run against the byte service. [`Plan::default`] is the book's: a closed loop of 5 clients, 500 connections each,
/// 3000 bytes, 127.0.0.1:2000.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Host name or address; several with commas between them are taken in turn.
    pub host: String,
    /// Port, 1 to 65535.
    pub port: u16,
    /// Concurrent clients, at least 1. Each has at most one connection and one request under way.
    pub clients: u32,
    /// When a client has done its work.
    pub until: Until,
    /// Bytes asked for by one request, at least 1.
    pub bytes: u32,
    /// Sizes that change from request to request, instead of `bytes`.
    pub sizes: Option<Sizes>,
    /// What is said on a connection.
    pub talk: Talk,
    /// Requests on one connection that are sent together, before the answer to the first; at least 1.
    pub pipeline: u32,
    /// Local addresses to connect from; `None` takes further ones of 127/8 where the ports of one would run out.
    pub source: Option<Sources>,
    /// Clients that misbehave, beside those that are measured.
    pub misbehave: Option<Misbehave>,
    /// Requests on one connection; 0 keeps the connection for the whole run.
    pub per_connection: u32,
    /// From connect() to established.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// From the send of a request to the last byte of its answer, and to the server's close where that is awaited.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
    /// Who closes a connection, and how.
    pub close: Close,
    /// How answers are checked.
    pub verify: Verify,
    /// While the clients start: at most so many of them wait for their first answer; 0 = no bound.
    pub connect_burst: u32,
    /// Arrivals per second: an open loop, where requests start when they are due and not when the last one is done.
    pub rate: Option<Rate>,
    /// How arrivals lie in time, with a rate.
    pub arrivals: Arrivals,
    /// Where the random numbers of arrivals and pauses start; the same seed repeats them.
    pub seed: u64,
    /// With a rate and connections that are not kept: so many at once at most; `None` is as many as clients.
    pub max_open: Option<u32>,
    /// From the intended start to the last byte; what takes longer has failed.
    #[serde(rename = "deadline_ms", with = "millis::option")]
    pub deadline: Option<Duration>,
    /// What is left out of the histograms at the start.
    pub warmup: Warmup,
    /// In a closed loop: the pause between an answer and the next request of the same client.
    pub think: Option<Think>,
    /// So many connect() calls per second at most.
    pub connect_rate: Option<u32>,
    /// Sets `TCP_NODELAY` on each connection.
    pub nodelay: bool,
    /// Wall-clock time at which the run starts, in nanoseconds since 1970.
    pub start_at_ns: Option<u64>,
    /// Event-loop threads; 0 is one if the server is on this machine, else one per core.
    pub threads: u32,
    /// The CPUs those threads run on, one after the other; empty is wherever the kernel likes.
    pub pin: Vec<u32>,
    /// How connections are waited for.
    pub engine: EngineKind,
    /// Whether latencies are recorded; without, the cost of recording shows.
    pub latency: bool,
}

/// Arrivals per second, at the start and at the end of the schedule; between them they change linearly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// At the start.
    pub from: f64,
    /// At the end.
    pub to: f64,
}

impl Rate {
    /// A rate that stays.
    pub fn constant(rate: f64) -> Self {
        Rate { from: rate, to: rate }
    }

    fn is_possible(&self) -> bool {
        let possible = |rate: f64| rate.is_finite() && rate >= 0.0;
        possible(self.from) && possible(self.to) && self.from + self.to > 0.0
    }

    /// What it is so long after the start of a schedule that lasts `of`.
    pub fn at(&self, elapsed: Duration, of: Duration) -> f64 {
        let share = elapsed.as_secs_f64() / of.as_secs_f64().max(f64::MIN_POSITIVE);
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    /// Whether it changes in the course of the run.
    pub fn is_ramp(&self) -> bool {
        self.from != self.to
    }
}

/// How arrivals lie in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Evenly.
    #[default]
    Uniform,
    /// At random, as strangers come who know nothing of each other.
    Poisson,
    /// So many at once.
    Burst(u32),
}

/// What is left out of the histograms at the start. Failures count from the first request on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// Nothing.
    #[default]
    None,
    /// Requests that start in this time.
    #[serde(rename = "time_ms", with = "millis")]
    Time(Duration),
    /// So many answers.
    Requests(u64),
    /// Until the rate keeps its level, but at most a quarter of the duration.
    Auto,
}

/// How long a client pauses between an answer and its next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Think {
    /// Always so long.
    #[serde(rename = "fixed_ms", with = "millis")]
    Fixed(Duration),
    /// Anything between the two, both equally likely.
    Uniform(Duration, Duration),
    /// Exponential, with this mean.
    #[serde(rename = "exponential_ms", with = "millis")]
    Exponential(Duration),
}

impl Think {
    /// A pause, in nanoseconds.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let nanos = match *self {
            Think::Fixed(time) => time.as_nanos() as f64,
            Think::Uniform(low, high) => {
                let (low, high) = (low.as_nanos() as f64, high.as_nanos() as f64);
                low + (high - low) * random.unit()
            }
            Think::Exponential(mean) => mean.as_nanos() as f64 * random.exponential(),
        };
        nanos as u64
    }
}

/// When a client has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// After so many connections; after so many requests where the connection is kept. At least 1.
    Tries(u32),
    /// When the run has lasted so long.
    #[serde(rename = "duration_ms", with = "millis")]
    Elapsed(Duration),
}

/// Who closes a connection, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Close {
    /// The client, in good order; the port then stays in TIME_WAIT on the client's side.
    #[default]
    Fin,
    /// The client, with a reset (`SO_LINGER` 0): no TIME_WAIT anywhere.
    Rst,
    /// The server; the client waits for it, so TIME_WAIT is on the server's side.
    Server,
}

/// How connections are waited for. The measurement is the same code under all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Non-blocking sockets, all those of a thread behind one epoll instance.
    #[default]
    Epoll,
    /// A thread for each connection, in blocking calls.
    Threads,
    /// A process for each client, in blocking calls. The command `client` makes them, before its first thread; for
    /// [`crate::run`] this is no plan.
    Fork,
    /// All calls of a thread as requests to a ring (io_uring), one system call for many of them.
    Uring,
}

/// How answers are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Every byte is compared with the byte service's pattern.
    #[default]
    Pattern,
    /// The number of bytes is right, none too many.
    Length,
    /// As many bytes as were asked for end an answer; what is beyond them is dropped.
    None,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            host: "127.0.0.1".into(),
            port: 2000,
            clients: 5,
            until: Until::Tries(500),
            bytes: 3000,
            sizes: None,
            talk: Talk::Number,
            pipeline: 1,
            source: None,
            misbehave: None,
            per_connection: 1,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            close: Close::Fin,
            verify: Verify::Pattern,
            connect_burst: 512,
            rate: None,
            arrivals: Arrivals::Uniform,
            seed: 1,
            max_open: None,
            deadline: None,
            warmup: Warmup::None,
            think: None,
            connect_rate: None,
            nodelay: false,
            start_at_ns: None,
            threads: 0,
            pin: Vec::new(),
            engine: EngineKind::Epoll,
            latency: true,
        }
    }
}

impl Plan {
    /// Requests in all; `None` where a duration ends the run.
    pub fn requests(&self) -> Option<u64> {
        let Until::Tries(tries) = self.until else { return None };
        let clients = u64::from(self.clients) * u64::from(tries);
        Some(clients.saturating_mul(u64::from(self.per_connection.max(1))))
    }

    /// Connections in all if none fails; `None` where a duration ends the run.
    pub fn connections(&self) -> Option<u64> {
        let Until::Tries(tries) = self.until else { return None };
        let each = if self.per_connection == 0 { 1 } else { u64::from(tries) };
        Some(u64::from(self.clients) * each)
    }

    /// Connections at once: those of the clients, or those that arrivals may have open.
    pub fn slots(&self) -> u32 {
        match (self.rate, self.max_open) {
            (Some(_), Some(most)) if self.per_connection != 0 => most,
            _ => self.clients,
        }
    }

    /// The plan in words, without the address.
    pub fn describe(&self) -> String {
        let mut text = match &self.rate {
            Some(rate) => self.describe_open(rate),
            None => self.describe_closed(),
        };
        text.push_str(match self.engine {
            EngineKind::Epoll => "",
            EngineKind::Threads => ", a thread each",
            EngineKind::Fork => ", a process each",
            EngineKind::Uring => ", through a ring",
        });
        if self.pipeline > 1 {
            text.push_str(&format!(", {} at a time", self.pipeline));
        }
        if let Some(think) = self.think {
            text.push_str(&match think {
                Think::Fixed(time) => format!(", {} between", span(time)),
                Think::Uniform(low, high) => format!(", {} to {} between", span(low), span(high)),
                Think::Exponential(mean) => format!(", {} on average between", span(mean)),
            });
        }
        text
    }

    fn describe_open(&self, rate: &Rate) -> String {
        let mut text = format!("open loop: {}", rate.from);
        if rate.is_ramp() {
            text.push_str(&format!(" to {}", rate.to));
        }
        text.push_str(&match self.arrivals {
            Arrivals::Uniform => "/s uniform".to_owned(),
            Arrivals::Poisson => "/s poisson".to_owned(),
            Arrivals::Burst(n) => format!("/s in bursts of {n}"),
        });
        let (slots, bytes) = (count(self.slots(), "connection"), self.describe_request());
        text.push_str(&match self.per_connection {
            0 => format!(" on {} kept, requests of {bytes}", count(self.clients, "connection")),
            each => format!(", {} of {bytes} per connection, at most {slots} at once", count(each, "request")),
        });
        match self.until {
            Until::Tries(_) => text + &format!(", {} in all", self.requests().unwrap_or_default()),
            Until::Elapsed(time) => text + &format!(" for {}", span(time)),
        }
    }

    /// What stands behind "requests of".
    fn describe_request(&self) -> String {
        match (&self.talk, &self.sizes) {
            (Talk::Number, None) => count(self.bytes, "byte"),
            (Talk::Number, Some(sizes)) => sizes.describe(),
            (Talk::Echo, None) => format!("{} to echo", count(self.bytes, "byte")),
            (Talk::Echo, Some(sizes)) => format!("{} to echo", sizes.describe()),
            (Talk::Raw { request, reply_bytes }, _) => {
                format!("{} as given for {reply_bytes}", count(request.len() as u32, "byte"))
            }
        }
    }

    fn describe_closed(&self) -> String {
        let clients = count(self.clients, "client");
        let bytes = self.describe_request();
        match (self.until, self.per_connection) {
            (Until::Tries(tries), 0) => {
                format!("closed loop: {clients} x 1 kept connection x {} of {bytes}", count(tries, "request"))
            }
            (Until::Tries(tries), each) => {
                let (tries, each) = (count(tries, "connection"), count(each, "request"));
                format!("closed loop: {clients} x {tries} x {each} of {bytes}")
            }
            (Until::Elapsed(time), 0) => {
                format!("closed loop: {clients} on kept connections, requests of {bytes} for {}", span(time))
            }
            (Until::Elapsed(time), each) => {
                format!(
                    "closed loop: {clients}, {} of {bytes} per connection, for {}",
                    count(each, "request"),
                    span(time)
                )
            }
        }
    }

    /// Refuses what no run can be made of.
    ///
    /// # Errors
    /// [`CouldNotRun::BadPlan`] for a zero where at least 1 is needed, and for parts that do not go together.
    pub fn check(&self) -> Result<(), CouldNotRun> {
        let zero = match self {
            Plan { port: 0, .. } => "port 0 is no port to connect to",
            Plan { clients: 0, .. } => "0 clients have nothing to do",
            Plan { bytes: 0, .. } => "0 bytes are no request of this service",
            Plan { until: Until::Tries(0), .. } => "0 tries are nothing to do",
            Plan { until: Until::Elapsed(Duration::ZERO), .. } => "a duration of 0 is nothing to do",
            Plan { timeout: Duration::ZERO, .. } | Plan { connect_timeout: Duration::ZERO, .. } => {
                "a timeout of 0 lets nothing happen"
            }
            Plan { talk: Talk::Raw { request, reply_bytes }, .. } if request.is_empty() || *reply_bytes == 0 => {
                "a raw request and its answer have at least 1 byte each"
            }
            Plan { talk: Talk::Raw { .. }, verify: Verify::Pattern, .. } => {
                "only answers of the byte service can be compared with its pattern"
            }
            Plan { sizes: Some(sizes), .. } if !sizes.is_possible() => "sizes of requests are at least 1",
            Plan { pipeline, .. } if *pipeline == 0 || *pipeline > MOST_PIPELINED => {
                "1 to 1024 requests at a time on a connection"
            }
            Plan { pipeline: 2.., rate: Some(_), .. } => {
                "a rate says when each request starts, so none is sent together with others"
            }
            Plan { pipeline, per_connection, .. } if *per_connection != 0 && pipeline > per_connection => {
                "more requests at a time than a connection carries: raise -k"
            }
            Plan { misbehave: Some(Misbehave { clients: 0, .. }), .. } => "0 misbehaving clients do no harm",
            Plan { max_open: Some(0), .. } => "0 connections at once let nothing happen",
            Plan { connect_rate: Some(0), .. } => "0 connects per second let nothing happen",
            Plan { arrivals: Arrivals::Burst(0), .. } => "bursts of 0 are nothing to do",
            Plan { deadline: Some(Duration::ZERO), .. } => "a deadline of 0 lets nothing succeed",
            Plan { rate: Some(rate), .. } if !rate.is_possible() => {
                "a rate is a number of requests per second: not negative, and above 0 at one end"
            }
            Plan { engine: EngineKind::Threads, threads: 1.., .. } => {
                "the engine threads has a thread for each connection: leave out -T"
            }
            Plan { engine: EngineKind::Threads, .. } if self.slots() > MOST_THREADS => {
                "the engine threads has a thread for each connection, and at most 1024: lower -c or --max-open"
            }
            Plan { engine: EngineKind::Fork, .. } if self.no_fork().is_some() => self.no_fork().unwrap_or_default(),
            Plan { rate: Some(_), think: Some(_), .. } => {
                "a rate says when requests start, so there is no time to think"
            }
            _ => return Ok(()),
        };
        Err(CouldNotRun::BadPlan(zero))
    }

    /// What processes that know nothing of each other cannot do together.
    fn no_fork(&self) -> Option<&'static str> {
        Some(match self {
            Plan { rate: Some(_), .. } => "the engine fork has no schedule for all its processes: leave out -R",
            Plan { connect_rate: Some(_), .. } => {
                "the engine fork has no clock for all its processes: leave out --connect-rate"
            }
            Plan { misbehave: Some(_), .. } => "the engine fork has nobody to misbehave: leave out --misbehave",
            Plan { threads: 1.., .. } => "the engine fork has a process for each client: leave out -T",
            Plan { clients, .. } if *clients > MOST_THREADS => {
                "the engine fork has a process for each client, and at most 1024: lower -c"
            }
            Plan { pin, .. } if !pin.is_empty() => "the engine fork pins no process: leave out --pin",
            _ => return None,
        })
    }
}

fn count(n: u32, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn span(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A duration as a number of milliseconds.
mod millis {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64() * 1e3)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let millis = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(millis / 1e3).map_err(D::Error::custom)
    }

    /// The same where there may be none.
    pub mod option {
        use super::*;

        pub fn serialize<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            let millis = Option::<f64>::deserialize(deserializer)?;
            let time = millis.map(|millis| Duration::try_from_secs_f64(millis / 1e3)).transpose();
            time.map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_books() {
        let plan = Plan::default();
        assert_eq!(plan.describe(), "closed loop: 5 clients x 500 connections x 1 request of 3000 bytes");
        assert_eq!((plan.requests(), plan.connections()), (Some(2500), Some(2500)));
    }

    #[test]
    fn kept_connections_have_tries_requests() {
        let plan = Plan { per_connection: 0, clients: 1, ..Plan::default() };
        assert_eq!((plan.requests(), plan.connections()), (Some(500), Some(1)));
        assert_eq!(plan.describe(), "closed loop: 1 client x 1 kept connection x 500 requests of 3000 bytes");
        let plan = Plan { until: Until::Elapsed(Duration::from_millis(1500)), ..plan };
        assert_eq!((plan.requests(), plan.connections()), (None, None));
        assert!(plan.describe().ends_with("for 1s 500ms"), "{}", plan.describe());
    }

    #[test]
    fn zeros_are_refused() {
        let book = Plan::default();
        assert!(book.check().is_ok());
        for bad in [
            Plan { port: 0, ..book.clone() },
            Plan { clients: 0, ..book.clone() },
            Plan { bytes: 0, ..book.clone() },
            Plan { until: Until::Tries(0), ..book.clone() },
            Plan { until: Until::Elapsed(Duration::ZERO), ..book.clone() },
            Plan { timeout: Duration::ZERO, ..book.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
