//! The run: one thread, one epoll instance, one receive buffer for all connections.
//!
//! Per request on a kept connection it calls send and recv; per connection socket, connect, epoll_ctl and close come
//! on top; epoll_wait is shared by all that is ready. So there is no getsockopt after connect (send tells whether the
//! connection is there), no EPOLL_CTL_DEL (close does that), no recv that can only say EAGAIN.

mod resolve;
mod wire;

use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use socket2::{SockAddr, Socket};

use crate::conn::{Client, Rules};
use crate::failure::{CouldNotRun, Failure, Kind};
use crate::limits::{self, Cpu};
use crate::plan::{Close, Plan, Until};
use crate::ramp::Ramp;
use crate::report::{Ended, Report};
use crate::stats::Tally;

/// The receive buffer: an answer that is shorter takes one recv.
const BUFFER: usize = 64 * 1024;
/// Events taken by one epoll_wait.
const EVENTS: usize = 1024;
/// After so many failed connects in a row no more are tried: the server is gone.
const CONNECTS_IN_VAIN: u64 = 1000;
/// After so many timeouts in a row for each client no more connections are tried: the server stands still.
const TIMEOUTS_IN_VAIN: u64 = 3;

/// How far a run is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// Since the first connect().
    pub elapsed: Duration,
    /// Requests answered in full, and right.
    pub done: u64,
    /// Requests and connections that failed.
    pub failed: u64,
    /// Requests in the plan; `None` where a duration ends the run.
    pub planned: Option<u64>,
    /// Open connections.
    pub open: u64,
}

/// Looks at a run from outside. `()` is the observer who does not care.
pub trait Observer {
    /// Called at least ten times a second.
    fn progress(&mut self, _progress: &Progress) {}

    /// Whether the run shall end now; asked whenever poll returns, also after a signal.
    fn stop(&self) -> bool {
        false
    }
}

impl Observer for () {}

/// Does what the plan says, and returns when it is done, at the latest when every timeout has passed.
///
/// # Errors
/// [`CouldNotRun`] if nothing could be tried: a plan with a zero in it, no address, too few descriptors, or a first
/// connection that fails at every address. Whatever goes wrong later is in the report.
pub fn run(plan: &Plan, observer: &mut dyn Observer) -> Result<Report, CouldNotRun> {
    plan.check()?;
    limits::make_room(plan.clients)?;
    let addrs = resolve::addresses(&plan.host, plan.port)?;
    let cpu = Cpu::now();
    let mut engine = Engine::new(plan, addrs)?;
    let ended = engine.run(observer)?;
    let mut report = engine.report(plan, ended);
    report.cpu = Cpu::since(cpu);
    report.peak_memory = limits::peak_memory();
    Ok(report)
}

/// One of the concurrent clients and its socket.
#[derive(Debug)]
struct Slot {
    client: Client,
    socket: Option<Socket>,
    /// It is counted by the ramp as waiting for its first answer.
    ramping: bool,
    /// It is counted as open.
    established: bool,
}

struct Engine {
    rules: Rules,
    request: Vec<u8>,
    reset_on_close: bool,
    clients: u64,
    end: Option<u64>,
    sweep: u64,
    base: Instant,
    poll: Poll,
    buffer: Vec<u8>,
    slots: Vec<Slot>,
    ramp: Ramp,
    /// Clients that want their next connection, and the list of the last turn, kept for its memory.
    ready: Vec<usize>,
    spare: Vec<usize>,
    /// Connections that were left with bytes unread, for the sake of the others.
    unread: Vec<usize>,
    tally: Tally,
    addrs: Vec<SocketAddr>,
    addr: SocketAddr,
    peer: SockAddr,
    /// The very first connection is under way. Until it is established nobody else starts.
    probing: bool,
    fatal: Option<CouldNotRun>,
    gave_up: Option<Ended>,
    planned: Option<u64>,
    sockets: u64,
    open: u64,
    peak_open: u64,
}

impl Engine {
    fn new(plan: &Plan, mut addrs: Vec<SocketAddr>) -> Result<Self, CouldNotRun> {
        addrs.reverse();
        let Some(addr) = addrs.pop() else {
            return Err(CouldNotRun::UnknownHost { host: plan.host.clone(), why: "it has no address".into() });
        };
        let poll = Poll::new().map_err(|source| CouldNotRun::System { call: "epoll_create1", source })?;
        let tally = Tally::new().map_err(|error| system("histogram", &error.to_string()))?;
        let clients = plan.clients as usize;
        let slot = || Slot { client: Client::new(plan.until), socket: None, ramping: false, established: false };
        Ok(Engine {
            rules: Rules::from(plan),
            request: format!("{}\n", plan.bytes).into_bytes(),
            reset_on_close: plan.close == Close::Rst,
            clients: u64::from(plan.clients),
            end: match plan.until {
                Until::Tries(_) => None,
                Until::Elapsed(time) => Some(nanos(time)),
            },
            sweep: sweep_interval(plan),
            base: Instant::now(),
            poll,
            buffer: vec![0; BUFFER],
            slots: (0..clients).map(|_| slot()).collect(),
            ramp: Ramp::new(plan.clients, plan.connect_burst),
            ready: Vec::with_capacity(clients),
            spare: Vec::with_capacity(clients),
            unread: Vec::new(),
            tally,
            addrs,
            addr,
            peer: addr.into(),
            probing: true,
            fatal: None,
            gave_up: None,
            planned: plan.requests(),
            sockets: 0,
            open: 0,
            peak_open: 0,
        })
    }

    fn run(&mut self, observer: &mut dyn Observer) -> Result<Ended, CouldNotRun> {
        let mut events = Events::with_capacity(EVENTS);
        let mut next_sweep = self.sweep;
        self.base = Instant::now();
        loop {
            self.launch();
            if let Some(fatal) = self.fatal.take() {
                return Err(fatal);
            }
            if observer.stop() {
                return Ok(Ended::Interrupted);
            }
            let now = self.now();
            if self.end.is_some_and(|end| now >= end) {
                return Ok(self.gave_up.unwrap_or(Ended::Duration));
            }
            if self.is_finished() {
                return Ok(self.gave_up.unwrap_or(Ended::Finished));
            }
            self.wait(&mut events, now, next_sweep)?;
            for event in &events {
                self.on_event(event);
            }
            self.read_on();
            let now = self.now();
            if now >= next_sweep {
                self.expire(now);
                next_sweep = now + self.sweep;
                observer.progress(&self.progress(now));
            }
        }
    }

    /// Opens the connections that are due: first those of clients that go on, then those of clients that start.
    fn launch(&mut self) {
        // One that fails at once comes back to the list for the next turn, so that a dead server cannot hold us here.
        let mut due = mem::replace(&mut self.ready, mem::take(&mut self.spare));
        for i in due.drain(..) {
            if self.may_open() {
                self.open(i);
            }
        }
        self.spare = due;
        while self.may_open() && (!self.probing || !self.ramp.has_begun()) {
            let Some(i) = self.ramp.start(self.now()) else { return };
            if let Some(slot) = self.slots.get_mut(i) {
                slot.ramping = true;
            }
            self.open(i);
        }
    }

    fn may_open(&self) -> bool {
        self.gave_up.is_none() && self.end.is_none_or(|end| self.now() < end)
    }

    fn is_finished(&self) -> bool {
        self.sockets == 0 && (self.gave_up.is_some() || (self.ready.is_empty() && self.ramp.is_over()))
    }

    fn wait(&mut self, events: &mut Events, now: u64, next_sweep: u64) -> Result<(), CouldNotRun> {
        let idle = self.unread.is_empty() && (self.ready.is_empty() || self.gave_up.is_some()) && !self.can_start();
        let until = next_sweep.min(self.end.unwrap_or(u64::MAX));
        let timeout = if idle { Duration::from_nanos(until.saturating_sub(now)) } else { Duration::ZERO };
        match self.poll.poll(events, Some(timeout)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(source) => Err(CouldNotRun::System { call: "epoll_wait", source }),
        }
    }

    fn can_start(&self) -> bool {
        self.gave_up.is_none() && !self.probing && !self.ramp.is_over() && !self.ramp.is_held()
    }

    /// Ends what has waited too long. One pass over all clients costs less than a timer for each request.
    fn expire(&mut self, now: u64) {
        for i in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(i) else { return };
            let Some(failure) = slot.client.overdue(now, &self.rules) else { continue };
            if slot.client.is_connecting() {
                self.connect_failed(i, &failure);
            } else {
                slot.client.fail(&failure, now, &mut self.tally);
                self.close(i);
            }
        }
    }

    /// A connection failed before it was established. For the very first one that may be the end of the run.
    fn connect_failed(&mut self, i: usize, failure: &Failure) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        if !self.probing {
            slot.client.fail(failure, now, &mut self.tally);
            self.close(i);
            return;
        }
        slot.client.rewind(&self.rules);
        self.tally.tried -= 1;
        self.close(i);
        if let Some(next) = self.addrs.pop() {
            self.addr = next;
            self.peer = next.into();
        } else {
            self.ready.clear();
            let (addr, failure) = (self.addr, failure.clone());
            self.fatal = Some(match failure.kind() {
                Kind::Refused => CouldNotRun::NobodyListens { addr },
                _ => CouldNotRun::FirstConnect { addr, failure },
            });
        }
    }

    fn give_up_if_in_vain(&mut self) {
        if self.tally.connects_failed_in_a_row >= CONNECTS_IN_VAIN {
            self.gave_up.get_or_insert(Ended::ConnectsFailed(CONNECTS_IN_VAIN));
        }
        let in_vain = TIMEOUTS_IN_VAIN * self.clients;
        if self.tally.timeouts_in_a_row >= in_vain && self.end.is_none() {
            self.gave_up.get_or_insert(Ended::TimedOut(in_vain));
        }
    }

    fn progress(&self, now: u64) -> Progress {
        Progress {
            elapsed: Duration::from_nanos(now),
            done: self.tally.done,
            failed: self.tally.failed + self.tally.connects_failed,
            planned: self.planned,
            open: self.open,
        }
    }

    fn report(mut self, plan: &Plan, ended: Ended) -> Report {
        let now = self.now();
        for slot in &mut self.slots {
            slot.client.censor(now, &mut self.tally);
        }
        Report::new(plan, self.addr, ended, Duration::from_nanos(now), self.tally, self.peak_open)
    }

    fn now(&self) -> u64 {
        nanos(self.base.elapsed())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn system(call: &'static str, why: &str) -> CouldNotRun {
    CouldNotRun::System { call, source: io::Error::other(why.to_owned()) }
}

/// A twentieth of the shorter timeout, within 10 ms and 100 ms: so exact are timeouts, and so seldom is the sweep.
fn sweep_interval(plan: &Plan) -> u64 {
    let shorter = plan.timeout.min(plan.connect_timeout);
    nanos(shorter / 20).clamp(10_000_000, 100_000_000)
}
