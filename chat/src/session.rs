//! One client's conversation: what it has sent, what waits for it, its deadlines, and the polite close.
//!
//! The polite close: send what waits, then a FIN (`shutdown`), then read and throw away until the client closes too.
//! Closing on unread bytes would be a reset, and a reset eats the last words.

use std::time::{Duration, Instant};

use crate::cli::{Limits, Slow};
use crate::event::Event;
use crate::input::{Input, Next};
use crate::outbox::{Fit, Outbox};

/// How long a client that has had its FIN may take to close ...
const LINGER: Duration = Duration::from_secs(1);
/// ... and how much of what it still sends is thrown away meanwhile.
const LINGER_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// All has been said; some of it waits to be sent.
    Flushing,
    /// The FIN is out.
    Lingering,
    Over,
}

/// One client, without its socket.
#[derive(Debug)]
pub struct Session {
    state: State,
    input: Input,
    outbox: Outbox,
    /// Not read from before this: it says too much.
    held_until: Option<Instant>,
    /// Open: its next line is due. Later: the end of the conversation, come what may.
    ends_at: Instant,
    /// Something waits, and must have moved by then.
    stalls_at: Option<Instant>,
    write_timeout: Duration,
    evicts: bool,
    /// Bytes that came after the last words.
    discarded: usize,
    eof: bool,
}

impl Session {
    /// A client that has said nothing yet.
    pub(crate) fn new(limits: &Limits, policy: Slow, now: Instant) -> Session {
        Session {
            state: State::Open,
            input: Input::new(limits, now),
            outbox: Outbox::new(limits.outbox, policy),
            held_until: None,
            ends_at: now + Duration::from_millis(limits.handshake_timeout),
            stalls_at: None,
            write_timeout: limits.write_timeout(),
            evicts: policy == Slow::Kick,
            discarded: 0,
            eof: false,
        }
    }

    /// Bytes from the client; none are the end of file.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.eof |= bytes.is_empty();
        match self.state {
            State::Open => self.input.feed(bytes),
            _ => self.discarded += bytes.len(),
        }
        if self.state == State::Lingering && self.is_drained() {
            self.state = State::Over;
        }
    }

    /// What the received bytes say, one event at a time and at the client's rate.
    pub(crate) fn next_event(&mut self, now: Instant) -> Option<Event> {
        self.held_until = None;
        if self.state != State::Open {
            return None;
        }
        match self.input.next(now) {
            Next::Tell(event) => Some(event),
            Next::Wait(until) => {
                self.held_until = Some(until);
                None
            }
            Next::Read => self.eof.then_some(Event::Closed),
        }
    }

    /// A sign of life.
    pub(crate) fn keep_until(&mut self, at: Instant) {
        self.ends_at = at;
    }

    /// Queues a line for the client.
    pub(crate) fn push(&mut self, line: &[u8], now: Instant) -> Fit {
        if self.state != State::Open {
            return Fit::Dropped;
        }
        let fit = self.outbox.push(line);
        self.stalls_at.get_or_insert(now + self.write_timeout);
        fit
    }

    /// The end: `last` and whatever waits has the write timeout to leave.
    pub(crate) fn close(&mut self, last: &str, now: Instant) {
        if self.state == State::Open {
            self.outbox.push_last(last);
            (self.state, self.held_until, self.ends_at) = (State::Flushing, None, now + self.write_timeout);
        }
    }

    /// The connection is gone, or its time is over: there is nobody to send to.
    pub fn abort(&mut self) {
        self.outbox.clear();
        (self.state, self.held_until) = (State::Over, None);
    }

    /// What waits to be sent.
    pub fn pending(&self) -> &[u8] {
        self.outbox.pending()
    }

    /// The kernel took `n` bytes of [`pending`](Self::pending).
    pub fn sent(&mut self, n: usize, now: Instant) {
        self.outbox.sent(n);
        self.stalls_at = (!self.pending().is_empty()).then_some(now + self.write_timeout);
    }

    /// True once, when all has been said and sent: time for the FIN.
    pub fn finish(&mut self, now: Instant) -> bool {
        let finished = self.state == State::Flushing && self.pending().is_empty();
        if finished {
            self.state = if self.is_drained() { State::Over } else { State::Lingering };
            self.ends_at = self.ends_at.min(now + LINGER);
        }
        finished
    }

    /// False while the client is held up for its rate: TCP then makes *it* wait. That is the rate limit.
    pub fn wants_read(&self) -> bool {
        self.held_until.is_none() && !self.eof
    }

    /// True while something waits to be sent. An idle socket is always writable: ask for that only now.
    pub fn wants_write(&self) -> bool {
        !self.pending().is_empty()
    }

    /// True while the client says too much.
    pub fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// True from its last words on.
    pub fn is_closing(&self) -> bool {
        self.state != State::Open
    }

    /// True at the end: close the socket.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// When [`Room::tick`](crate::Room::tick) has something to do.
    pub fn deadline(&self) -> Instant {
        let stall = self.stalls_at.filter(|_| self.evicts && self.state == State::Open);
        [self.held_until, stall].into_iter().flatten().fold(self.ends_at, Instant::min)
    }

    /// What has gone on for too long.
    pub(crate) fn timed_out(&mut self, now: Instant) -> Option<Event> {
        let is_open = self.state == State::Open;
        if self.ends_at <= now && is_open {
            return Some(Event::Silent);
        }
        if self.ends_at <= now {
            self.abort();
        }
        let stalled = is_open && self.evicts && self.stalls_at.is_some_and(|at| at <= now);
        stalled.then_some(Event::TooSlow)
    }

    /// The conversation ends no later than this.
    pub(crate) fn end_by(&mut self, at: Instant) {
        self.ends_at = self.ends_at.min(at);
    }

    fn is_drained(&self) -> bool {
        self.eof || self.discarded > LINGER_BYTES
    }
}
