//! What the threads of a run share: when it began, the address, the end of the warm-up, the stop, and what each has
//! done so far.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Observer, Progress, nanos};
use crate::limits::Cpu;
use crate::plan::{Plan, Until, Warmup};
use crate::report::{Slice, Steer};
use crate::series::{Counts, Heat};
use crate::source::Route;
use crate::stats::Tally;

/// Not decided yet.
const OPEN: u64 = u64::MAX;
/// Between two looks at the run.
pub const TICK: Duration = Duration::from_millis(100);
/// With `--warmup auto` the rate of so many ticks in a row has to be the same, within this share of it or the luck of
/// their counts.
const LEVEL_TICKS: usize = 5;
const LEVEL: f64 = 0.1;

/// The very first connection.
#[derive(Clone, Copy, Debug)]
enum Probe {
    UnderWay,
    Found(SocketAddr),
    Failed,
}

/// What one thread has done so far.
#[derive(Debug, Default)]
struct Published {
    counts: Counts,
    heat: Heat,
    max_ns: u64,
}

/// The run as it was when its warm-up ended.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub at: u64,
    pub counts: Counts,
    pub cpu: Cpu,
}

/// Shared by the threads of a run.
pub struct Crew {
    pub base: Instant,
    pub threads: u32,
    pub route: Route,
    /// Others than the thread that makes the first connection wait for it.
    is_awaited: bool,
    /// How often threads publish what they have done.
    pub tick: Duration,
    stop: AtomicBool,
    probe: Mutex<Probe>,
    probed: Condvar,
    /// Threads whose connections for the schedule are open.
    ready: AtomicU32,
    start: AtomicU64,
    warm_until: AtomicU64,
    /// Length of the warm-up, where that is known before.
    warm_up: Option<u64>,
    published: Vec<Mutex<Published>>,
    /// The rates set by hand.
    steered: Mutex<Vec<Steer>>,
    steers: AtomicUsize,
    /// Set by the first look at the run after the warm-up.
    pub mark: OnceLock<Mark>,
}

impl Crew {
    pub fn new(plan: &Plan, threads: u32, route: Route) -> Self {
        let tick = match (plan.warmup, plan.until) {
            (Warmup::Auto, Until::Elapsed(time)) => (time / 50).clamp(TICK / 10, TICK),
            _ => TICK,
        };
        Crew {
            base: Instant::now(),
            threads,
            route,
            is_awaited: threads > 1 || plan.misbehave.is_some(),
            tick,
            stop: AtomicBool::new(false),
            probe: Mutex::new(Probe::UnderWay),
            probed: Condvar::new(),
            ready: AtomicU32::new(0),
            start: AtomicU64::new(if plan.rate.is_some() { OPEN } else { 0 }),
            warm_until: AtomicU64::new(match plan.warmup {
                Warmup::None => 0,
                Warmup::Time(time) if plan.rate.is_none() => nanos(time),
                _ => OPEN,
            }),
            warm_up: match plan.warmup {
                Warmup::Time(time) => Some(nanos(time)),
                _ => None,
            },
            published: (0..threads).map(|_| Mutex::default()).collect(),
            steered: Mutex::default(),
            steers: AtomicUsize::new(0),
            mark: OnceLock::new(),
        }
    }

    pub fn now(&self) -> u64 {
        nanos(self.base.elapsed())
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The first connection is established, at this address.
    pub fn found(&self, addr: SocketAddr) {
        *lock(&self.probe) = Probe::Found(addr);
        if self.is_awaited {
            self.probed.notify_all();
        }
    }

    /// The first connection failed at every address.
    pub fn failed(&self) {
        let mut probe = lock(&self.probe);
        if matches!(*probe, Probe::UnderWay) {
            *probe = Probe::Failed;
        }
        self.probed.notify_all();
    }

    /// Waits until the first connection is established; `None` if it never will be.
    pub fn wait_for_addr(&self) -> Option<SocketAddr> {
        let under_way = |probe: &mut Probe| matches!(probe, Probe::UnderWay);
        let probe = self.probed.wait_while(lock(&self.probe), under_way);
        match *probe.unwrap_or_else(PoisonError::into_inner) {
            Probe::Found(addr) => Some(addr),
            _ => None,
        }
    }

    /// A thread is ready for the schedule. The last one starts it.
    pub fn is_ready(&self) {
        if self.ready.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            let start = self.now();
            if let Some(length) = self.warm_up {
                self.warm_up_ends(start + length);
            }
            self.start.store(start, Ordering::Release);
        }
    }

    /// When the run started, in nanoseconds since the base: where there is a schedule, once all are ready for it.
    pub fn start(&self) -> Option<u64> {
        Some(self.start.load(Ordering::Acquire)).filter(|start| *start != OPEN)
    }

    /// Requests that were to start before this are not recorded.
    pub fn warm_until(&self) -> u64 {
        self.warm_until.load(Ordering::Relaxed)
    }

    pub fn warm_up_ends(&self, at: u64) {
        self.warm_until.store(at, Ordering::Relaxed);
    }

    /// The rate is another one from `at_ns` after the start on; nothing if it is that already.
    fn steer(&self, at_ns: u64, rate: f64) {
        let mut steered = lock(&self.steered);
        if steered.last().is_none_or(|last| last.rate != rate && last.at_ns < at_ns) {
            steered.push(Steer { at_ns, rate });
            self.steers.store(steered.len(), Ordering::Release);
        }
    }

    /// The rates set by hand, without the first so many.
    pub fn steered(&self, known: usize) -> Vec<Steer> {
        match self.steers.load(Ordering::Acquire) {
            all if all == known => Vec::new(),
            _ => lock(&self.steered).iter().skip(known).copied().collect(),
        }
    }

    /// A thread tells what it has done so far.
    pub fn publish(&self, thread: usize, tally: &mut Tally) {
        let Some(published) = self.published.get(thread) else { return };
        let mut published = lock(published);
        published.counts = tally.counts();
        published.heat.clone_from(tally.series.heat());
        published.max_ns = published.max_ns.max(tally.series.take_recent_max());
    }

    fn gather(&self) -> Published {
        let mut sum = Published::default();
        for published in &self.published {
            let mut published = lock(published);
            sum.counts.add(&published.counts);
            sum.heat.add(&published.heat);
            sum.max_ns = sum.max_ns.max(std::mem::take(&mut published.max_ns));
        }
        sum
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at the run as a whole from time to time: shows it, and ends the warm-up.
pub struct Lookout {
    planned: Option<u64>,
    warmup: Warmup,
    /// By then the warm-up is over at the latest.
    latest: u64,
    last: Published,
    last_at: u64,
    /// Another rate holds from so long after the look that finds it, so that every thread knows of it by then.
    pub lead: u64,
    /// The end of the last ticks, and what was done by then.
    level: Vec<(u64, u64)>,
}

impl Lookout {
    pub fn new(plan: &Plan) -> Self {
        let latest = match plan.until {
            Until::Elapsed(time) => nanos(time / 4),
            Until::Tries(_) => nanos(Duration::from_secs(5)),
        };
        let level = Vec::with_capacity(LEVEL_TICKS + 1);
        let (warmup, last) = (plan.warmup, Published::default());
        Lookout { planned: plan.requests(), warmup, latest, last, last_at: 0, lead: 0, level }
    }

    /// Looks now.
    pub fn look(&mut self, crew: &Crew, observer: &mut dyn Observer) {
        let now = crew.now();
        let sum = crew.gather();
        let start = crew.start();
        if let Some(start) = start.filter(|_| crew.warm_until() == OPEN) {
            self.end_warm_up(crew, start, now, &sum);
        }
        let elapsed = now.saturating_sub(start.unwrap_or(now));
        let counts = sum.counts;
        let is_warm = start.is_some() && crew.warm_until() <= now;
        if is_warm && self.warmup != Warmup::None {
            crew.mark.get_or_init(|| Mark { at: now, counts, cpu: Cpu::now() });
        }
        let recent = self.recent(now, start.unwrap_or(now), &sum);
        observer.progress(&Progress {
            elapsed: Duration::from_nanos(elapsed),
            done: counts.done,
            failed: counts.failed,
            planned: self.planned,
            open: counts.open,
            offered: if counts.offered == 0 { counts.sent } else { counts.offered },
            sent: counts.sent,
            connected: counts.connected,
            bytes: counts.bytes,
            percentiles: [0.5, 0.9, 0.99, 0.999].map(|share| sum.heat.percentile(share)),
            recent,
            is_warm,
        });
        self.last = sum;
        self.last_at = now;
        if let Some((start, rate)) = start.zip(observer.rate().filter(|rate| rate.is_finite() && *rate > 0.0)) {
            crew.steer(now - start + self.lead, rate);
        }
    }

    /// What has happened since the last look.
    fn recent(&self, now: u64, start: u64, sum: &Published) -> Slice {
        let (counts, before) = (sum.counts, self.last.counts);
        Slice {
            start_ns: self.last_at.saturating_sub(start),
            length_ns: now.saturating_sub(self.last_at),
            heat: sum.heat.since(&self.last.heat),
            max_ns: sum.max_ns,
            ..counts.since(&before)
        }
    }

    fn end_warm_up(&mut self, crew: &Crew, start: u64, now: u64, sum: &Published) {
        let over = match self.warmup {
            Warmup::None | Warmup::Time(_) => true,
            Warmup::Requests(n) => sum.counts.done >= n,
            Warmup::Auto => {
                if self.level.len() > LEVEL_TICKS {
                    self.level.remove(0);
                }
                self.level.push((now, sum.counts.done));
                let quarter = self.planned.is_some_and(|planned| sum.counts.done >= planned / 4);
                now - start >= self.latest || quarter || keeps_level(&self.level)
            }
        };
        if over {
            crew.warm_up_ends(now);
        }
    }
}

/// Whether the rate between these points has been the same.
fn keeps_level(points: &[(u64, u64)]) -> bool {
    if points.len() <= LEVEL_TICKS {
        return false;
    }
    let pairs = points.iter().zip(points.iter().skip(1));
    let rates = pairs.map(|((t0, n0), (t1, n1))| (n1 - n0) as f64 / (t1 - t0).max(1) as f64);
    let (low, high) = rates.fold((f64::MAX, 0.0_f64), |(low, high), rate| (low.min(rate), high.max(rate)));
    let each = points.last().zip(points.first()).map_or(0, |((_, last), (_, first))| last - first) / LEVEL_TICKS as u64;
    let luck = 3.0 / (each.max(1) as f64).sqrt();
    low > 0.0 && high - low <= LEVEL.max(luck) * high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_five_ticks_alike() {
        let rising: Vec<(u64, u64)> = (0..6).map(|t| (t * 100, t * t * 10_000)).collect();
        let level: Vec<(u64, u64)> = (0..6).map(|t| (t * 100, t * 10_000 + t % 2 * 300)).collect();
        assert!(!keeps_level(&rising) && keeps_level(&level) && !keeps_level(&level[1..]));
        assert!(!keeps_level(&[(0, 5), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]));
    }
}
