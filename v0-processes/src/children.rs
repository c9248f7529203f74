//! The parent's children: the hub and the workers. The parent learns of their end by SIGCHLD, which
//! it reads from a descriptor like every other event, signalfd(2).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use chat::ClientId;
use common::report::{Failed, Log};
use lifecycle::Signals;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::bus;

/// The number of the hub. The workers have the numbers of their clients, from 1.
pub const HUB: ClientId = 0;
/// How often `end` checks whether its timeout has passed.
const INTERVAL: Duration = Duration::from_millis(20);

/// The children that have not been reaped. No other process can have the pid of one of them.
pub struct Children {
    signals: Signals,
    numbers: BTreeMap<Pid, ClientId>,
    /// How many SIGTERM and SIGINT have arrived.
    stops: u32,
    /// Why the server cannot go on.
    pub failure: Option<Failed>,
    log: Log,
}

impl Children {
    /// Call it before the first fork: the signals are blocked in the children too. So Ctrl-C, which
    /// sends SIGINT to all processes of the terminal, acts on the parent only.
    pub fn new(log: &Log) -> Result<Children, Failed> {
        let signals = Signals::of(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
        let (numbers, log) = (BTreeMap::new(), log.clone());
        Ok(Children { signals, numbers, stops: 0, failure: None, log })
    }

    /// Adds the child that fork has just made. If it has already ended, it is a zombie until the
    /// next call of waitpid.
    pub fn add(&mut self, child: Pid, number: ClientId) {
        self.numbers.insert(child, number);
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.numbers.values().filter(|number| **number != HUB).count()
    }

    /// False after SIGTERM or SIGINT, and after a failure.
    pub fn is_running(&self) -> bool {
        self.stops == 0 && self.failure.is_none()
    }

    /// Takes the pending signals, and reaps the children that have ended. Signals do not queue: one
    /// SIGCHLD may stand for several children, so waitpid is called until none is left.
    pub fn take_signals(&mut self) {
        while let Ok(signal) = self.signals.read() {
            self.stops += u32::from(signal != Signal::SIGCHLD);
        }
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (child, reason) = match status {
                WaitStatus::Exited(child, code) => (child, format!("exit status {code}")),
                WaitStatus::Signaled(child, signal, _) => (child, format!("killed by {signal}")),
                _ => return, // the others are running
            };
            match self.numbers.remove(&child) {
                // A worker exits with 0 at the end of its session, and all children do at a stop.
                _ if !self.is_running() || status == WaitStatus::Exited(child, 0) => {}
                // All connections have died with the hub.
                Some(HUB) => self.failure = Some(Failed::new(format!("hub: {reason}"))),
                Some(id) => self.log.warn(&format!("worker {child} of client {id}: {reason}")),
                None => {}
            }
        }
    }

    /// Waits until all children have ended. Kills those that still run after the timeout, or when a
    /// second SIGTERM or SIGINT arrives.
    pub fn end(mut self, timeout: Duration) -> Result<(), Failed> {
        let end = Instant::now() + timeout;
        while !self.numbers.is_empty() {
            if self.stops > 1 || Instant::now() >= end {
                self.numbers.keys().for_each(|child| _ = kill(*child, Signal::SIGKILL));
            }
            let signals = PollFd::new(self.as_fd(), PollFlags::POLLIN);
            bus::wait(&mut [signals], Some(Instant::now() + INTERVAL));
            self.take_signals();
        }
        self.log.cpu_time();
        self.failure.map_or(Ok(()), Err)
    }
}

impl AsFd for Children {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
