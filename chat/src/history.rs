//! The lines that were said to the room, for `/history`.

use std::collections::VecDeque;
use std::time::SystemTime;

/// Most lines in an answer to `/history`.
pub const HISTORY_MOST: usize = 100;
/// Most bytes in an answer to `/history`: an answer alone must not overflow the client's queue.
const HISTORY_BYTES: usize = 64 * 1024;

/// One line that was said to the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `2026-01-31T12:00:00.123Z`.
    pub time: String,
    /// The number of the line, counted from 1.
    pub number: u64,
    /// `<alice> text`.
    pub line: String,
}

impl Said {
    /// A line said at `time`.
    pub fn new(time: SystemTime, number: u64, line: String) -> Said {
        Said { time: humantime::format_rfc3339_millis(time).to_string(), number, line }
    }

    /// The record in the log: `TIME NUMBER <alice> text` and a LF.
    pub fn record(&self) -> Vec<u8> {
        format!("{} {} {}\n", self.time, self.number, self.line).into_bytes()
    }

    /// Reads a record. None: the text is not a record of a chat server.
    pub(crate) fn parse(record: &str) -> Option<Said> {
        let (time, rest) = record.split_once(' ')?;
        let (number, line) = rest.split_once(' ')?;
        humantime::parse_rfc3339(time).ok()?;
        let said = Said { time: time.to_owned(), number: number.parse().ok()?, line: crate::line::escape(line) };
        line.starts_with('<').then_some(said)
    }
}

/// The last lines, the oldest first.
#[derive(Debug)]
pub struct History {
    lines: VecDeque<Said>,
    most: usize,
    number: u64,
}

impl History {
    /// A history of at most `most` lines. `said`: the lines from before this start.
    pub fn new(most: usize, said: Vec<Said>) -> History {
        let number = said.iter().map(|said| said.number).max().unwrap_or(0);
        History { lines: said.into(), most, number }
    }

    /// Adds a line.
    pub fn add(&mut self, line: String) -> Said {
        self.number += 1;
        let said = Said::new(SystemTime::now(), self.number, line);
        self.lines.push_back(said.clone());
        if self.lines.len() > self.most {
            self.lines.pop_front();
        }
        said
    }

    /// The answer to `/history N`.
    pub fn answer(&self, n: usize) -> String {
        let mut room = HISTORY_BYTES;
        let fits = |said: &&Said| {
            room = room.saturating_sub(said.line.len() + 64);
            room > 0
        };
        let last: Vec<&Said> = self.lines.iter().rev().take(n.min(HISTORY_MOST)).take_while(fits).collect();
        let text: String = last.iter().rev().map(|said| format!("~ {} {}\n", said.time, said.line)).collect();
        text + "= end history"
    }
}

#[cfg(test)]
impl History {
    /// Makes all lines old, so that a test knows their times.
    pub(crate) fn make_old(&mut self) {
        self.lines.iter_mut().for_each(|said| said.time = "1970-01-01T00:00:00.000Z".into());
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = Said> {
        self.lines.iter().cloned()
    }
}
