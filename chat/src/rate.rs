//! A token bucket that stores no tokens: one point in time describes it.

use std::time::{Duration, Instant};

/// The result of [`Bucket::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// There was a token, and it is taken.
    Ready,
    /// There is no token before this time.
    Wait(Instant),
}

/// `rate` tokens a second, at most `burst` of them saved up. (The *generic cell rate algorithm*: each token moves `full_at`
/// one interval into the future, and `full_at` may lie at most one burst ahead.)
#[derive(Clone, Debug)]
pub struct Bucket {
    interval: Duration,
    slack: Duration,
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Bucket {
        let interval = Duration::from_secs(1) / rate.max(1);
        Bucket { interval, slack: interval * burst.saturating_sub(1), full_at: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> Token {
        if self.full_at > now + self.slack {
            return Token::Wait(self.full_at - self.slack);
        }
        self.full_at = self.full_at.max(now) + self.interval;
        Token::Ready
    }

    /// True if no token is missing: the client has been quiet for a while.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 20, start);
        for _ in 0..20 {
            assert_eq!(bucket.take(start), Token::Ready);
        }
        let mut now = start;
        for nth in 1..=980u32 {
            let Token::Wait(until) = bucket.take(now) else { panic!("line {nth} of the rest was not held up") };
            assert_eq!(until, start + nth * Duration::from_millis(100));
            assert_ne!(bucket.take(until - Duration::from_micros(1)), Token::Ready);
            assert_eq!(bucket.take(until), Token::Ready);
            now = until;
        }
        assert!(!bucket.is_full(now + Duration::from_millis(1999)));
        assert!(bucket.is_full(now + Duration::from_secs(2)));
    }

    #[test]
    fn a_silence_saves_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 3, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!([(); 3].map(|()| bucket.take(later)), [Token::Ready; 3]);
        assert_eq!(bucket.take(later), Token::Wait(later + Duration::from_millis(100)));
    }
}
