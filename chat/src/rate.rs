//! A token bucket that keeps no tokens: one point in time says it all.

use std::time::{Duration, Instant};

/// What [`Bucket::take`] said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Taken.
    Ready,
    /// The next token comes then.
    Wait(Instant),
}

/// So many tokens a second, so many saved up. (The *generic cell rate algorithm*: each token moves `full_at` one
/// interval into the future; it may lie at most the burst ahead.)
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
        match self.peek(now) {
            Token::Ready => self.full_at = self.full_at.max(now) + self.interval,
            wait => return wait,
        }
        Token::Ready
    }

    /// Whether there is a token.
    pub fn peek(&self, now: Instant) -> Token {
        match self.full_at > now + self.slack {
            true => Token::Wait(self.full_at - self.slack),
            false => Token::Ready,
        }
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
