//! One client's session: the bytes it has sent, the bytes that wait for it, its deadline, and how it ends.
//!
//! An orderly end has three steps: send what waits, send a FIN (`shutdown`), then read and discard until the client closes
//! too. A close with unread bytes would send a RST, and the client could lose the final message.

use std::io;
use std::time::{Duration, Instant};

use common::sock::is_transient;

use crate::cli::{Limits, Slow};
use crate::event::Event;
use crate::input::{Input, Next};
use crate::outbox::{Fit, Outbox};

/// How long a client may take to close after the server's FIN ...
const LINGER: Duration = Duration::from_secs(1);
/// ... and how many of its bytes are read and discarded in that time.
const LINGER_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The final message is queued, and not sent yet.
    Flushing,
    /// The FIN is sent.
    Lingering,
    Over,
}

/// One client's session, without its socket.
#[derive(Debug)]
pub struct Session {
    state: State,
    input: Input,
    outbox: Outbox,
    /// The rate limit: the client is not read from before this time.
    paused_until: Option<Instant>,
    /// Open: the deadline of the next line. Otherwise: the end of the session.
    ends_at: Instant,
    /// Bytes wait to be sent, and the kernel must take some of them before this time.
    stalls_at: Option<Instant>,
    write_timeout: Duration,
    kicks: bool,
    /// Bytes that were discarded after the final message.
    discarded: usize,
    eof: bool,
}

impl Session {
    /// A client that has sent nothing yet.
    pub(crate) fn new(limits: &Limits, policy: Slow, now: Instant) -> Session {
        Session {
            state: State::Open,
            input: Input::new(limits, now),
            outbox: Outbox::new(limits.outbox, policy),
            paused_until: None,
            ends_at: now + Duration::from_millis(limits.handshake_timeout),
            stalls_at: None,
            write_timeout: limits.write_timeout(),
            kicks: policy == Slow::Kick,
            discarded: 0,
            eof: false,
        }
    }

    /// Takes bytes from the client. No bytes mean the end of file.
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

    /// The next event in the received bytes, at the client's rate.
    pub(crate) fn next_event(&mut self, now: Instant) -> Option<Event> {
        self.paused_until = None;
        if self.state != State::Open {
            return None;
        }
        match self.input.next(now) {
            Next::Event(event) => Some(event),
            Next::Wait(until) => {
                self.paused_until = Some(until);
                None
            }
            Next::Read => self.eof.then_some(Event::Closed),
        }
    }

    /// The client has sent a line: the next one is due at this time.
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

    /// Queues the final message. It must be sent within the write timeout.
    pub(crate) fn close(&mut self, last: &str, now: Instant) {
        if self.state == State::Open {
            self.outbox.push_last(last);
            (self.state, self.paused_until, self.ends_at) = (State::Flushing, None, now + self.write_timeout);
        }
    }

    /// A call on the client's socket has failed: the session is over at once, and what waits is discarded.
    pub fn fail(&mut self) {
        self.outbox.clear();
        (self.state, self.paused_until, self.stalls_at) = (State::Over, None, None);
    }

    /// The bytes to send.
    pub fn pending(&self) -> &[u8] {
        self.outbox.pending()
    }

    /// Takes the result of send(2) for the [`pending`](Self::pending) bytes. False: the kernel takes no more now, or the
    /// connection has failed and the session is over.
    pub fn sent(&mut self, sent: &io::Result<usize>, now: Instant) -> bool {
        match sent {
            Ok(n) => {
                self.outbox.sent(*n);
                self.stalls_at = self.wants_write().then_some(now + self.write_timeout);
                return true;
            }
            Err(e) if is_transient(e) => return e.kind() == io::ErrorKind::Interrupted,
            Err(_) => self.fail(),
        }
        false
    }

    /// True once, after the final message has been sent: send the FIN now.
    pub fn finish(&mut self, now: Instant) -> bool {
        let finished = self.state == State::Flushing && self.pending().is_empty();
        if finished {
            self.state = if self.is_drained() { State::Over } else { State::Lingering };
            self.ends_at = self.ends_at.min(now + LINGER);
        }
        finished
    }

    /// True if the client is to be read from. During a pause of the rate limit it is not: its bytes stay in the kernel,
    /// and TCP flow control slows the client down.
    pub fn wants_read(&self) -> bool {
        !self.is_paused() && !self.eof && !self.is_over()
    }

    /// True if bytes wait to be sent. An idle socket is always writable, so wait for that only now.
    pub fn wants_write(&self) -> bool {
        !self.pending().is_empty()
    }

    /// True during a pause of the rate limit.
    pub fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// True from the final message on.
    pub fn is_closing(&self) -> bool {
        self.state != State::Open
    }

    /// True at the end: close the socket, and [`remove`](crate::Room::remove) the client.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// When [`Room::tick`](crate::Room::tick) has to be called for this session.
    pub fn deadline(&self) -> Instant {
        let stall = self.stalls_at.filter(|_| self.kicks && self.state == State::Open);
        [self.paused_until, stall].into_iter().flatten().fold(self.ends_at, Instant::min)
    }

    /// The timeout that has expired, if it ends an open session.
    pub(crate) fn timed_out(&mut self, now: Instant) -> Option<Event> {
        let (is_open, is_late) = (self.state == State::Open, self.ends_at <= now);
        match () {
            () if is_late && is_open => Some(Event::Silent),
            () if is_open && self.kicks && self.stalls_at.is_some_and(|at| at <= now) => Some(Event::TooSlow),
            () if is_late => {
                self.fail();
                None
            }
            () => None,
        }
    }

    /// The session ends at this time at the latest.
    pub(crate) fn end_by(&mut self, at: Instant) {
        self.ends_at = self.ends_at.min(at);
    }

    fn is_drained(&self) -> bool {
        self.eof || self.discarded > LINGER_BYTES
    }
}
