//! Who looks at a run from outside, and what there is to see.

use std::time::Duration;

use crate::report::Slice;

/// How far a run is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Since the run began: since the first connect(), or since the schedule started.
    pub elapsed: Duration,
    /// Requests answered in full, and right.
    pub done: u64,
    /// Requests and connections that failed.
    pub failed: u64,
    /// Requests in the plan; `None` where a duration ends the run.
    pub planned: Option<u64>,
    /// Open connections.
    pub open: u64,
    /// Requests that were due; in a closed loop those sent.
    pub offered: u64,
    /// Requests sent.
    pub sent: u64,
    /// Connections established.
    pub connected: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Response times so far at 50, 90, 99 and 99.9 %, in nanoseconds, to about a tenth; the warm-up included.
    pub percentiles: [Option<u64>; 4],
    /// What has happened since the last call.
    pub recent: Slice,
    /// The warm-up is over, and with it began what the latencies are of.
    pub is_warm: bool,
}

/// Looks at a run from outside. `()` is the observer who does not care.
pub trait Observer {
    /// Called at least ten times a second, and at the end: every request done is in one `recent`.
    fn progress(&mut self, _progress: &Progress) {}

    /// In an open loop: the rate that somebody has set instead of the plan's, in requests per second. Asked after each
    /// call of `progress`; requests follow it from that moment on, and the report says so.
    fn rate(&self) -> Option<f64> {
        None
    }

    /// Whether the run shall end now; asked whenever poll returns, also after a signal.
    fn stop(&self) -> bool {
        false
    }
}

impl Observer for () {}
