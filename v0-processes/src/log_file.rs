//! The log file under a lock. The hub is its only writer in this server, but a second server or a
//! tool that renames the file may use it too: each of them takes flock(2) first.

use std::mem::take;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use chat::log::Log as ChatLog;
use common::report::Log;

/// How many bytes may wait while another process holds the lock.
const MAX_WAITING: usize = 1 << 20;
/// How often the hub tries to take a lock that another process holds.
const INTERVAL: Duration = Duration::from_millis(50);

/// The log file, and the records that are not written yet.
pub struct LogFile {
    /// None without a log file.
    file: Option<ChatLog>,
    waiting: Vec<u8>,
    log: Log,
}

impl LogFile {
    pub fn new(file: Option<ChatLog>, log: &Log) -> LogFile {
        LogFile { file, waiting: Vec::new(), log: log.clone() }
    }

    /// Writes whole records. While another process holds the lock, it keeps them for the next call:
    /// the hub must not sleep in flock.
    pub fn write(&mut self, records: Vec<u8>, is_last: bool) {
        if self.waiting.len() + records.len() <= MAX_WAITING {
            self.waiting.extend(records);
        } else {
            self.log.repeated("WARN", "flock: another process holds the lock; lines are lost");
        }
        let Some(file) = self.file.as_mut().filter(|_| !self.waiting.is_empty()) else { return };
        // The last records are written without the lock. The file is in append mode, so one write
        // call does not overwrite the bytes of another process.
        if flock(file, libc::LOCK_EX | libc::LOCK_NB) || is_last {
            if let Err(e) = file.append(&take(&mut self.waiting)) {
                self.log.repeated("WARN", &format!("write to the log file: {e}"));
            }
            flock(file, libc::LOCK_UN);
        }
    }

    /// When to call [`write`](Self::write) again, if records are waiting.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| Instant::now() + INTERVAL)
    }
}

fn flock(file: &impl AsFd, operation: libc::c_int) -> bool {
    // SAFETY: the descriptor is open.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), operation) == 0 }
}
