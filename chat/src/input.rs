//! One client's sending half: bytes in, events for the hub out, at the client's rate.

use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::hub::Event;
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
mod tests {
    use super::*;

    fn input(now: Instant) -> Input {
        let mut input = Input::new(&Limits::default(), now);
        input.feed(b"bob\n");
        assert_eq!(input.next(now), Next::Tell(Event::Line("bob".into())));
        input
    }

    #[test]
    fn a_thousand_lines_are_slowed_and_not_lost() {
        let start = Instant::now();
        let mut input = input(start);
        let mut now = start;
        let mut texts = (0..1000).map(|nth| format!("line {nth}"));
        let all: String = texts.clone().map(|text| text + "\n").collect();
        let mut chunks = all.as_bytes().chunks(4096);
        loop {
            match input.next(now) {
                Next::Tell(Event::Line(text)) => assert_eq!(Some(text), texts.next()),
                Next::Tell(other) => panic!("{other:?}"),
                Next::Wait(until) => {
                    assert!(until > now);
                    now = until;
                }
                Next::Read => match chunks.next() {
                    Some(chunk) => input.feed(chunk),
                    None => break,
                },
            }
        }
        assert_eq!(texts.next(), None);
        // 19 at once (the nick was one of the burst), the others at ten a second.
        assert_eq!(now - start, Duration::from_millis(98_100));
    }

    #[test]
    fn who_never_stops_is_told_to_go() {
        let start = Instant::now();
        let mut input = input(start);
        let mut now = start;
        let mut lines = 0;
        loop {
            match input.next(now) {
                Next::Tell(Event::TooFast) => break,
                Next::Tell(_) => lines += 1,
                Next::Wait(until) => now = until,
                Next::Read => input.feed(&b"x\n".repeat(100)),
            }
        }
        assert!((99..=101).contains(&(now - start).as_secs()), "{:?}", now - start);
        assert!((1000..1050).contains(&lines), "{lines}");
        input.feed(b"more\n");
        assert_eq!(input.next(now), Next::Read, "the last event was the last");
    }

    #[test]
    fn a_quiet_time_is_a_fresh_start() {
        let mut now = Instant::now();
        let mut input = input(now);
        for _ in 0..50 {
            input.feed(&b"x\n".repeat(60));
            loop {
                match input.next(now) {
                    Next::Tell(event) => assert_eq!(event, Event::Line("x".into())),
                    Next::Wait(until) => now = until,
                    Next::Read => break,
                }
            }
            now += Duration::from_secs(3);
        }
    }

    #[test]
    fn a_long_first_line_is_no_nick() {
        let now = Instant::now();
        let mut first = Input::new(&Limits::default(), now);
        first.feed(&[b'x'; FIRST_MAX]);
        assert_eq!(first.next(now), Next::Tell(Event::TooLong));
        assert_eq!(first.next(now), Next::Read);

        let mut input = input(now);
        input.feed(&[b'x'; LINE_MAX - 1]);
        assert_eq!(input.next(now), Next::Read);
        input.feed(b"\n");
        assert!(matches!(input.next(now), Next::Tell(Event::Line(_))));
    }
}
