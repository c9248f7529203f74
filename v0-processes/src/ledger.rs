//! The chat log under a lock: one writer, the hub, and still flock(2), so that a second server or a tool that rotates the
//! file can take its turn. Whoever has the lock may keep it, but not the room waiting.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use chat::log::Log as ChatLog;
use common::report::Log;

/// Bytes that wait at most for somebody else to let go of the lock.
const WAITING: usize = 1 << 20;
/// Between two looks at a lock that somebody else has.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is to be written, and where.
pub struct Ledger {
    /// None: --no-log.
    log: Option<ChatLog>,
    waiting: Vec<u8>,
    report: Log,
}

impl Ledger {
    pub fn new(log: Option<ChatLog>, report: Log) -> Ledger {
        Ledger { log, waiting: Vec::new(), report }
    }

    /// Writes whole records, or keeps them for the next call.
    pub fn write(&mut self, records: Vec<u8>, is_last: bool) {
        if self.waiting.len() + records.len() <= WAITING {
            self.waiting.extend(records);
        } else {
            self.report.repeated("WARN", "chat log: locked by somebody else for too long, lines are lost");
        }
        let Some(log) = self.log.as_mut().filter(|_| !self.waiting.is_empty()) else { return };
        let is_locked = flock(log, libc::LOCK_EX | libc::LOCK_NB);
        // The last try does without the lock: the file is in append mode, and lines stay whole.
        if is_locked || is_last {
            if let Err(e) = log.append(&std::mem::take(&mut self.waiting)) {
                self.report.repeated("WARN", &format!("chat log: {e}"));
            }
            flock(log, libc::LOCK_UN);
        }
    }

    /// True if something still waits for the lock.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

fn flock(file: &impl AsFd, how: libc::c_int) -> bool {
    // SAFETY: the descriptor is open.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), how) == 0 }
}
