//! The byte service: read a decimal number and a newline, answer that many bytes; then the next request.
//!
//! [`Conn`] is the whole service without a descriptor: bytes go in, bytes come out, and a clock is handed to it. An
//! event loop or an io_uring server drives it with its own calls. [`serve`] drives the same `Conn` over a blocking
//! stream for the servers that give a client a process or a thread. So every model answers with the same bytes, the
//! same limits and the same cost, and a timing compares models and nothing else.
//!
//! Grammar: `1*10DIGIT [CR] LF`, value 1 to the limit. After a bad line comes one `ERR` line, and nothing behind it is
//! read as a request. Source: UNP, volume 1, 30.3 (`web_child`); the framing is this project's own.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

pub use crate::blocking::{Stream, serve};
use crate::cli::Limits;

/// Longest request line in bytes, newline included.
pub const LINE_MAX: usize = 32;
/// An answer is handed out in blocks of at most this many bytes, so that no client holds a loop for longer.
pub const BLOCK: usize = 16 * 1024;
/// After an `ERR` line at most this much of what the client still sends is read and thrown away ...
pub const LINGER_BYTES: usize = 64 * 1024;
/// ... and for at most this long.
pub const LINGER: Duration = Duration::from_secs(1);
/// A client that takes fewer bytes per second than this over a whole answer is cut off.
pub const MIN_RATE: u32 = 500;

const ALPHABET: usize = 26;

/// The bytes of every answer: `abc...zabc...`, byte i being `a` + i mod 26.
///
/// The position decides the byte, so a lost, doubled or swapped byte is seen by the client, and no answer can be
/// mistaken for an `ERR` line. The block is longer than [`BLOCK`] by one alphabet: an answer may go on from any offset.
pub static PATTERN: [u8; BLOCK + ALPHABET] = pattern();

#[allow(clippy::indexing_slicing)] // evaluated at compile time: an index out of bounds is a compile error
const fn pattern() -> [u8; BLOCK + ALPHABET] {
    let mut block = [0; BLOCK + ALPHABET];
    let mut i = 0;
    while i < block.len() {
        block[i] = b'a' + (i % ALPHABET) as u8;
        i += 1;
    }
    block
}

/// The bytes of an answer from `offset` on: at most `left`, and at most one [`BLOCK`].
pub fn answer_from(offset: u32, left: u32) -> &'static [u8] {
    let start = offset as usize % ALPHABET;
    PATTERN.get(start..start + BLOCK.min(left as usize)).unwrap_or_default()
}

/// Why a client is told `ERR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The line is not one to ten digits.
    NotANumber,
    /// The number is 0 or above the limit.
    OutOfRange,
    /// 32 bytes came without a newline.
    LineTooLong,
    /// The line or idle deadline passed.
    Timeout,
    /// The server has as many clients as it takes.
    Busy,
}

impl Refusal {
    /// The line the client gets, newline included.
    pub fn line(self, limits: &Limits) -> String {
        match self {
            Refusal::NotANumber => "ERR number expected\n".into(),
            Refusal::OutOfRange => format!("ERR out of range 1..{}\n", limits.max_request),
            Refusal::LineTooLong => "ERR line too long\n".into(),
            Refusal::Timeout => "ERR timeout\n".into(),
            Refusal::Busy => "ERR busy\n".into(),
        }
    }
}

/// Reads a request line without its newline.
///
/// # Errors
/// [`Refusal::NotANumber`] unless it is one to ten ASCII digits and perhaps a CR (so `+5`, which Rust's `parse`
/// would take, is refused); [`Refusal::OutOfRange`] for 0 and for more than `max`.
pub fn parse_request(line: &[u8], max: u32) -> Result<u32, Refusal> {
    let digits = line.strip_suffix(b"\r").unwrap_or(line);
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::NotANumber);
    }
    // Ten digits always fit in 64 bits.
    let value = digits.iter().fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    match u32::try_from(value) {
        Ok(n) if (1..=max).contains(&n) => Ok(n),
        _ => Err(Refusal::OutOfRange),
    }
}

/// What a [`Conn`] needs from its driver now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive at most [`Conn::room`] bytes and [`feed`](Conn::feed) them, or say [`eof`](Conn::eof).
    Read,
    /// Send [`Conn::pending`] and [`consume`](Conn::consume) what the kernel took.
    Write,
    /// Send a FIN (`shutdown(SHUT_WR)`) and say [`hung_up`](Conn::hung_up): the error line is out, and what the
    /// client still sends has to be read before the close, or the close turns into a reset and the line is lost.
    HangUp,
    /// Close the descriptor.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Answering,
    Refusing,
    HangingUp,
    Lingering,
    Closed,
}

/// One client's conversation: the service with no descriptor in it.
///
/// Its memory is fixed (under 200 bytes), whatever the client asks for: answers come from one static block. While an
/// answer is pending it takes no input, so a client that does not read is not read from either.
#[derive(Debug)]
pub struct Conn {
    limits: Limits,
    state: State,
    /// Received and not yet answered; after a refusal, what is thrown away.
    line: [u8; LINE_MAX],
    len: usize,
    total: u32,
    sent: u32,
    eof: bool,
    refusal: Option<Refusal>,
    error: String,
    drained: usize,
    /// For the log.
    told: String,
    deadline: Instant,
    /// Where the minimum rate ends an answer, whatever progress it makes.
    slowest: Instant,
}

impl Conn {
    /// A client that has just been accepted.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Conn {
            limits: *limits,
            state: State::Reading,
            line: [0; LINE_MAX],
            len: 0,
            total: 0,
            sent: 0,
            eof: false,
            refusal: None,
            error: String::new(),
            drained: 0,
            told: String::new(),
            deadline: now + Duration::from_millis(limits.idle_timeout),
            slowest: now,
        }
    }

    /// A client that gets one error line and a lingering close.
    pub fn refused(why: Refusal, limits: &Limits, now: Instant) -> Self {
        let mut conn = Conn::new(limits, now);
        conn.refuse(why, now);
        conn
    }

    /// What to do next with the descriptor.
    pub fn next(&self) -> Next {
        match self.state {
            State::Reading | State::Lingering => Next::Read,
            State::Answering | State::Refusing => Next::Write,
            State::HangingUp => Next::HangUp,
            State::Closed => Next::Close,
        }
    }

    /// How many bytes [`feed`](Self::feed) takes now. At least 1 while [`next`](Self::next) says [`Next::Read`], else 0.
    pub fn room(&self) -> usize {
        match self.state {
            State::Reading => LINE_MAX - self.len,
            State::Lingering => LINGER_BYTES - self.drained,
            _ => 0,
        }
    }

    /// Where a driver that reads by itself puts what comes; then [`received`](Self::received). Empty unless
    /// [`next`](Self::next) says [`Next::Read`].
    pub fn space(&mut self) -> &mut [u8] {
        match self.state {
            State::Reading => self.line.get_mut(self.len..).unwrap_or_default(),
            // What is thrown away is not looked at: any memory does.
            State::Lingering => &mut self.line,
            _ => &mut [],
        }
    }

    /// So many bytes are in [`space`](Self::space); none: the client will send no more.
    pub fn received(&mut self, n: usize, now: Instant) {
        match self.state {
            _ if n == 0 => self.eof(),
            State::Reading => {
                if self.len == 0 {
                    self.deadline = now + Duration::from_millis(self.limits.line_timeout);
                }
                self.len = LINE_MAX.min(self.len + n);
                self.read_line(now);
            }
            State::Lingering => self.discard(n),
            _ => {}
        }
    }

    /// Takes received bytes, at most [`room`](Self::room) of them; what is beyond that is dropped.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        match self.state {
            State::Reading => {
                if self.len == 0 && !bytes.is_empty() {
                    self.deadline = now + Duration::from_millis(self.limits.line_timeout);
                }
                for (place, byte) in self.line.iter_mut().skip(self.len).zip(bytes) {
                    *place = *byte;
                    self.len += 1;
                }
                self.read_line(now);
            }
            State::Lingering => self.discard(bytes.len()),
            _ => {}
        }
    }

    fn discard(&mut self, n: usize) {
        self.drained = LINGER_BYTES.min(self.drained + n);
        if self.drained == LINGER_BYTES {
            self.state = State::Closed;
        }
    }

    /// The client will send no more. What it asked for before is still answered.
    pub fn eof(&mut self) {
        self.eof = true;
        // An unterminated line is not a request, and Reading means that no whole line is left.
        if matches!(self.state, State::Reading | State::Lingering) {
            self.state = State::Closed;
        }
    }

    /// The bytes to send now; empty unless [`next`](Self::next) says [`Next::Write`].
    pub fn pending(&self) -> &[u8] {
        match self.state {
            State::Answering => answer_from(self.sent, self.total - self.sent),
            State::Refusing => self.error.as_bytes().get(self.sent as usize..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The kernel took `n` of the [`pending`](Self::pending) bytes.
    pub fn consume(&mut self, n: usize, now: Instant) {
        let n = n.min(self.pending().len());
        if n == 0 {
            return;
        }
        self.sent += n as u32;
        self.deadline = self.slowest.min(now + Duration::from_millis(self.limits.write_timeout));
        if self.sent < self.total {
            return;
        }
        match self.state {
            State::Refusing => self.state = State::HangingUp,
            _ => {
                self.state = State::Reading;
                let first_byte_is_here = self.len > 0;
                let patience = if first_byte_is_here { self.limits.line_timeout } else { self.limits.idle_timeout };
                self.deadline = now + Duration::from_millis(patience);
                self.read_line(now);
            }
        }
    }

    /// The FIN is out; from here the rest of the client's bytes are thrown away until it closes, or the linger ends.
    pub fn hung_up(&mut self, now: Instant) {
        if self.state == State::HangingUp {
            self.state = if self.eof { State::Closed } else { State::Lingering };
            self.deadline = now + LINGER;
        }
    }

    /// When [`expire`](Self::expire) has something to do. Never further away than the longest limit.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends what has waited too long. A client in the middle of a line, or one that never said a word, gets
    /// `ERR timeout`; one that has had its answers and only stays is closed without a word, as HTTP servers do; one
    /// that does not read is closed.
    pub fn expire(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        match self.state {
            State::Reading if self.len == 0 && self.total > 0 => self.state = State::Closed,
            State::Reading => self.refuse(Refusal::Timeout, now),
            State::Answering | State::Refusing => {
                self.refusal = Some(Refusal::Timeout);
                self.state = State::Closed;
            }
            State::HangingUp | State::Lingering => self.state = State::Closed,
            State::Closed => {}
        }
    }

    /// How the conversation went.
    ///
    /// # Errors
    /// `InvalidData` for a bad request, `TimedOut` for a deadline, `ResourceBusy` for a client too many; the message
    /// is the `ERR` line and the refused line, escaped.
    pub fn result(&self) -> io::Result<()> {
        match self.refusal {
            None => Ok(()),
            Some(Refusal::Busy) => Err(io::Error::new(ErrorKind::ResourceBusy, self.told.clone())),
            Some(Refusal::Timeout) if self.error.is_empty() => {
                let text = format!("took {} of {} bytes, then too little for too long", self.sent, self.total);
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
            Some(Refusal::Timeout) => Err(io::Error::new(ErrorKind::TimedOut, self.told.clone())),
            Some(_) => Err(io::Error::new(ErrorKind::InvalidData, self.told.clone())),
        }
    }

    /// Answers the first whole line that has been received, if there is one.
    fn read_line(&mut self, now: Instant) {
        let received = self.line.get(..self.len).unwrap_or_default();
        let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
            if self.len == LINE_MAX {
                self.refuse(Refusal::LineTooLong, now);
            } else if self.eof {
                self.state = State::Closed;
            }
            return;
        };
        match parse_request(received.get(..end).unwrap_or_default(), self.limits.max_request) {
            Ok(n) => {
                self.line.copy_within(end + 1..self.len, 0);
                self.len -= end + 1;
                self.begin_sending(State::Answering, n, now);
            }
            Err(why) => {
                self.len = end;
                self.refuse(why, now);
            }
        }
    }

    fn refuse(&mut self, why: Refusal, now: Instant) {
        self.refusal = Some(why);
        self.error = why.line(&self.limits);
        self.told = self.error.trim_end().to_owned();
        if !matches!(why, Refusal::Busy | Refusal::Timeout) {
            let line = self.line.get(..self.len).unwrap_or_default().escape_ascii();
            self.told = format!("{}, got '{line}'", self.told);
        }
        self.begin_sending(State::Refusing, self.error.len() as u32, now);
    }

    fn begin_sending(&mut self, state: State, total: u32, now: Instant) {
        let patience = Duration::from_millis(self.limits.write_timeout);
        self.state = state;
        self.total = total;
        self.sent = 0;
        self.deadline = now + patience;
        self.slowest = now + patience + Duration::from_secs(u64::from(total / MIN_RATE));
    }
}
