//! The chat log under a lock: one writer, the hub, and still flock(2), so that a second server or a tool that rotates the
//! file can take its turn.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use chat::history::Log as ChatLog;
use common::report::Log;

/// Bytes that wait at most for somebody else to let go of the lock.
const WAITING: usize = 1 << 20;
/// Between two looks at a lock that somebody else has.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is to be written, and where.
pub struct Ledger {
    /// None: --no-log.
    log: Option<ChatLog>,
    waiting: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

impl Ledger {
    pub fn new(log: Option<ChatLog>) -> Ledger {
        Ledger { log, waiting: VecDeque::new(), bytes: 0 }
    }

    /// Writes a record, or keeps it for later: whoever has the lock may keep it, but not the room waiting.
    pub fn append(&mut self, record: &Arc<[u8]>, report: &Log) {
        if self.bytes + record.len() > WAITING {
            report.repeated("WARN", "chat log: locked by somebody else for too long, lines are lost");
            return;
        }
        self.bytes += record.len();
        self.waiting.push_back(Arc::clone(record));
        self.flush(libc::LOCK_EX | libc::LOCK_NB, report);
    }

    /// True if something still waits for the lock.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Another try.
    pub fn flush(&mut self, how: libc::c_int, report: &Log) {
        let Some(log) = self.log.as_mut() else { return self.clear() };
        if self.waiting.is_empty() || flock(log, how).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
            return;
        }
        for record in self.waiting.drain(..) {
            if let Err(e) = log.append(&record) {
                report.repeated("WARN", &format!("chat log: {e}"));
            }
        }
        let _ = flock(log, libc::LOCK_UN);
        self.clear();
    }

    /// The last try does without the lock: the file is in append mode, and lines stay whole.
    pub fn close(&mut self, report: &Log) {
        self.flush(libc::LOCK_EX | libc::LOCK_NB, report);
        if let Some(log) = self.log.as_mut() {
            self.waiting.drain(..).for_each(|record| drop(log.append(&record)));
        }
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

fn flock(file: &impl AsFd, how: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::flock(file.as_fd().as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
