//! When each message was due, sent and heard.

use hdrhistogram::Histogram;

/// When a message was to be sent, was sent, and came to the probes first and last; nanoseconds since the start.
#[derive(Clone, Copy, Default)]
pub struct Times {
    pub intended: u64,
    pub sent: Option<u64>,
    pub first: Option<u64>,
    pub last: u64,
}

/// All messages, and the time that their deliveries to the probes took.
pub struct Clock {
    pub times: Vec<Times>,
    /// Messages before this one are the warm-up's.
    pub warm: u64,
    pub latency: Histogram<u64>,
    pub from_send: Histogram<u64>,
}

impl Clock {
    /// A probe has received a message.
    pub fn seen(&mut self, number: u64, now: u64) {
        let Some(times) = self.times.get_mut(number as usize) else { return };
        times.first.get_or_insert(now);
        times.last = now;
        if number >= self.warm {
            self.latency.saturating_record(now.saturating_sub(times.intended).max(1));
            self.from_send.saturating_record(now.saturating_sub(times.sent.unwrap_or(now)).max(1));
        }
    }

    /// Those that count.
    pub fn counting(&self) -> impl Iterator<Item = &Times> {
        self.times.iter().skip(self.warm as usize)
    }
}
