//! Requests that have a time of their own: those of a schedule, and those after a pause.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::{Engine, nanos};
use crate::plan::{Plan, Think, Until};
use crate::random::Random;
use crate::schedule::Schedule;
use crate::stats::note;

/// After the last arrival of a run by duration, answers under way are waited for so long.
const GRACE: Duration = Duration::from_secs(1);

/// So many requests are counted or given up in a row, so that a schedule that is far too fast cannot hold a thread.
const AT_ONCE: u64 = 10_000;
/// The same at the end of the run; those beyond it are known by the rate.
const AT_THE_END: u64 = 10_000_000;

/// An open loop: the schedule, and who is free for the next request of it.
pub struct Pace {
    schedule: Schedule,
    /// The same schedule, not held up by busy connections: what is due.
    due: Schedule,
    /// When the schedule starts, in nanoseconds since the base.
    pub start: Option<u64>,
    /// All connections of this thread have been opened once, where they are kept.
    is_open: bool,
    keep: bool,
    pub free: VecDeque<usize>,
    /// The request of the first connection, if that has to be made at another address.
    pub retry: Option<u64>,
    taken: u64,
    /// So many changes of the rate are in the schedules.
    steers: usize,
    deadline: Option<u64>,
    /// From the start of the schedule to the end of the run; none where the tries end it.
    length: Option<u64>,
}

impl Pace {
    pub fn new(plan: &Plan, thread: u64, threads: u64, slots: usize) -> Option<Self> {
        let schedule = Schedule::new(plan, thread, threads)?;
        let keep = plan.per_connection == 0;
        Some(Pace {
            due: schedule.clone(),
            schedule,
            start: None,
            is_open: false,
            keep,
            free: if keep { VecDeque::with_capacity(slots) } else { (0..slots).collect() },
            retry: None,
            taken: 0,
            steers: 0,
            deadline: plan.deadline.map(nanos),
            length: match plan.until {
                Until::Elapsed(time) => Some(nanos(time + GRACE.min(plan.timeout))),
                Until::Tries(_) => None,
            },
        })
    }

    /// Whether a duration ends the schedule.
    pub fn ends_by_time(&self) -> bool {
        self.length.is_some()
    }

    /// When the next request is to start.
    fn next(&self) -> Option<u64> {
        let start = self.start?;
        self.retry.or_else(|| self.schedule.peek().map(|at| start + at))
    }

    fn take(&mut self) {
        if self.retry.take().is_none() {
            self.schedule.take();
        }
        self.taken += 1;
    }

    /// How many more have been due by `now`, as far as they can be counted in a moment.
    fn count_due(&mut self, now: u64, most: u64) -> u64 {
        let Some(start) = self.start else { return 0 };
        let mut count = 0;
        while count < most && self.due.peek().is_some_and(|at| start + at <= now) {
            self.due.take();
            count += 1;
        }
        count
    }
}

/// Clients that think before they go on.
pub struct Thinking {
    think: Think,
    random: Random,
    /// When each is to go on, the next one first.
    until: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Thinking {
    pub fn new(plan: &Plan, thread: u64) -> Option<Self> {
        let think = plan.think?;
        let random = Random::new(plan.seed.wrapping_add(thread.wrapping_mul(0x5851_f42d_4c95_7f2d)));
        Some(Thinking { think, random, until: BinaryHeap::new() })
    }

    pub fn begin(&mut self, i: usize, now: u64) {
        let pause = self.think.draw(&mut self.random);
        self.until.push(Reverse((now.saturating_add(pause), i)));
    }

    pub fn next(&self) -> Option<u64> {
        self.until.peek().map(|Reverse((at, _))| *at)
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }
}

impl Engine<'_> {
    /// The very first connection is to be tried at another address.
    pub(super) fn try_again(&mut self, i: usize, intended: u64) {
        match &mut self.pace {
            Some(pace) if !pace.keep => {
                pace.retry = Some(intended);
                pace.taken -= 1;
                pace.free.push_back(i);
            }
            _ => self.ready.push(i),
        }
    }

    /// Starts what the schedule has due, as long as a connection is free for it.
    pub(super) fn dispatch(&mut self) {
        let now = self.now();
        if let Some(pace) = &mut self.pace {
            self.tally.offered += pace.count_due(now, AT_ONCE);
        }
        let mut dropped = 0;
        while dropped < AT_ONCE
            && self.gave_up.is_none()
            && (!self.probing || self.sockets == 0)
            && self.fatal.is_none()
        {
            let now = self.now();
            let Some(pace) = &mut self.pace else { return };
            let Some(due) = pace.next().filter(|due| *due <= now) else { return };
            if pace.deadline.is_some_and(|deadline| now - due > deadline) {
                pace.take();
                self.tally.missed += 1;
                dropped += 1;
                continue;
            }
            let Some(i) = pace.free.pop_front() else { return };
            let Some(slot) = self.slots.get(i) else { return };
            let (ready, since) = (slot.client.is_ready(), slot.free_since);
            if !ready && !self.gate.may_pass(now) {
                pace.free.push_front(i);
                return;
            }
            pace.take();
            self.tally.waited += u64::from(since > due);
            if due >= self.tally.warm_until {
                note(&mut self.tally.lag, now - due.max(since));
            }
            if ready { self.start_next(i, due) } else { self.open(i, Some(due)) }
        }
    }

    /// Takes over the rates that were set by hand since this was called last.
    pub(super) fn follow_rate(&mut self) {
        let Some(pace) = &mut self.pace else { return };
        for steer in self.crew.steered(pace.steers) {
            pace.schedule.steer(steer.at_ns, steer.rate);
            pace.due.steer(steer.at_ns, steer.rate);
            pace.steers += 1;
        }
    }

    /// A request on a connection that is ready.
    fn start_next(&mut self, i: usize, intended: u64) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.next(now, intended, &self.rules);
        if self.send_next(i) {
            self.receive(i, true);
        }
    }

    /// Client `i` has a connection without a request, or none: it can take the next one that comes.
    pub(super) fn is_free(&mut self, i: usize) {
        let now = self.now();
        if let Some(pace) = &mut self.pace {
            pace.free.push_back(i);
            if let Some(slot) = self.slots.get_mut(i) {
                slot.free_since = now;
            }
        } else if let Some(thinking) = &mut self.thinking {
            thinking.begin(i, now);
        }
    }

    /// The connection of client `i` is closed: what next?
    pub(super) fn goes_on(&mut self, i: usize) {
        if self.pace.is_some() {
            return self.is_free(i);
        }
        if !self.slots.get(i).is_some_and(|slot| slot.client.has_work()) {
            return;
        }
        if self.thinking.is_some() { self.is_free(i) } else { self.ready.push(i) }
    }

    /// Wakes those who have thought long enough.
    pub(super) fn wake(&mut self) {
        let now = self.now();
        while let Some(thinking) = &mut self.thinking {
            let Some(Reverse((due, i))) = thinking.until.peek().copied().filter(|Reverse((due, _))| *due <= now) else {
                return;
            };
            thinking.until.pop();
            match self.slots.get(i) {
                Some(slot) if slot.client.is_ready() => self.start_next(i, due),
                Some(slot) if slot.client.is_idle() && slot.client.has_work() => self.ready.push(i),
                _ => {}
            }
        }
    }

    /// Starts the schedule when the connections that are to be kept are open, in all threads.
    pub(super) fn start_schedule(&mut self) {
        let all = self.slots.len();
        let is_probed = !self.probing;
        let Some(pace) = &mut self.pace else { return };
        if pace.start.is_some() {
            return;
        }
        if !pace.is_open && (!pace.keep || (is_probed && self.ramp.is_over() && pace.free.len() == all)) {
            pace.is_open = true;
            self.crew.is_ready();
        }
        let Some(start) = self.crew.start() else { return };
        pace.start = Some(start);
        self.end = pace.length.map(|length| start + length);
        let counts = self.tally.counts();
        self.tally.series.start(start, counts);
        self.tally.warm_until = self.crew.warm_until();
    }

    /// Connections that are not kept need nothing before the schedule starts, and the first of them is one of it.
    pub(super) fn begin_schedule_early(&mut self) {
        if let Some(pace) = self.pace.as_mut().filter(|pace| !pace.keep && !pace.is_open) {
            pace.is_open = true;
            self.crew.is_ready();
        }
    }

    /// Whether the schedule waits for other threads.
    pub(super) fn is_waiting_for_others(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.is_open && pace.start.is_none())
    }

    /// When a request or a client is due next, and something can be done about it then.
    pub(super) fn next_due(&self, now: u64) -> u64 {
        let scheduled = self.pace.as_ref().filter(|_| self.gave_up.is_none()).and_then(|pace| {
            let slot = self.slots.get(*pace.free.front()?)?;
            let due = pace.next()?;
            Some(if slot.client.is_ready() { due } else { due.max(self.gate.opens_for(now)) })
        });
        let thought = self.thinking.as_ref().and_then(Thinking::next);
        scheduled.unwrap_or(u64::MAX).min(thought.unwrap_or(u64::MAX))
    }

    /// Whether the schedule has nothing left, and nothing of it is under way.
    pub(super) fn is_served(&self) -> bool {
        let Some(pace) = &self.pace else { return true };
        let over = self.gave_up.is_some() || (pace.start.is_some() && pace.next().is_none());
        over && pace.free.len() == self.slots.len()
    }

    /// The run is over: what was due and is not begun was missed.
    pub(super) fn count_missed(&mut self, now: u64) {
        let Some(pace) = &mut self.pace else { return };
        self.tally.offered += pace.count_due(now, AT_THE_END);
        if let Some(start) = pace.start {
            self.tally.offered += pace.due.expect(now.saturating_sub(start));
        }
        // Those that the deadline has taken off were taken, and are counted as missed already.
        self.tally.missed += self.tally.offered.saturating_sub(pace.taken);
    }
}
