//! One client's sending half: bytes in, events for the hub out, at the client's rate.

use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::event::Event;
use crate::line::{FIRST_MAX, Framed, LINE_MAX, LineBuf};
use crate::rate::{Bucket, Token};

/// What a server does next with the receiving side of a socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Hand this to the hub, and ask again.
    Tell(Event),
    /// There is no whole line: read.
    Read,
    /// The client has lines, and no right to send yet. Leave the socket alone until then; its send buffer fills, and
    /// the client itself is made to wait.
    Wait(Instant),
}

/// Framing and rate limit of one client. Read at most a few KiB at a time, and only where [`next`](Self::next) says
/// [`Next::Read`]: that bounds its memory.
#[derive(Debug)]
pub struct Input {
    lines: LineBuf,
    bucket: Bucket,
    /// The first line has its own cap.
    greeted: bool,
    /// Since when a line waits for its token.
    held_since: Option<Instant>,
    /// How long lines have waited, since the bucket was last full.
    held: Duration,
    flood_timeout: Duration,
    over: bool,
}

impl Input {
    /// A client that has said nothing yet.
    pub fn new(limits: &Limits, now: Instant) -> Input {
        Input {
            lines: LineBuf::new(FIRST_MAX),
            bucket: Bucket::new(limits.rate, limits.burst, now),
            greeted: false,
            held_since: None,
            held: Duration::ZERO,
            flood_timeout: Duration::from_millis(limits.flood_timeout),
            over: false,
        }
    }

    /// Takes received bytes. After [`close`](Self::close), or a last event, it throws them away.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.over {
            self.lines.push(bytes);
        }
    }

    /// The conversation is over: from here on there is only [`Next::Read`], so that the server can drain the socket
    /// before it closes.
    pub fn close(&mut self) {
        self.over = true;
    }

    /// What to do next.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.over || !self.lines.is_ready() {
            return Next::Read;
        }
        if self.bucket.is_full(now) {
            self.held = Duration::ZERO;
        }
        let held = self.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if self.held + held > self.flood_timeout {
            self.over = true;
            return Next::Tell(Event::TooFast);
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
        if !self.greeted {
            self.greeted = true;
            self.lines.set_cap(LINE_MAX);
        }
        match framed {
            Some(Framed::Line(text)) => Next::Tell(Event::Line(text)),
            Some(Framed::NotUtf8) => Next::Tell(Event::NotUtf8),
            Some(Framed::TooLong) => {
                self.over = true;
                Next::Tell(Event::TooLong)
            }
            None => Next::Read,
        }
    }
}

#[cfg(test)]
#[path = "tests/input.rs"]
mod tests;
