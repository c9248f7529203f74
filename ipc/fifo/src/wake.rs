//! SIGUSR1 in both directions: the server wakes a client whose answer is written, and the client
//! acknowledges. The answer is in the FIFO in any case; the signal only says that it is there.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::events::{Event, Events};
use crate::pidfd::{catches, pidfd_open, pidfd_send_signal};

/// A client that has not acknowledged within this time is reported. The server does not wait for
/// it.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients whose acknowledgement is awaited at once; of further clients it is not.
const AWAITED: usize = 64;

/// SIGUSR1, blocked in the whole process and read from a descriptor.
#[derive(Debug)]
pub struct Wake {
    is_enabled: bool,
    signals: SignalFd,
    /// The clients that have been signalled and have not acknowledged, and since when.
    awaited: HashMap<i32, Instant>,
}

impl Wake {
    /// Blocks SIGUSR1 even if the server does not send it: its default action ends the process, and
    /// any process of this user can send it.
    ///
    /// # Errors
    /// The errors of sigprocmask(2) and signalfd(2).
    pub fn new(is_enabled: bool) -> Result<Self> {
        let usr1 = SigSet::from_iter([Signal::SIGUSR1]);
        usr1.thread_block().context("sigprocmask")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&usr1, flags).context("signalfd")?;
        Ok(Self { is_enabled, signals, awaited: HashMap::new() })
    }

    /// Sends SIGUSR1 to the client whose answer has been written.
    pub fn notify(&mut self, pid: i32, events: &mut Events) {
        if !self.is_enabled {
            return;
        }
        match signal_client(pid) {
            Err(why) => events.emit(&Event::NoSignal { pid, why }),
            Ok(()) => {
                if self.awaited.len() < AWAITED {
                    self.awaited.insert(pid, Instant::now());
                }
                events.emit(&Event::Signal { pid });
            }
        }
    }

    /// Reads the acknowledgements. A standard signal is one bit and no queue: of several that
    /// arrive together only the first is seen, and the clients of the others count as late.
    pub fn read_acks(&mut self, events: &mut Events) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            self.awaited.remove(&(signal.ssi_pid as i32));
            events.emit(&Event::Ack { pid: signal.ssi_pid });
        }
    }

    /// When [`report_late`](Self::report_late) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.awaited.values().map(|since| *since + ACK_TIMEOUT).min()
    }

    /// Reports the clients that have not acknowledged in time.
    pub fn report_late(&mut self, events: &mut Events) {
        self.awaited.retain(|pid, since| {
            let is_late = since.elapsed() > ACK_TIMEOUT;
            if is_late {
                events.emit(&Event::AckLate { pid: *pid });
            }
            !is_late
        });
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// The pid is a number that a client wrote into its question. So it is checked before it is used:
/// first no special number, then a descriptor for the process, then what this process is.
fn signal_client(pid: i32) -> Result<(), String> {
    if pid <= 1 || pid as u32 == std::process::id() {
        return Err("not a client's pid".to_owned());
    }
    let pidfd = pidfd_open(pid).map_err(|e| e.to_string())?;
    if !catches(pid, libc::SIGUSR1) {
        return Err("the process has no handler for SIGUSR1".to_owned());
    }
    pidfd_send_signal(&pidfd, libc::SIGUSR1).map_err(|e| e.to_string())
}
