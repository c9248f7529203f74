//! One client's conversation: bytes go in, bytes come out, and a clock is handed to it. No descriptor, no errno.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use common::cli::Limits;
use common::service::{LINGER, LINGER_BYTES, MIN_RATE};

use crate::frame::Framing;
use crate::request::{ACKNOWLEDGED, Refusal, answer};

/// So much is received ahead; more than one message of it is a pipeline.
pub const INPUT: usize = 4096;
/// With so much to send, the requests that are here already wait, and nothing more is received.
pub const OUTPUT: usize = 16 * 1024;

/// What a [`Conn`] needs from its driver now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive at most [`Conn::room`] bytes and [`feed`](Conn::feed) them, or say [`eof`](Conn::eof).
    Read,
    /// Send [`Conn::pending`] and [`consume`](Conn::consume) what the kernel took.
    Write,
    /// Send a FIN and say [`hung_up`](Conn::hung_up): what the client still sends has to be read before the close.
    HangUp,
    /// Close the descriptor.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Talking,
    HangingUp,
    Lingering,
    Closed,
}

/// One client's conversation. Its memory is bounded by [`INPUT`] and [`OUTPUT`], whatever the client sends.
#[derive(Debug)]
pub struct Conn {
    framing: Framing,
    limits: Limits,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    answered: u64,
    eof: bool,
    refusal: Option<Refusal>,
    drained: usize,
    deadline: Instant,
    slowest: Instant,
}

impl Conn {
    /// A client that has just been accepted.
    pub fn new(framing: Framing, limits: &Limits, now: Instant) -> Self {
        Conn {
            framing,
            limits: *limits,
            state: State::Talking,
            input: Vec::with_capacity(INPUT),
            output: Vec::new(),
            sent: 0,
            answered: 0,
            eof: false,
            refusal: None,
            drained: 0,
            deadline: now + Duration::from_millis(limits.idle_timeout),
            slowest: now,
        }
    }

    /// A client that gets one error message and a lingering close.
    pub fn refused(why: Refusal, framing: Framing, limits: &Limits, now: Instant) -> Self {
        let mut conn = Conn::new(framing, limits, now);
        conn.refuse(why, now);
        conn
    }

    /// What to do next with the descriptor.
    pub fn next(&self) -> Next {
        match self.state {
            State::Closed => Next::Close,
            _ if !self.pending().is_empty() => Next::Write,
            State::HangingUp => Next::HangUp,
            State::Talking | State::Lingering => Next::Read,
        }
    }

    /// How many bytes [`feed`](Self::feed) takes now.
    pub fn room(&self) -> usize {
        match self.state {
            State::Talking => INPUT - self.input.len(),
            State::Lingering => LINGER_BYTES - self.drained,
            State::HangingUp | State::Closed => 0,
        }
    }

    /// Takes received bytes, at most [`room`](Self::room) of them, and answers each whole request: `seen` is shown the
    /// message and its answer.
    pub fn feed(&mut self, bytes: &[u8], now: Instant, seen: impl FnMut(&[u8], &str)) {
        let bytes = bytes.get(..self.room()).unwrap_or(bytes);
        match self.state {
            State::Talking => {
                // The clock of a message starts with its first byte, and no further byte winds it up again.
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
            State::HangingUp | State::Closed => {}
        }
    }

    /// The client will send no more. What it asked for before is still answered; half a request is not one.
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

    /// The kernel took `n` of the [`pending`](Self::pending) bytes.
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
            if self.state == State::Talking {
                let patience = if self.input.is_empty() { self.limits.idle_timeout } else { self.limits.line_timeout };
                self.deadline = now + Duration::from_millis(patience);
                self.answer_whole_requests(now, seen);
            }
        }
    }

    /// The FIN is out; the rest of the client's bytes are thrown away until it closes, or the linger ends.
    pub fn hung_up(&mut self, now: Instant) {
        if self.state == State::HangingUp {
            self.state = if self.eof { State::Closed } else { State::Lingering };
            self.deadline = now + LINGER;
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends what has waited too long: with `ERR timeout` in the middle of a message, or where none ever came; without
    /// a word where the client has had its answers and only stays, or does not read.
    pub fn expire(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        match self.next() {
            Next::Write => {
                self.refusal = Some(Refusal::Timeout);
                self.state = State::Closed;
            }
            Next::Read if self.state == State::Talking && (self.answered == 0 || !self.input.is_empty()) => {
                self.refuse(Refusal::Timeout, now);
            }
            _ => self.state = State::Closed,
        }
    }

    /// How the conversation went.
    ///
    /// # Errors
    /// What ended it, where that was not the client.
    pub fn result(&self) -> io::Result<()> {
        let kind = match self.refusal {
            None => return Ok(()),
            Some(Refusal::Busy) => ErrorKind::ResourceBusy,
            Some(Refusal::Timeout) => ErrorKind::TimedOut,
            Some(_) => ErrorKind::InvalidData,
        };
        Err(io::Error::new(kind, self.refusal.map_or("", Refusal::text)))
    }

    /// However the bytes came, in one piece or one by one: what is a request is decided by [`Framing`] alone.
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
        self.input.drain(..taken);
        if too_long {
            self.refuse(Refusal::TooLong, now);
        } else if self.answered > before {
            self.begin_sending(now);
        } else if self.eof {
            self.state = State::Closed;
        }
    }

    /// What was answered before goes out before the error does.
    fn refuse(&mut self, why: Refusal, now: Instant) {
        self.refusal = Some(why);
        self.framing.put(why.text(), &mut self.output);
        self.state = State::HangingUp;
        self.begin_sending(now);
    }

    fn begin_sending(&mut self, now: Instant) {
        let patience = Duration::from_millis(self.limits.write_timeout);
        self.deadline = now + patience;
        self.slowest = now + patience + Duration::from_secs(self.output.len() as u64 / u64::from(MIN_RATE));
    }
}
