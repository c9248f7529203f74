//! What waits to be sent to one client: a bounded queue of bytes that holds whole lines.

use bytes::{Buf, BytesMut};

use crate::cli::Slow;

/// What happened to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The line is queued.
    Queued,
    /// The line is dropped and counted. The client will be sent the number of lines that it missed.
    Dropped,
    /// The queue is full, and the policy is to disconnect a slow reader.
    Overflow,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Outbox {
    bytes: BytesMut,
    limit: usize,
    policy: Slow,
    missed: u64,
}

impl Outbox {
    /// An empty queue for `limit` bytes.
    pub fn new(limit: usize, policy: Slow) -> Outbox {
        Outbox { bytes: BytesMut::new(), limit, policy, missed: 0 }
    }

    /// Queues a line, or drops it, as the policy says. An empty queue takes any line.
    pub fn push(&mut self, line: &[u8]) -> Fit {
        if self.bytes.is_empty() || self.bytes.len() + line.len() <= self.limit || self.policy == Slow::Grow {
            self.bytes.extend_from_slice(line);
            return Fit::Queued;
        }
        match self.policy {
            Slow::Drop => {
                self.missed += 1;
                Fit::Dropped
            }
            _ => Fit::Overflow,
        }
    }

    /// Queues the final message, even if the queue is full.
    pub fn push_last(&mut self, line: &str) {
        self.missed = 0;
        self.bytes.extend_from_slice(line.as_bytes());
        if !line.is_empty() {
            self.bytes.extend_from_slice(b"\n");
        }
    }

    /// The bytes to send, in order: all lines that wait, for one system call.
    pub fn pending(&self) -> &[u8] {
        &self.bytes
    }

    /// The kernel took `n` bytes.
    pub fn sent(&mut self, n: usize) {
        self.bytes.advance(n.min(self.bytes.len()));
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new(); // an idle client needs no memory
            self.report_dropped_lines();
        }
    }

    /// Discards what waits.
    pub fn clear(&mut self) {
        self.bytes = BytesMut::new();
    }

    /// A client that missed lines must know that it did.
    fn report_dropped_lines(&mut self) {
        let plural = if self.missed == 1 { "" } else { "s" };
        if self.missed > 0 {
            self.bytes.extend_from_slice(format!("* you missed {} line{plural}\n", self.missed).as_bytes());
        }
        self.missed = 0;
    }
}

#[cfg(test)]
#[path = "tests/outbox.rs"]
mod tests;
