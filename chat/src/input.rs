//! One client's receiving side: it takes bytes and gives events for the room, at the client's rate.

use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::event::Event;
use crate::line::{FIRST_MAX, Framed, LINE_MAX, LineBuf};
use crate::rate::{Bucket, Token};

/// What a server does next with the receiving side of a socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Pass this event to the room, and ask again.
    Event(Event),
    /// There is no whole line: read.
    Read,
    /// The client has exceeded its rate: do not read before this time. The bytes stay in the socket's buffers, and TCP flow
    /// control slows the client down.
    Wait(Instant),
}

/// Framing and rate limit of one client. Call read(2) only after [`Next::Read`], with a buffer of a few KiB: that bounds
/// the memory of an `Input`.
#[derive(Debug)]
pub struct Input {
    lines: LineBuf,
    bucket: Bucket,
    /// The first line has been taken. It has a limit of its own.
    is_greeted: bool,
    /// A line has been waiting for its token since this time.
    held_since: Option<Instant>,
    /// For how long lines have waited since the bucket was last full.
    held: Duration,
    flood_timeout: Duration,
    is_over: bool,
}

impl Input {
    /// A client that has sent nothing yet.
    pub fn new(limits: &Limits, now: Instant) -> Input {
        Input {
            lines: LineBuf::new(FIRST_MAX),
            bucket: Bucket::new(limits.rate, limits.burst, now),
            is_greeted: false,
            held_since: None,
            held: Duration::ZERO,
            flood_timeout: Duration::from_millis(limits.flood_timeout),
            is_over: false,
        }
    }

    /// Takes received bytes. After an event that ends the session the bytes are discarded.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.is_over {
            self.lines.push(bytes);
        }
    }

    /// What to do next.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.is_over || !self.lines.is_ready() {
            return Next::Read;
        }
        if self.bucket.is_full(now) {
            self.held = Duration::ZERO;
        }
        let held = self.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if self.held + held > self.flood_timeout {
            self.is_over = true;
            return Next::Event(Event::TooFast);
        }
        if let Token::Wait(until) = self.bucket.take(now) {
            let since = *self.held_since.get_or_insert(now);
            return Next::Wait(until.min(since + self.flood_timeout - self.held + Duration::from_millis(1)));
        }
        self.held += held;
        self.held_since = None;
        self.take()
    }

    fn take(&mut self) -> Next {
        let framed = self.lines.next();
        if !self.is_greeted {
            self.is_greeted = true;
            self.lines.set_limit(LINE_MAX);
        }
        match framed {
            Some(Framed::Line(text)) => Next::Event(Event::Line(text)),
            Some(Framed::NotUtf8) => Next::Event(Event::NotUtf8),
            Some(Framed::TooLong) => {
                self.is_over = true;
                Next::Event(Event::TooLong)
            }
            None => Next::Read,
        }
    }
}

#[cfg(test)]
#[path = "tests/input.rs"]
mod tests;
