//! When requests are to start in an open loop: fixed before the run, whatever the server does.
//!
//! Arrivals are laid out at rate 1 first, evenly, at random or in bursts; the rate then says when so many of them are
//! due. So every shape works with a ramp too. The k-th of `threads` schedules has every `threads`-th arrival: together
//! they are the same arrivals for any number of threads.

use crate::plan::{Arrivals, Plan, Rate, Until};
use crate::random::Random;

/// From here on the rate is another one, set while the run goes on.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Seconds since the start of the schedule.
    from: f64,
    /// Arrivals due by then.
    base: f64,
    rate: f64,
}

/// The arrivals of one thread, in nanoseconds since the start of the schedule, rising.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: Rate,
    /// Seconds in which the rate goes from one end to the other.
    ramp: f64,
    arrivals: Arrivals,
    random: Random,
    /// Arrivals laid out so far, those of other threads included.
    laid: u64,
    /// Where the last of them stands at rate 1.
    place: f64,
    most: u64,
    end: u64,
    thread: u64,
    threads: u64,
    next: Option<u64>,
    /// `place` is that of an arrival which was not taken yet.
    pending: bool,
    pieces: Vec<Piece>,
}

impl Schedule {
    /// What thread `thread` of `threads` has to do; `None` for a plan without a rate.
    pub fn new(plan: &Plan, thread: u64, threads: u64) -> Option<Self> {
        let rate = plan.rate?;
        let (most, ramp, end) = match plan.until {
            Until::Elapsed(time) => (u64::MAX, time.as_secs_f64(), u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            Until::Tries(_) => {
                let all = plan.requests().unwrap_or(u64::MAX);
                (all, 2.0 * all as f64 / (rate.from + rate.to), u64::MAX)
            }
        };
        let random = Random::new(plan.seed);
        let mut schedule = Schedule {
            rate,
            ramp,
            arrivals: plan.arrivals,
            random,
            laid: 0,
            place: 0.0,
            most,
            end,
            thread,
            threads: threads.max(1),
            next: None,
            pending: false,
            pieces: Vec::new(),
        };
        schedule.next = schedule.find();
        Some(schedule)
    }

    /// When the next one is due.
    pub fn peek(&self) -> Option<u64> {
        self.next
    }

    /// Takes the next one off.
    pub fn take(&mut self) -> Option<u64> {
        let taken = self.next?;
        self.next = self.find();
        Some(taken)
    }

    /// From `at` on, in nanoseconds since the start of the schedule, requests are due at this rate, whatever the plan
    /// says. What was due before stays; every schedule of a run has to be told the same, in the order of time.
    pub fn steer(&mut self, at: u64, rate: f64) {
        let from = at as f64 / 1e9;
        let base = self.due_by(from);
        self.pieces.push(Piece { from, base, rate: rate.max(f64::MIN_POSITIVE) });
        if self.pending {
            self.next = self.due().filter(|due| *due < self.end);
        }
    }

    /// So many arrivals are due in so many seconds, those of all threads.
    fn due_by(&self, seconds: f64) -> f64 {
        match self.pieces.iter().rev().find(|piece| piece.from <= seconds) {
            Some(piece) => piece.base + (seconds - piece.from) * piece.rate,
            None => {
                let Rate { from, to } = self.rate;
                from * seconds + (to - from) / (2.0 * self.ramp) * seconds * seconds
            }
        }
    }

    /// How many more are due until then, by the rate; none if the next one is later.
    pub fn expect(&self, until: u64) -> u64 {
        if self.next.is_none_or(|next| next > until) {
            return 0;
        }
        let all = self.due_by(until.min(self.end) as f64 / 1e9);
        let rest = all.min(self.most as f64) - self.laid as f64;
        (rest / self.threads as f64).max(1.0) as u64
    }

    /// The next arrival of this thread.
    fn find(&mut self) -> Option<u64> {
        loop {
            if self.laid == self.most {
                self.pending = false;
                return None;
            }
            let number = self.laid;
            self.laid += 1;
            self.place = match self.arrivals {
                Arrivals::Uniform => number as f64,
                Arrivals::Burst(n) => (number - number % u64::from(n.max(1))) as f64,
                Arrivals::Poisson => self.place + self.random.exponential(),
            };
            if number % self.threads == self.thread {
                self.pending = true;
                return self.due().filter(|due| *due < self.end);
            }
        }
    }

    /// When `place` arrivals are due. By the plan it is the solution of `from * t + (to - from) / (2 * ramp) * t^2 = place`.
    fn due(&self) -> Option<u64> {
        if let Some(piece) = self.pieces.iter().rev().find(|piece| piece.base <= self.place) {
            return Some((1e9 * (piece.from + (self.place - piece.base) / piece.rate)) as u64);
        }
        let Rate { from, to } = self.rate;
        let root = from * from + 2.0 * (to - from) * self.place / self.ramp;
        // Poisson may lay out more than a falling ramp ever comes to.
        (root >= 0.0).then(|| (2e9 * self.place / (from + root.sqrt()).max(f64::MIN_POSITIVE)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn plan(from: f64, to: f64, arrivals: Arrivals) -> Plan {
        let until = Until::Elapsed(Duration::from_secs(2));
        Plan { rate: Some(Rate { from, to }), until, arrivals, ..Plan::default() }
    }

    fn all(plan: &Plan, thread: u64, threads: u64) -> Vec<u64> {
        let mut schedule = Schedule::new(plan, thread, threads).unwrap();
        std::iter::from_fn(|| schedule.take()).collect()
    }

    #[test]
    fn uniform_is_every_so_often_from_the_start_on() {
        let times = all(&plan(1000.0, 1000.0, Arrivals::Uniform), 0, 1);
        assert_eq!(times.len(), 2000);
        assert!(times.iter().enumerate().all(|(k, t)| t.abs_diff(k as u64 * 1_000_000) <= 1));
    }

    #[test]
    fn a_ramp_has_the_mean_of_its_ends() {
        for (from, to) in [(0.0, 1000.0), (1000.0, 0.0), (200.0, 800.0)] {
            for arrivals in [Arrivals::Uniform, Arrivals::Poisson, Arrivals::Burst(10)] {
                let times = all(&plan(from, to, arrivals), 0, 1);
                assert!(times.len().abs_diff(1000) < 120, "{from} {to} {arrivals:?} {}", times.len());
                assert!(times.is_sorted());
                let early = times.iter().filter(|t| **t < 1_000_000_000).count() as f64;
                let expected = (0.75 * from + 0.25 * to).max(1.0);
                assert!((early / expected - 1.0).abs() < 0.15, "{from} {to} {arrivals:?}: {early} of {expected}");
            }
        }
    }

    #[test]
    fn bursts_come_together_and_poisson_does_not_keep_time() {
        let times = all(&plan(1000.0, 1000.0, Arrivals::Burst(50)), 0, 1);
        assert!(times.chunks(50).all(|burst| burst.iter().all(|t| *t == burst[0])));
        assert_eq!(times[50], 50_000_000);
        let times = all(&plan(1000.0, 1000.0, Arrivals::Poisson), 0, 1);
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.1 && (variance - 1.0).abs() < 0.3, "{mean} {variance}");
    }

    #[test]
    fn threads_share_the_same_arrivals() {
        for arrivals in [Arrivals::Uniform, Arrivals::Poisson, Arrivals::Burst(7)] {
            let plan = plan(300.0, 900.0, arrivals);
            let mut together: Vec<u64> = (0..3).flat_map(|thread| all(&plan, thread, 3)).collect();
            together.sort_unstable();
            assert_eq!(together, all(&plan, 0, 1));
        }
    }

    #[test]
    fn what_is_not_counted_is_expected() {
        for (from, to) in [(1000.0, 1000.0), (0.0, 3000.0), (3000.0, 0.0)] {
            for arrivals in [Arrivals::Uniform, Arrivals::Poisson] {
                let mut schedule = Schedule::new(&plan(from, to, arrivals), 1, 2).unwrap();
                let mut left = 0;
                (0..100).for_each(|_| _ = schedule.take());
                let expected = schedule.expect(1_500_000_000);
                while schedule.peek().is_some_and(|at| at <= 1_500_000_000) {
                    schedule.take();
                    left += 1;
                }
                assert!(expected.abs_diff(left) <= left / 10, "{from} {to} {arrivals:?}: {expected} {left}");
                assert_eq!(schedule.expect(1_500_000_000), 0);
            }
        }
    }

    /// Takes arrivals, and is told another rate as time comes to it.
    fn steered(plan: &Plan, thread: u64, threads: u64, rates: &[(u64, f64)]) -> Vec<u64> {
        let mut schedule = Schedule::new(plan, thread, threads).unwrap();
        let mut times = Vec::new();
        for (at, rate) in rates {
            while schedule.peek().is_some_and(|due| due <= *at) {
                times.extend(schedule.take());
            }
            schedule.steer(*at, *rate);
        }
        times.extend(std::iter::from_fn(|| schedule.take()));
        times
    }

    #[test]
    fn another_rate_holds_from_its_moment_on() {
        const SECOND: u64 = 1_000_000_000;
        let rates = [(SECOND / 2, 4000.0), (SECOND, 200.0)];
        for arrivals in [Arrivals::Uniform, Arrivals::Poisson, Arrivals::Burst(5)] {
            let plan = plan(1000.0, 1000.0, arrivals);
            let times = steered(&plan, 0, 1, &rates);
            assert!(times.is_sorted());
            let between = |from: u64, to: u64| times.iter().filter(|t| (from..to).contains(*t)).count();
            let parts = [between(0, SECOND / 2), between(SECOND / 2, SECOND), between(SECOND, 2 * SECOND)];
            for (part, expected) in parts.iter().zip([500_usize, 2000, 200]) {
                assert!(
                    part.abs_diff(expected) <= if arrivals == Arrivals::Poisson { expected / 4 } else { 5 },
                    "{parts:?}"
                );
            }
            let mut together: Vec<u64> = (0..3).flat_map(|thread| steered(&plan, thread, 3, &rates)).collect();
            together.sort_unstable();
            assert_eq!(together, times, "{arrivals:?}");
        }
    }

    #[test]
    fn a_slow_schedule_that_was_over_goes_on_with_a_higher_rate() {
        // One every four seconds: after the first there would be none in the two seconds.
        let plan = plan(0.25, 0.25, Arrivals::Uniform);
        assert_eq!(steered(&plan, 0, 1, &[]).len(), 1);
        assert_eq!(steered(&plan, 0, 1, &[(1_000_000_000, 100.0)]).len(), 101);
        let mut schedule = Schedule::new(&plan, 0, 1).unwrap();
        schedule.take();
        schedule.steer(1_000_000_000, 100.0);
        assert!(schedule.expect(1_500_000_000).abs_diff(49) <= 1, "{}", schedule.expect(1_500_000_000));
        // Where the tries end it, there are no more than those.
        let plan = Plan { until: Until::Tries(7), clients: 1, ..plan };
        assert_eq!(steered(&plan, 0, 1, &[(1_000_000_000, 100.0)]).len(), 7);
    }

    #[test]
    fn without_a_duration_the_tries_end_it() {
        let plan = Plan { until: Until::Tries(7), clients: 3, ..plan(10.0, 10.0, Arrivals::Uniform) };
        assert_eq!(all(&plan, 0, 1).len(), 21);
        assert_eq!(all(&plan, 2, 4).len(), 5);
        assert!(Schedule::new(&Plan::default(), 0, 1).is_none());
    }
}
