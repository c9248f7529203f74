//! The run: per thread one epoll instance and one receive buffer for all its connections.
//!
//! Per request on a kept connection it calls send and recv; per connection socket, connect, epoll_ctl and close come
//! on top; the wait for events is shared by all that is ready. So there is no getsockopt after connect (send tells
//! whether the connection is there), no EPOLL_CTL_DEL (close does that), no recv that can only say EAGAIN.

mod blocking;
mod crew;
pub(crate) mod epoll;
mod fail;
mod mob;
mod observe;
mod pace;
mod resend;
mod resolve;
mod ring;
mod start;
mod uring;
mod wire;

use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use crew::{Crew, Lookout};
use epoll::Epoll;
use pace::{Pace, Thinking};
use ring::Ring;

use crate::conn::{Client, Rules};
use crate::failure::CouldNotRun;
use crate::plan::{Close, EngineKind, Plan, Until, Warmup};
use crate::ramp::{Gate, Ramp};
use crate::report::Ended;
use crate::stats::{Tally, note};

pub use observe::{Observer, Progress};
pub use start::run;

/// The receive buffer: an answer that is shorter takes one recv.
const BUFFER: usize = 64 * 1024;
/// Events taken by one wait.
const EVENTS: usize = 1024;
/// While other threads get ready, a thread looks so often whether they are.
const BARRIER: u64 = 200_000;

/// One of the concurrent clients and its socket.
#[derive(Debug)]
struct Slot {
    client: Client,
    socket: Option<Socket>,
    /// It is counted by the ramp as waiting for its first answer.
    ramping: bool,
    /// It is counted as open.
    established: bool,
    /// Since when it can take a request of the schedule.
    free_since: u64,
}

/// One thread of a run.
struct Engine<'a> {
    crew: &'a Crew,
    thread: usize,
    rules: Rules,
    /// Where requests are prepared that are not all the same.
    scratch: String,
    reset_on_close: bool,
    clients: u64,
    end: Option<u64>,
    sweep: u64,
    base: Instant,
    /// One of these, or none where the calls on the one connection of this thread block.
    epoll: Option<Epoll>,
    ring: Option<Ring>,
    buffer: Vec<u8>,
    slots: Vec<Slot>,
    ramp: Ramp,
    /// Clients that want their next connection, and the list of the last turn, kept for its memory.
    ready: Vec<usize>,
    spare: Vec<usize>,
    /// Connections that were left with bytes unread, for the sake of the others.
    unread: Vec<usize>,
    pace: Option<Pace>,
    thinking: Option<Thinking>,
    gate: Gate,
    nodelay: bool,
    /// The warm-up of this thread is over after so many answers.
    warm_after: Option<u64>,
    tally: Tally,
    addrs: Vec<SocketAddr>,
    addr: SocketAddr,
    peer: SockAddr,
    /// The number of the next connection, from which its way follows.
    way: u64,
    /// The very first connection is under way. Until it is established nobody else starts.
    probing: bool,
    fatal: Option<CouldNotRun>,
    gave_up: Option<Ended>,
    sockets: u64,
}

impl<'a> Engine<'a> {
    /// Thread `thread` of the crew with its share of the connections.
    fn new(plan: &Plan, crew: &'a Crew, thread: usize, mut addrs: Vec<SocketAddr>) -> Result<Self, CouldNotRun> {
        addrs.reverse();
        let Some(addr) = addrs.pop() else {
            return Err(CouldNotRun::UnknownHost { host: plan.host.clone(), why: "it has no address".into() });
        };
        let epoll = (plan.engine == EngineKind::Epoll).then(|| Epoll::new(EVENTS)).transpose();
        let epoll = epoll.map_err(|source| CouldNotRun::System { call: "epoll_create1", source })?;
        let mut tally = Tally::new().map_err(|error| start::system("histogram", &error.to_string()))?;
        tally.record = plan.latency;
        tally.warm_until = crew.warm_until();
        let share = |all: u32| start::share(all, thread, crew.threads);
        let slots = share(plan.slots()) as usize;
        let ring = (plan.engine == EngineKind::Uring).then(|| Ring::new(slots)).transpose();
        let ring = ring.map_err(CouldNotRun::NoRing)?;
        let pace = Pace::new(plan, thread as u64, crew.threads.into(), slots);
        // The connections of a schedule are opened by it, unless they are kept and so opened before it.
        let starting = if pace.is_some() && plan.per_connection != 0 { 0 } else { slots as u32 };
        // With a rate it is the schedule that says how much there is to do.
        let until = plan.rate.map_or(plan.until, |_| Until::Tries(0));
        let client = |i: usize| Client::new(until, start::sizes_of(plan, thread, i));
        let slot = |i| Slot { client: client(i), socket: None, ramping: false, established: false, free_since: 0 };
        Ok(Engine {
            crew,
            thread,
            rules: Rules::from(plan),
            scratch: String::new(),
            reset_on_close: plan.close == Close::Rst,
            clients: slots as u64,
            end: match plan.until {
                Until::Elapsed(time) if pace.is_none() => Some(nanos(time)),
                _ => None,
            },
            sweep: sweep_interval(plan),
            base: crew.base,
            epoll,
            ring,
            buffer: vec![0; BUFFER],
            slots: (0..slots).map(slot).collect(),
            ramp: Ramp::new(starting, plan.connect_burst),
            ready: Vec::with_capacity(slots),
            spare: Vec::with_capacity(slots),
            unread: Vec::new(),
            thinking: Thinking::new(plan, thread as u64),
            gate: Gate::new(plan.connect_rate.map(|rate| f64::from(rate) / f64::from(crew.threads))),
            nodelay: plan.nodelay,
            warm_after: match plan.warmup {
                Warmup::Requests(n) => Some(n.div_ceil(crew.threads.into())),
                _ => None,
            },
            pace,
            tally,
            addrs,
            addr,
            peer: addr.into(),
            way: thread as u64,
            probing: thread == 0,
            fatal: None,
            gave_up: None,
            sockets: 0,
        })
    }

    /// Does this thread's part of the run. One thread alone looks at the run itself; of several somebody else does.
    fn run(&mut self, mut alone: Option<(&mut Lookout, &mut dyn Observer)>) -> Result<Ended, CouldNotRun> {
        if !self.probing && !self.wait_for_first() {
            // Why the run ended is known to the thread that has tried.
            return Ok(Ended::Finished);
        }
        let mut next_sweep = self.now() + self.sweep;
        let mut next_tick = 0;
        loop {
            if self.crew.is_stopped() || alone.as_ref().is_some_and(|(_, observer)| observer.stop()) {
                return Ok(Ended::Interrupted);
            }
            self.launch();
            if let Some(fatal) = self.fatal.take() {
                return Err(fatal);
            }
            let now = self.now();
            if now >= next_tick {
                self.tick(now);
                next_tick = now + nanos(self.crew.tick);
                if let Some((lookout, observer)) = &mut alone {
                    lookout.look(self.crew, *observer);
                }
                self.follow_rate();
            }
            if self.end.is_some_and(|end| now >= end) {
                return Ok(self.gave_up.unwrap_or(Ended::Duration));
            }
            if self.is_finished() {
                return Ok(self.gave_up.unwrap_or(if self.ends_by_time() { Ended::Duration } else { Ended::Finished }));
            }
            self.turn(now, next_sweep.min(next_tick))?;
            let now = self.now();
            if now >= next_sweep {
                self.expire(now);
                next_sweep = now + self.sweep;
            }
        }
    }

    /// Waits for news and deals with them.
    fn turn(&mut self, now: u64, next: u64) -> Result<(), CouldNotRun> {
        let timeout = self.patience(now, next);
        if self.ring.is_some() {
            return self.ring_turn(timeout);
        }
        let Some(epoll) = &mut self.epoll else {
            self.block(timeout);
            self.read_on();
            let now = self.now();
            self.warm_up_by_count(now);
            return Ok(());
        };
        let news = epoll.wait(timeout).map_err(|source| CouldNotRun::System { call: "epoll_pwait2", source })?;
        let woken = self.now();
        for number in 0..news {
            if let Some(news) = self.epoll.as_ref().and_then(|epoll| epoll.news(number)) {
                self.on_news(news);
            }
            if self.pace.is_some() {
                // A turn may be long, and what is due shall not wait for its end.
                self.dispatch();
            }
        }
        self.read_on();
        if news > 0 {
            let now = self.now();
            note(&mut self.tally.turns, now - woken);
            self.warm_up_by_count(now);
        }
        Ok(())
    }

    /// Tells the others how far this thread is, and looks how far the warm-up is.
    fn tick(&mut self, now: u64) {
        self.tally.roll(now);
        if self.warm_after.is_none() {
            self.tally.warm_until = self.crew.warm_until();
        }
        self.crew.publish(self.thread, &mut self.tally);
    }

    fn warm_up_by_count(&mut self, now: u64) {
        if self.tally.warm_until == u64::MAX && self.warm_after.is_some_and(|n| self.tally.done >= n) {
            self.tally.warm_until = now;
        }
    }

    /// Waits for the first connection, which another thread makes; false if it failed.
    fn wait_for_first(&mut self) -> bool {
        self.begin_schedule_early();
        let Some(addr) = self.crew.wait_for_addr() else { return false };
        self.addr = addr;
        self.peer = addr.into();
        true
    }

    /// Opens the connections that are due: first those of clients that go on, then those of clients that start.
    fn launch(&mut self) {
        self.wake();
        // One that fails at once comes back to the list for the next turn, so that a dead server cannot hold us here.
        let mut due = mem::replace(&mut self.ready, mem::take(&mut self.spare));
        for i in due.drain(..) {
            if !self.may_open() {
                continue;
            }
            match self.gate.may_pass(self.now()) {
                false => self.ready.push(i),
                true if self.pace.is_some() => self.open_bare(i),
                true => self.open(i, None),
            }
        }
        self.spare = due;
        while self.may_open() && (!self.probing || !self.ramp.has_begun()) && !self.gate.is_shut(self.now()) {
            let Some(i) = self.ramp.start(self.now()) else { break };
            self.gate.may_pass(self.now());
            if let Some(slot) = self.slots.get_mut(i) {
                slot.ramping = true;
            }
            if self.pace.is_some() { self.open_bare(i) } else { self.open(i, None) }
        }
        if self.pace.is_some() {
            self.start_schedule();
            self.dispatch();
        }
    }

    fn may_open(&self) -> bool {
        self.gave_up.is_none() && self.end.is_none_or(|end| self.now() < end)
    }

    fn is_finished(&self) -> bool {
        if self.pace.is_some() {
            return self.is_served();
        }
        let thinking = self.thinking.as_ref().is_some_and(|thinking| !thinking.is_empty());
        self.sockets == 0 && (self.gave_up.is_some() || (self.ready.is_empty() && self.ramp.is_over() && !thinking))
    }

    /// How long to wait for news: not at all if there is something to do, else until something is due.
    fn patience(&self, now: u64, next: u64) -> Duration {
        let gated = self.gate.is_shut(now);
        let ready = !self.ready.is_empty() && self.gave_up.is_none();
        if !self.unread.is_empty() || (!gated && (ready || self.can_start())) {
            return Duration::ZERO;
        }
        let mut until = next.min(self.end.unwrap_or(u64::MAX)).min(self.next_due(now));
        if gated && (ready || self.can_start()) {
            until = until.min(self.gate.opens_for(now));
        }
        if self.is_waiting_for_others() {
            until = until.min(now + BARRIER);
        }
        Duration::from_nanos(until.saturating_sub(now))
    }

    fn can_start(&self) -> bool {
        self.gave_up.is_none() && !self.probing && !self.ramp.is_over() && !self.ramp.is_held()
    }

    fn ends_by_time(&self) -> bool {
        self.pace.as_ref().is_some_and(Pace::ends_by_time)
    }

    /// The run is over for this thread: what it has counted, and when it ended.
    fn finish(mut self) -> (Tally, u64, SocketAddr) {
        let now = self.now();
        for slot in &mut self.slots {
            slot.client.censor(now, &mut self.tally);
        }
        self.count_missed(now);
        self.crew.publish(self.thread, &mut self.tally);
        let counts = self.tally.counts();
        self.tally.series.finish(now, counts);
        (self.tally, now, self.addr)
    }

    fn now(&self) -> u64 {
        nanos(self.base.elapsed())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A twentieth of the shortest timeout, within 10 ms and 100 ms: so exact are timeouts, and so seldom is the sweep.
fn sweep_interval(plan: &Plan) -> u64 {
    let shorter = plan.timeout.min(plan.connect_timeout).min(plan.deadline.unwrap_or(Duration::MAX));
    nanos(shorter / 20).clamp(10_000_000, 100_000_000)
}
