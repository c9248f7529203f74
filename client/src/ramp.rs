//! The start of many clients: not faster than the server takes them.
//!
//! A connection is established when the kernel has put it into the accept queue. If clients start at once in greater
//! number than the queue holds, the kernel drops what comes on top, and TCP tries those again after 1 s, 3 s, 7 s. So
//! at most `burst` clients wait for their first answer. That holds for a moment only: where the server is slow to
//! answer, the next burst goes all the same, since the clients asked for are to be there.

/// After so many nanoseconds the next burst starts, answered or not.
const PATIENCE: u64 = 100_000_000;

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
            if now.saturating_sub(self.burst_at) < PATIENCE {
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
            now += PATIENCE;
        }
        assert_eq!((started, now), (5, 3 * PATIENCE));
    }

    #[test]
    fn no_bound_starts_all() {
        let mut ramp = Ramp::new(3, 0);
        assert_eq!([ramp.start(0), ramp.start(0), ramp.start(0), ramp.start(0)], [Some(0), Some(1), Some(2), None]);
    }
}
