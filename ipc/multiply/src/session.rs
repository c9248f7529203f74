//! One client's session: bytes go in, bytes come out, and the caller passes the time. It has no
//! descriptor and makes no system call.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use common::cli::Limits;
use common::service::{LINGER, LINGER_BYTES, MIN_RATE};

use crate::frame::Framing;
use crate::request::{ACKNOWLEDGED, Rejection, answer};

/// Bytes that are received ahead. If they hold more than one message, the client pipelines.
pub const INPUT: usize = 4096;
/// With this many bytes to send, further requests are neither answered nor received.
pub const OUTPUT: usize = 16 * 1024;

/// The call that a [`Session`] needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive at most [`Session::room`] bytes and [`feed`](Session::feed) them, or call
    /// [`eof`](Session::eof).
    Read,
    /// Send [`Session::pending`], and [`consume`](Session::consume) what the kernel has taken.
    Write,
    /// Send a FIN and call [`write_shut_down`](Session::write_shut_down). What the client still
    /// sends has to be read before the close.
    ShutdownWrite,
    /// Close the descriptor.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Rejecting,
    Lingering,
    Closed,
}

/// One client's session. Whatever the client sends, its memory is bounded by [`INPUT`] and
/// [`OUTPUT`].
#[derive(Debug)]
pub struct Session {
    framing: Framing,
    limits: Limits,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    answered: u64,
    eof: bool,
    rejection: Option<Rejection>,
    drained: usize,
    deadline: Instant,
    slowest: Instant,
}

impl Session {
    /// The session of a client that has just been accepted.
    pub fn new(framing: Framing, limits: &Limits, now: Instant) -> Self {
        Session {
            framing,
            limits: *limits,
            state: State::Open,
            input: Vec::with_capacity(INPUT),
            output: Vec::new(),
            sent: 0,
            answered: 0,
            eof: false,
            rejection: None,
            drained: 0,
            deadline: now + Duration::from_millis(limits.idle_timeout),
            slowest: now,
        }
    }

    /// A client that is rejected: one `ERR` line, then a FIN.
    pub fn rejected(why: Rejection, framing: Framing, limits: &Limits, now: Instant) -> Self {
        let mut session = Session::new(framing, limits, now);
        session.reject(why, now);
        session
    }

    /// The call that is needed now.
    pub fn next(&self) -> Next {
        match self.state {
            State::Closed => Next::Close,
            _ if !self.pending().is_empty() => Next::Write,
            State::Rejecting => Next::ShutdownWrite,
            State::Open | State::Lingering => Next::Read,
        }
    }

    /// How many bytes [`feed`](Self::feed) takes now, at most [`INPUT`].
    pub fn room(&self) -> usize {
        match self.state {
            State::Open => INPUT - self.input.len(),
            State::Lingering => INPUT.min(LINGER_BYTES - self.drained),
            State::Rejecting | State::Closed => 0,
        }
    }

    /// Takes received bytes, at most [`room`](Self::room), and answers each whole request. It calls
    /// `seen` with the message and its answer.
    pub fn feed(&mut self, bytes: &[u8], now: Instant, seen: impl FnMut(&[u8], &str)) {
        let bytes = bytes.get(..self.room()).unwrap_or(bytes);
        match self.state {
            State::Open => {
                // The deadline of a message starts with its first byte. Further bytes do not move
                // it.
                if self.input.is_empty() && !bytes.is_empty() {
                    self.deadline = now + Duration::from_millis(self.limits.line_timeout);
                }
                self.input.extend_from_slice(bytes);
                self.answer_whole_requests(now, seen);
            }
            State::Lingering => {
                self.drained += bytes.len();
                if self.drained == LINGER_BYTES {
                    self.state = State::Closed;
                }
            }
            State::Rejecting | State::Closed => {}
        }
    }

    /// End of file: the client sends nothing more. What it has requested is still answered. A part
    /// of a request is not a request.
    pub fn eof(&mut self) {
        self.eof = true;
        if self.next() == Next::Read {
            self.state = State::Closed;
        }
    }

    /// The bytes to send now.
    pub fn pending(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// The kernel has taken `n` of the [`pending`](Self::pending) bytes.
    pub fn consume(&mut self, n: usize, now: Instant, seen: impl FnMut(&[u8], &str)) {
        let n = n.min(self.pending().len());
        if n == 0 {
            return;
        }
        self.sent += n;
        self.deadline = self.slowest.min(now + Duration::from_millis(self.limits.write_timeout));
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            if self.state == State::Open {
                let timeout = if self.input.is_empty() {
                    self.limits.idle_timeout
                } else {
                    self.limits.line_timeout
                };
                self.deadline = now + Duration::from_millis(timeout);
                self.answer_whole_requests(now, seen);
            }
        }
    }

    /// The FIN has been sent. What the client still sends is discarded, until it closes or the
    /// linger time has passed.
    pub fn write_shut_down(&mut self, now: Instant) {
        if self.state == State::Rejecting {
            self.state = if self.eof { State::Closed } else { State::Lingering };
            self.deadline = now + LINGER;
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends a session whose deadline has passed. In the middle of a message, or before the first
    /// one, the client gets `ERR timeout`. A client that is idle after its answers, or that does
    /// not read, is closed without an error line.
    pub fn expire(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        match self.next() {
            Next::Write => {
                self.rejection = Some(Rejection::Timeout);
                self.state = State::Closed;
            }
            Next::Read
                if self.state == State::Open && (self.answered == 0 || !self.input.is_empty()) =>
            {
                self.reject(Rejection::Timeout, now);
            }
            _ => self.state = State::Closed,
        }
    }

    /// How the session has ended.
    ///
    /// # Errors
    /// Why the server has ended it.
    pub fn result(&self) -> io::Result<()> {
        let kind = match self.rejection {
            None => return Ok(()),
            Some(Rejection::Busy) => ErrorKind::ResourceBusy,
            Some(Rejection::Timeout) => ErrorKind::TimedOut,
            Some(_) => ErrorKind::InvalidData,
        };
        Err(io::Error::new(kind, self.rejection.map_or("", Rejection::text)))
    }

    /// Answers the requests that are complete. [`Framing`] alone decides what a request is: it does
    /// not matter in which pieces the bytes have arrived.
    fn answer_whole_requests(&mut self, now: Instant, mut seen: impl FnMut(&[u8], &str)) {
        let (mut taken, before) = (0, self.answered);
        let mut too_long = false;
        while self.output.len() < OUTPUT {
            match self.framing.first(self.input.get(taken..).unwrap_or_default()) {
                Ok(Some((message, length))) => {
                    let answer = answer(message);
                    self.framing.put(ACKNOWLEDGED, &mut self.output);
                    self.framing.put(&answer, &mut self.output);
                    seen(message, &answer);
                    self.answered += 1;
                    taken += length;
                }
                Ok(None) => break,
                Err(_) => {
                    too_long = true;
                    break;
                }
            }
        }
        // What is left is the beginning of the next request.
        self.input.drain(..taken);
        if too_long {
            self.reject(Rejection::TooLong, now);
        } else if self.answered > before {
            self.begin_sending(now);
        } else if self.eof {
            self.state = State::Closed;
        }
    }

    /// The error line comes after the answers that are still pending.
    fn reject(&mut self, why: Rejection, now: Instant) {
        self.rejection = Some(why);
        self.framing.put(why.text(), &mut self.output);
        self.state = State::Rejecting;
        self.begin_sending(now);
    }

    fn begin_sending(&mut self, now: Instant) {
        let timeout = Duration::from_millis(self.limits.write_timeout);
        self.deadline = now + timeout;
        self.slowest =
            now + timeout + Duration::from_secs(self.output.len() as u64 / u64::from(MIN_RATE));
    }
}
