//! The byte service: read a decimal number and a newline, answer that many bytes; then the next request.
//!
//! [`Conn`] is the whole service without a descriptor: it takes bytes, returns bytes, and the caller passes the
//! time. An event loop and an io_uring server make their own calls for it. [`serve`] makes blocking calls for the
//! same `Conn`, in servers that have a process or a thread per client. All servers answer with the same bytes under
//! the same limits, so a timing compares only their concurrency.
//!
//! Grammar: `1*10DIGIT [CR] LF`, a value from 1 to the limit. After an invalid line the server sends one `ERR` line
//! and reads no further request. Source: UNP, volume 1, section 30.3 (`web_child`); the line format is our own.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

pub use crate::blocking::{Stream, serve};
use crate::cli::Limits;

/// Longest request line in bytes, newline included.
pub const LINE_MAX: usize = 32;
/// One write sends at most this many bytes of an answer, so that one client does not delay the others of an event
/// loop.
pub const BLOCK: usize = 16 * 1024;
/// After an `ERR` line the server reads and discards at most this many bytes ...
pub const LINGER_BYTES: usize = 64 * 1024;
/// ... within at most this time.
pub const LINGER: Duration = Duration::from_secs(1);
/// A client that takes fewer bytes per second than this, over a whole answer, is disconnected.
pub const MIN_RATE: u32 = 500;

const ALPHABET: usize = 26;

/// The bytes of every answer: `abc...zabc...`, byte i being `a` + i mod 26.
///
/// The position determines the byte, so a client detects a lost, repeated or swapped byte, and no answer looks like
/// an `ERR` line. The array is longer than [`BLOCK`] by one alphabet, so that a block can start at any offset.
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

/// Why a client receives an `ERR` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The line is not one to ten digits.
    NotANumber,
    /// The number is 0 or above the limit.
    OutOfRange,
    /// 32 bytes contain no newline.
    LineTooLong,
    /// The line timeout or the idle timeout has passed.
    Timeout,
    /// The server is at its limit of clients.
    Busy,
}

impl Rejection {
    /// The line that the client receives, with its newline.
    pub fn line(self, limits: &Limits) -> String {
        match self {
            Rejection::NotANumber => "ERR number expected\n".into(),
            Rejection::OutOfRange => format!("ERR out of range 1..{}\n", limits.max_request),
            Rejection::LineTooLong => "ERR line too long\n".into(),
            Rejection::Timeout => "ERR timeout\n".into(),
            Rejection::Busy => "ERR busy\n".into(),
        }
    }
}

/// Parses a request line without its newline.
///
/// # Errors
/// [`Rejection::NotANumber`] unless the line is one to ten ASCII digits and an optional CR (`+5`, which Rust's
/// `parse` accepts, is rejected); [`Rejection::OutOfRange`] for 0 and for more than `max`.
pub fn parse_request(line: &[u8], max: u32) -> Result<u32, Rejection> {
    let digits = line.strip_suffix(b"\r").unwrap_or(line);
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Rejection::NotANumber);
    }
    // Ten digits fit in 64 bits.
    let value = digits.iter().fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    match u32::try_from(value) {
        Ok(n) if (1..=max).contains(&n) => Ok(n),
        _ => Err(Rejection::OutOfRange),
    }
}

/// What a [`Conn`] needs from its caller now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive at most [`Conn::room`] bytes and [`feed`](Conn::feed) them, or report [`eof`](Conn::eof).
    Read,
    /// Send [`Conn::pending`], and [`consume`](Conn::consume) the number of bytes that the kernel took.
    Write,
    /// Send a FIN (`shutdown(SHUT_WR)`) and report [`write_shut_down`](Conn::write_shut_down). The `ERR` line has
    /// been sent. A close with unread bytes would send a RST, and the client could lose the line: so read on until
    /// EOF.
    ShutdownWrite,
    /// Close the descriptor.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Answering,
    Rejecting,
    ShuttingDown,
    Lingering,
    Closed,
}

/// The session of one client: the service without a descriptor.
///
/// Its memory is fixed (less than 200 bytes) for every request, because all answers come from one static array.
/// While an answer is pending it takes no input: the server reads nothing from a client that does not read.
#[derive(Debug)]
pub struct Conn {
    limits: Limits,
    state: State,
    /// Received and not yet answered. After a rejection: discarded bytes.
    line: [u8; LINE_MAX],
    len: usize,
    total: u32,
    sent: u32,
    eof: bool,
    rejection: Option<Rejection>,
    error: String,
    drained: usize,
    /// The rejection, for the log.
    log_text: String,
    deadline: Instant,
    /// When the minimum rate ends this answer, even if it makes progress.
    slowest: Instant,
}

impl Conn {
    /// The session of a client that has just been accepted.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Conn {
            limits: *limits,
            state: State::Reading,
            line: [0; LINE_MAX],
            len: 0,
            total: 0,
            sent: 0,
            eof: false,
            rejection: None,
            error: String::new(),
            drained: 0,
            log_text: String::new(),
            deadline: now + Duration::from_millis(limits.idle_timeout),
            slowest: now,
        }
    }

    /// The session of a rejected client: one `ERR` line, a FIN, and reading until EOF.
    pub fn rejected(why: Rejection, limits: &Limits, now: Instant) -> Self {
        let mut conn = Conn::new(limits, now);
        conn.reject(why, now);
        conn
    }

    /// What the caller has to do next with the descriptor.
    pub fn next(&self) -> Next {
        match self.state {
            State::Reading | State::Lingering => Next::Read,
            State::Answering | State::Rejecting => Next::Write,
            State::ShuttingDown => Next::ShutdownWrite,
            State::Closed => Next::Close,
        }
    }

    /// How many bytes [`feed`](Self::feed) takes now: at least 1 if [`next`](Self::next) is [`Next::Read`],
    /// otherwise 0.
    pub fn room(&self) -> usize {
        match self.state {
            State::Reading => LINE_MAX - self.len,
            State::Lingering => LINGER_BYTES - self.drained,
            _ => 0,
        }
    }

    /// The buffer for a caller that reads into the session itself, and then calls [`received`](Self::received).
    /// Empty unless [`next`](Self::next) is [`Next::Read`].
    pub fn space(&mut self) -> &mut [u8] {
        match self.state {
            State::Reading => self.line.get_mut(self.len..).unwrap_or_default(),
            // The discarded bytes may overwrite one another.
            State::Lingering => &mut self.line,
            _ => &mut [],
        }
    }

    /// Reports that `n` bytes have been read into [`space`](Self::space). 0 is end of file.
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

    /// Takes received bytes, for a caller that reads into its own buffer: at most [`room`](Self::room) bytes. No
    /// byte is end of file.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        for (slot, byte) in self.space().iter_mut().zip(bytes) {
            *slot = *byte;
        }
        self.received(bytes.len(), now);
    }

    fn discard(&mut self, n: usize) {
        self.drained = LINGER_BYTES.min(self.drained + n);
        if self.drained == LINGER_BYTES {
            self.state = State::Closed;
        }
    }

    /// Reports end of file. Requests that have been received are still answered.
    pub fn eof(&mut self) {
        self.eof = true;
        // A line without a newline is not a request. In `Reading` no complete line is left.
        if matches!(self.state, State::Reading | State::Lingering) {
            self.state = State::Closed;
        }
    }

    /// The bytes to send now. Empty unless [`next`](Self::next) is [`Next::Write`].
    pub fn pending(&self) -> &[u8] {
        match self.state {
            State::Answering => answer_from(self.sent, self.total - self.sent),
            State::Rejecting => self.error.as_bytes().get(self.sent as usize..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Reports that the kernel took `n` of the [`pending`](Self::pending) bytes.
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
            State::Rejecting => self.state = State::ShuttingDown,
            _ => {
                self.state = State::Reading;
                let has_first_byte = self.len > 0;
                let timeout = if has_first_byte { self.limits.line_timeout } else { self.limits.idle_timeout };
                self.deadline = now + Duration::from_millis(timeout);
                self.read_line(now);
            }
        }
    }

    /// Reports that the FIN has been sent. From now on received bytes are discarded, until EOF or [`LINGER`].
    pub fn write_shut_down(&mut self, now: Instant) {
        if self.state == State::ShuttingDown {
            self.state = if self.eof { State::Closed } else { State::Lingering };
            self.deadline = now + LINGER;
        }
    }

    /// When the session has to be given to [`expire`](Self::expire): at most one timeout from now.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends the session if its deadline has passed. A client that has sent a part of a line, or nothing at all,
    /// receives `ERR timeout`. A client that is idle after an answer, and a client that does not read, are closed
    /// without a line.
    pub fn expire(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        match self.state {
            State::Reading if self.len == 0 && self.total > 0 => self.state = State::Closed,
            State::Reading => self.reject(Rejection::Timeout, now),
            State::Answering | State::Rejecting => {
                self.rejection = Some(Rejection::Timeout);
                self.state = State::Closed;
            }
            State::ShuttingDown | State::Lingering => self.state = State::Closed,
            State::Closed => {}
        }
    }

    /// How the session ended.
    ///
    /// # Errors
    /// `InvalidData` for a bad request, `TimedOut` for a timeout, `ResourceBusy` at the limit of clients. The
    /// message is the `ERR` line and the rejected line, escaped.
    pub fn result(&self) -> io::Result<()> {
        match self.rejection {
            None => Ok(()),
            Some(Rejection::Busy) => Err(io::Error::new(ErrorKind::ResourceBusy, self.log_text.clone())),
            Some(Rejection::Timeout) if self.error.is_empty() => {
                let text = format!("write timeout: the client took {} of {} bytes", self.sent, self.total);
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
            Some(Rejection::Timeout) => Err(io::Error::new(ErrorKind::TimedOut, self.log_text.clone())),
            Some(_) => Err(io::Error::new(ErrorKind::InvalidData, self.log_text.clone())),
        }
    }

    /// Starts the answer to the first complete line, if there is one.
    fn read_line(&mut self, now: Instant) {
        let received = self.line.get(..self.len).unwrap_or_default();
        let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
            if self.len == LINE_MAX {
                self.reject(Rejection::LineTooLong, now);
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
                self.reject(why, now);
            }
        }
    }

    fn reject(&mut self, why: Rejection, now: Instant) {
        self.rejection = Some(why);
        self.error = why.line(&self.limits);
        self.log_text = self.error.trim_end().to_owned();
        if !matches!(why, Rejection::Busy | Rejection::Timeout) {
            let line = self.line.get(..self.len).unwrap_or_default().escape_ascii();
            self.log_text = format!("{}, got '{line}'", self.log_text);
        }
        self.begin_sending(State::Rejecting, self.error.len() as u32, now);
    }

    fn begin_sending(&mut self, state: State, total: u32, now: Instant) {
        let timeout = Duration::from_millis(self.limits.write_timeout);
        self.state = state;
        self.total = total;
        self.sent = 0;
        self.deadline = now + timeout;
        self.slowest = now + timeout + Duration::from_secs(u64::from(total / MIN_RATE));
    }
}
