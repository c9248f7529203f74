//! Counts and histograms of a run.

use hdrhistogram::{CreationError, Histogram};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind, Phase};
use crate::series::{Counts, Series};

/// Longest time a histogram tells apart, in nanoseconds: an hour. Longer ones count as this.
const LONGEST: u64 = 3_600_000_000_000;
/// Distinct error lines that get a row each; further ones share the last.
const ERR_ROWS: usize = 8;

/// The latencies of what succeeded, and the ages of what failed. All in nanoseconds, to 3 significant digits.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From the connect() call to established.
    pub connect: Histogram<u64>,
    /// From the send to the first byte of the answer.
    pub first_byte: Histogram<u64>,
    /// From the send to the last byte.
    pub service: Histogram<u64>,
    /// To the last byte from the connect() call, or from the send for later requests of a kept connection.
    pub total: Histogram<u64>,
    /// From the intended start to the last byte. In a closed loop a request is intended when it starts.
    pub response: Histogram<u64>,
    /// How old connections and requests were when they failed.
    pub failed: Histogram<u64>,
}

impl Latencies {
    fn new() -> Result<Self, CreationError> {
        Ok(Latencies {
            connect: histogram()?,
            first_byte: histogram()?,
            service: histogram()?,
            total: histogram()?,
            response: histogram()?,
            failed: histogram()?,
        })
    }

    fn absorb(&mut self, other: &Latencies) {
        add(&mut self.connect, &other.connect);
        add(&mut self.first_byte, &other.first_byte);
        add(&mut self.service, &other.service);
        add(&mut self.total, &other.total);
        add(&mut self.response, &other.response);
        add(&mut self.failed, &other.failed);
    }
}

/// The sum grows to what it has to hold.
fn add(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    _ = sum.add(other);
}

/// One that grows with what it is told: of an hour from the beginning each would write to 270 KB, and a client of
/// `--engine fork` has eight.
fn histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new(3)
}

/// Counts a time in one of them.
pub fn note(histogram: &mut Histogram<u64>, ns: u64) {
    _ = histogram.record(ns.min(LONGEST));
}

/// The instants of one request, in nanoseconds since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instants {
    /// When the request was to start by the plan; the same as `start` in a closed loop.
    pub intended: u64,
    /// connect() call, or the send for later requests of a kept connection.
    pub start: u64,
    /// Send.
    pub sent: u64,
    /// First byte of the answer.
    pub first: u64,
    /// Last byte of the answer.
    pub last: u64,
}

/// One row of the failure table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// When in the life of a connection.
    pub phase: Phase,
    /// What happened.
    pub kind: Kind,
    /// How often.
    pub count: u64,
    /// Nanoseconds from the start of the run to the first occurrence.
    pub first_ns: u64,
    /// Nanoseconds from the start of the run to the last occurrence.
    pub last_ns: u64,
    /// Age in nanoseconds of the oldest connection or request that failed so.
    pub oldest_ns: u64,
    /// The first occurrence in detail.
    pub example: String,
    /// What to do about it; read from a file it is what this program says of the kind.
    #[serde(skip_deserializing)]
    pub advice: &'static str,
}

/// Everything a run counts.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Time of what succeeded and of what failed.
    pub latency: Latencies,
    /// Failures by kind, in the order of their first occurrence.
    pub rows: Vec<Row>,
    /// Connections begun.
    pub tried: u64,
    /// Connections established.
    pub connected: u64,
    /// Connections that failed before they were established.
    pub connects_failed: u64,
    /// Connections the end of the run found unestablished.
    pub connects_censored: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered in full, and right.
    pub done: u64,
    /// Requests sent that failed.
    pub failed: u64,
    /// Requests the end of the run found unanswered.
    pub censored: u64,
    /// Age in nanoseconds of the oldest of those.
    pub censored_oldest_ns: u64,
    /// Bytes received, right or wrong.
    pub bytes: u64,
    /// Failed connects since the last that was established.
    pub connects_failed_in_a_row: u64,
    /// Requests that timed out since the last that did not.
    pub timeouts_in_a_row: u64,
    /// Open connections.
    pub open: u64,
    /// The most at once.
    pub peak_open: u64,
    /// Requests of the schedule that were due.
    pub offered: u64,
    /// Requests of the schedule that no connection was tried for.
    pub missed: u64,
    /// Requests of the schedule that found every connection busy.
    pub waited: u64,
    /// How late this client took up requests of the schedule for which a connection was free, in nanoseconds.
    pub lag: Histogram<u64>,
    /// How long the turns of the event loop took, in nanoseconds.
    pub turns: Histogram<u64>,
    /// Connects for which a SYN was sent again.
    pub syn_retransmitted: u64,
    /// Whether latencies are recorded.
    pub record: bool,
    /// Requests that were to start before this are not recorded, in nanoseconds since the run began.
    pub warm_until: u64,
    /// Requests done that were not recorded for this reason.
    pub warm_done: u64,
    /// The run in slices of time.
    pub series: Series,
}

impl Tally {
    /// All zero.
    ///
    /// # Errors
    /// Never: the bounds of the histograms are constants that fit.
    pub fn new() -> Result<Self, CreationError> {
        Ok(Tally {
            latency: Latencies::new()?,
            rows: Vec::new(),
            tried: 0,
            connected: 0,
            connects_failed: 0,
            connects_censored: 0,
            sent: 0,
            done: 0,
            failed: 0,
            censored: 0,
            censored_oldest_ns: 0,
            bytes: 0,
            connects_failed_in_a_row: 0,
            timeouts_in_a_row: 0,
            open: 0,
            peak_open: 0,
            offered: 0,
            missed: 0,
            waited: 0,
            lag: histogram()?,
            turns: histogram()?,
            syn_retransmitted: 0,
            record: true,
            warm_until: 0,
            warm_done: 0,
            series: Series::default(),
        })
    }

    /// A connection was established after `ns`.
    pub fn established(&mut self, ns: u64) {
        self.connected += 1;
        self.connects_failed_in_a_row = 0;
        if self.record {
            note(&mut self.latency.connect, ns);
        }
    }

    /// The counts that slices are made of.
    pub fn counts(&self) -> Counts {
        Counts {
            // Without a schedule what is sent was due.
            offered: if self.offered == 0 { self.sent } else { self.offered },
            sent: self.sent,
            done: self.done,
            failed: self.failed + self.connects_failed,
            connected: self.connected,
            bytes: self.bytes,
            open: self.open,
        }
    }

    /// Ends the slices that are over by `now`.
    pub fn roll(&mut self, now: u64) {
        if now >= self.series.due() {
            self.series.roll(now, self.counts());
        }
    }

    /// An answer is complete and right.
    pub fn done(&mut self, at: Instants) {
        self.roll(at.last);
        self.done += 1;
        self.timeouts_in_a_row = 0;
        if !self.record {
            return;
        }
        self.series.record(at.last.saturating_sub(at.intended));
        if at.intended < self.warm_until {
            self.warm_done += 1;
            return;
        }
        note(&mut self.latency.first_byte, at.first.saturating_sub(at.sent));
        note(&mut self.latency.service, at.last.saturating_sub(at.sent));
        note(&mut self.latency.total, at.last.saturating_sub(at.start));
        note(&mut self.latency.response, at.last.saturating_sub(at.intended));
    }

    /// A connection or a request of age `age` failed at `now`, both in nanoseconds.
    pub fn failure(&mut self, failure: &Failure, now: u64, age: u64) {
        self.roll(now);
        let kind = failure.kind();
        if self.record && now.saturating_sub(age) >= self.warm_until {
            note(&mut self.latency.failed, age);
        }
        match kind.phase() {
            Phase::Connect => {
                self.connects_failed += 1;
                self.connects_failed_in_a_row += 1;
            }
            Phase::Request => self.failed += 1,
        }
        match kind {
            Kind::TimedOut | Kind::Stalled | Kind::NotClosed | Kind::ConnectTimedOut => self.timeouts_in_a_row += 1,
            _ => self.timeouts_in_a_row = 0,
        }
        let Some(row) = self.row(failure, now) else { return };
        row.count += 1;
        row.last_ns = now;
        row.oldest_ns = row.oldest_ns.max(age);
    }

    /// Adds what another thread has counted, whose series is finished as this one's is.
    pub fn absorb(&mut self, other: Tally) {
        self.latency.absorb(&other.latency);
        add(&mut self.lag, &other.lag);
        add(&mut self.turns, &other.turns);
        self.series.absorb(other.series);
        for row in other.rows {
            self.absorb_row(row);
        }
        for (sum, more) in [
            (&mut self.tried, other.tried),
            (&mut self.connected, other.connected),
            (&mut self.connects_failed, other.connects_failed),
            (&mut self.connects_censored, other.connects_censored),
            (&mut self.sent, other.sent),
            (&mut self.done, other.done),
            (&mut self.failed, other.failed),
            (&mut self.censored, other.censored),
            (&mut self.bytes, other.bytes),
            (&mut self.open, other.open),
            (&mut self.peak_open, other.peak_open),
            (&mut self.offered, other.offered),
            (&mut self.missed, other.missed),
            (&mut self.waited, other.waited),
            (&mut self.syn_retransmitted, other.syn_retransmitted),
            (&mut self.warm_done, other.warm_done),
        ] {
            *sum += more;
        }
        self.censored_oldest_ns = self.censored_oldest_ns.max(other.censored_oldest_ns);
        self.warm_until = self.warm_until.max(other.warm_until);
    }

    fn absorb_row(&mut self, other: Row) {
        let error_line = other.kind == Kind::ErrLine;
        let same = |row: &&mut Row| row.kind == other.kind && (!error_line || row.example == other.example);
        let Some(row) = self.rows.iter_mut().find(same) else { return self.rows.push(other) };
        row.count += other.count;
        if other.first_ns < row.first_ns {
            row.example = other.example;
        }
        row.first_ns = row.first_ns.min(other.first_ns);
        row.last_ns = row.last_ns.max(other.last_ns);
        row.oldest_ns = row.oldest_ns.max(other.oldest_ns);
    }

    fn row(&mut self, failure: &Failure, now: u64) -> Option<&mut Row> {
        let kind = failure.kind();
        let mut same_kind = 0;
        let mut found = None;
        for (place, row) in self.rows.iter().enumerate().filter(|(_, row)| row.kind == kind) {
            same_kind += 1;
            let same = !matches!(failure, Failure::ErrLine(_)) || row.example == failure.to_string();
            if same || same_kind == ERR_ROWS {
                found = Some(place);
                break;
            }
        }
        if found.is_none() {
            let (phase, advice, example) = (kind.phase(), kind.advice(), failure.to_string());
            self.rows.push(Row { phase, kind, count: 0, first_ns: now, last_ns: now, oldest_ns: 0, example, advice });
        }
        let place = found.unwrap_or(self.rows.len().saturating_sub(1));
        self.rows.get_mut(place)
    }
}

/// A percentile, in tenths of a percent: 999 is p99.9.
pub type PerMille = u64;

/// The percentiles a report prints.
pub const PERCENTILES: [PerMille; 4] = [500, 900, 990, 999];

/// How many samples percentile `p` needs: as many as put 10 beyond it, so that it says more than the luck of the run.
pub fn needed(p: PerMille) -> u64 {
    10_000_u64.div_ceil(1000_u64.saturating_sub(p).max(1))
}

/// Percentile `p` in nanoseconds; `None` unless at least 10 samples lie beyond it.
pub fn percentile(histogram: &Histogram<u64>, p: PerMille) -> Option<u64> {
    (histogram.len() >= needed(p)).then(|| histogram.value_at_quantile(p as f64 / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        assert_eq!(PERCENTILES.map(needed), [20, 100, 1000, 10_000]);
        for (p, need) in [(500, 20), (900, 100), (990, 1000), (999, 10_000)] {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST, 3).unwrap();
            histogram.record_n(1000, need - 1).unwrap();
            assert_eq!(percentile(&histogram, p), None, "{p}");
            histogram.record(1000).unwrap();
            assert_eq!(percentile(&histogram, p), Some(1000), "{p}");
        }
    }

    #[test]
    fn failures_of_a_kind_share_a_row_and_error_lines_have_one_per_text() {
        let mut tally = Tally::new().unwrap();
        tally.failure(&Failure::ClosedEarly, 10, 5);
        tally.failure(&Failure::ShortAnswer { got: 1, want: 9 }, 20, 6);
        tally.failure(&Failure::ShortAnswer { got: 2, want: 9 }, 30, 1);
        for n in 0..100 {
            tally.failure(&Failure::ErrLine(format!("ERR {n}")), 40, 1);
        }
        assert_eq!(tally.rows.len(), 2 + ERR_ROWS);
        let short = &tally.rows[1];
        assert_eq!((short.count, short.first_ns, short.last_ns, short.oldest_ns), (2, 20, 30, 6));
        assert_eq!(short.example, "end of file after 1 of 9 bytes");
        assert_eq!(tally.rows.iter().map(|row| row.count).sum::<u64>(), 103);
        assert_eq!((tally.failed, tally.connects_failed), (103, 0));
    }

    #[test]
    fn an_impossible_time_is_recorded_as_the_longest() {
        let mut tally = Tally::new().unwrap();
        tally.established(u64::MAX);
        tally.established(0);
        assert_eq!(tally.latency.connect.len(), 2);
    }
}
