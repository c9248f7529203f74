//! The steps of the protocol, for people who watch: with `--events`, one JSON object per line.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::report::Log;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::record::{Answer, Nonce, Question, Status, hex};

/// Bytes that are not a question are reported at most once in this interval, with their number:
/// otherwise a client could fill the log through the FIFO.
const JUNK_INTERVAL: Duration = Duration::from_secs(1);

/// One step.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A question was read.
    Question { pid: i32, nonce: String, n: i32, from: &'static str },
    /// The answer was written.
    Answer { pid: i32, nonce: String, nb: usize, status: Status },
    /// The answer could not be written. The server goes on.
    Dropped { pid: i32, nonce: String, why: String },
    /// SIGUSR1 was sent.
    Signal { pid: i32 },
    /// SIGUSR1 was not sent.
    NoSignal { pid: i32, why: String },
    /// The client has acknowledged.
    Ack { pid: u32 },
    /// The client has not acknowledged in time.
    AckLate { pid: i32 },
    /// A connection was closed.
    Closed { pid: i32, why: &'static str },
    /// Bytes that are not a question, since the last event of this kind.
    Junk { bytes: u64 },
    /// Events that were not printed, because stdout had no room.
    Lost { events: u64 },
}

impl Event {
    /// A question from the process `pid`, which came by `from`.
    pub fn question(pid: i32, question: &Question, from: &'static str) -> Self {
        Event::Question { pid, nonce: hex(&question.nonce), n: question.n, from }
    }

    /// The answer to the process `pid`.
    pub fn answer(pid: i32, answer: &Answer) -> Self {
        let (nonce, nb) = (hex(&answer.nonce), answer.values.len());
        Event::Answer { pid, nonce, nb, status: answer.status }
    }

    /// The answer that could not be written.
    pub fn dropped(pid: i32, nonce: &Nonce, error: &io::Error) -> Self {
        Event::Dropped { pid, nonce: hex(nonce), why: error.to_string() }
    }
}

/// Prints events, or counts those that it cannot print.
#[derive(Debug)]
pub struct Events {
    are_printed: bool,
    log: Log,
    lost: u64,
    junk: u64,
    junk_reported: Option<Instant>,
}

impl Events {
    /// If no events are printed, junk is reported in the log.
    #[must_use]
    pub fn new(are_printed: bool) -> Self {
        Self { are_printed, log: Log::default(), lost: 0, junk: 0, junk_reported: None }
    }

    /// The log, for what is not an event.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Prints an event. It never blocks: if nobody reads the pipe behind stdout, the event is lost,
    /// and the next one that is printed comes after the number of lost ones.
    pub fn emit(&mut self, event: &Event) {
        if !self.are_printed {
            return;
        }
        if self.lost > 0 && print(&Event::Lost { events: self.lost }) {
            self.lost = 0;
        }
        if self.lost > 0 || !print(event) {
            self.lost += 1;
        }
    }

    /// Counts bytes that are not a question.
    pub fn add_junk(&mut self, bytes: u64) {
        self.junk += bytes;
    }

    /// When [`report_junk`](Self::report_junk) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.junk_reported.filter(|_| self.junk > 0).map(|reported| reported + JUNK_INTERVAL)
    }

    /// Reports the junk, at most once in the interval.
    pub fn report_junk(&mut self) {
        let is_due = self.junk_reported.is_none_or(|reported| reported.elapsed() >= JUNK_INTERVAL);
        if self.junk == 0 || !is_due {
            return;
        }
        let bytes = std::mem::take(&mut self.junk);
        self.junk_reported = Some(Instant::now());
        match self.are_printed {
            true => self.emit(&Event::Junk { bytes }),
            false => self.log.warn(&format!("{bytes} bytes that are not a question")),
        }
    }
}

/// Writes one line. False: it is lost. If poll reports POLLOUT for a pipe, the pipe has room for
/// PIPE_BUF bytes, which is more than any event has; so the write does not block.
fn print(event: &Event) -> bool {
    let mut stdout = io::stdout();
    let has_room = {
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    };
    let line = serde_json::to_string(event).map(|line| line + "\n").unwrap_or_default();
    has_room && stdout.write_all(line.as_bytes()).is_ok()
}
