//! The start of many clients: not faster than the server takes them.
//!
//! A connection is established when the kernel has put it into the accept queue. If clients start at once in greater
//! number than the queue holds, the kernel drops what comes on top, and TCP tries those again after 1 s, 3 s, 7 s. So
//! at most `burst` clients wait for their first answer. That holds for a moment only: where the server is slow to
//! answer, the next burst goes all the same, since the clients asked for are to be there.

/// After so many nanoseconds the next burst starts, answered or not.
const TIMEOUT: u64 = 100_000_000;

/// Of the time in which no connect was wanted, or nobody was there to make it, so much is made up for, in nanoseconds.
const MAKE_UP: u64 = 10_000_000;

/// Which clients may start.
#[derive(Debug)]
pub struct Ramp {
    next: u32,
    total: u32,
    burst: u32,
    waiting: u32,
    burst_at: u64,
}

impl Ramp {
    /// `total` clients, at most `burst` of them without a first answer; 0 is no bound.
    pub fn new(total: u32, burst: u32) -> Self {
        Ramp { next: 0, total, burst: if burst == 0 { u32::MAX } else { burst }, waiting: 0, burst_at: 0 }
    }

    /// The client that starts now, if one may.
    pub fn start(&mut self, now: u64) -> Option<usize> {
        if self.next == self.total {
            return None;
        }
        if self.waiting >= self.burst {
            if now.saturating_sub(self.burst_at) < TIMEOUT {
                return None;
            }
            self.waiting = 0;
            self.burst_at = now;
        }
        self.next += 1;
        self.waiting += 1;
        Some(self.next as usize - 1)
    }

    /// A client that started has its first answer, or has failed.
    pub fn answered(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Whether any has started.
    pub fn has_begun(&self) -> bool {
        self.next > 0
    }

    /// Whether all have started.
    pub fn is_over(&self) -> bool {
        self.next == self.total
    }

    /// Whether a client could start if time passed.
    pub fn is_held(&self) -> bool {
        !self.is_over() && self.waiting >= self.burst
    }
}

/// Lets so many connects pass per second.
#[derive(Debug)]
pub struct Gate {
    /// Nanoseconds between two; 0 lets all pass.
    interval: u64,
    next: u64,
}

impl Gate {
    /// `rate` per second; `None` is no bound.
    pub fn new(rate: Option<f64>) -> Self {
        Gate { interval: rate.map_or(0, |rate| (1e9 / rate) as u64), next: 0 }
    }

    /// Whether nobody may pass now.
    pub fn is_shut(&self, now: u64) -> bool {
        now < self.next
    }

    /// When somebody may pass.
    pub fn opens_for(&self, now: u64) -> u64 {
        self.next.max(now)
    }

    /// Whether one may pass now, who is then counted. Time lost is made up for, but not more than a moment of it.
    pub fn may_pass(&mut self, now: u64) -> bool {
        if self.is_shut(now) {
            return false;
        }
        if self.interval > 0 {
            self.next = self.next.max(now.saturating_sub(MAKE_UP)) + self.interval;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_burst_waits() {
        let mut ramp = Ramp::new(5, 2);
        assert_eq!([ramp.start(0), ramp.start(0), ramp.start(0)], [Some(0), Some(1), None]);
        assert!(ramp.is_held());
        ramp.answered();
        assert_eq!([ramp.start(7), ramp.start(7)], [Some(2), None]);
    }

    #[test]
    fn a_server_that_answers_nobody_still_gets_all_clients() {
        let mut ramp = Ramp::new(5, 2);
        let mut now = 0;
        let mut started = 0;
        while !ramp.is_over() {
            while ramp.start(now).is_some() {
                started += 1;
            }
            now += TIMEOUT;
        }
        assert_eq!((started, now), (5, 3 * TIMEOUT));
    }

    #[test]
    fn a_gate_lets_so_many_pass() {
        let mut gate = Gate::new(Some(1000.0));
        let passed = (0..1_000_000_000_u64).step_by(70_000).filter(|now| gate.may_pass(*now)).count();
        assert!(passed.abs_diff(1000) <= 1, "{passed}");
        // After a second in which nobody wanted to, not a thousand at once.
        assert!((0..100).filter(|_| gate.may_pass(2_000_000_000)).count() <= 11);
        let mut open = Gate::new(None);
        assert!((0..1000).all(|_| open.may_pass(0)));
    }

    #[test]
    fn no_bound_starts_all() {
        let mut ramp = Ramp::new(3, 0);
        assert_eq!([ramp.start(0), ramp.start(0), ramp.start(0), ramp.start(0)], [Some(0), Some(1), Some(2), None]);
    }
}
