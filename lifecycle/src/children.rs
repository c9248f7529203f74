//! Child processes: how many there are, how a child begins and ends, and how the parent ends all of them.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use common::report::{Failed, Log};
use nix::poll::ppoll;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

use crate::shutdown;

/// How long the parent sleeps before it checks its children again. A signal wakes it earlier; a signal that arrived
/// just before the sleep costs this much time.
const INTERVAL: Duration = Duration::from_millis(10);

/// The children that fork made. A child that has been reaped is in the list until the next check with waitpid. The
/// list is checked before every kill, because the kernel may give the number of a reaped child to an unrelated
/// process.
#[derive(Default)]
pub struct Children(Vec<Pid>);

impl Children {
    /// Adds the child that fork has just made.
    pub fn add(&mut self, child: Pid) {
        self.0.push(child);
    }

    /// Sleeps while there are `limit` children or more, or until a shutdown is requested.
    pub fn wait_below(&mut self, limit: u16) {
        while self.0.len() >= limit.into() && !shutdown::requested() {
            if self.running().len() >= limit.into() {
                sleep();
            }
        }
    }

    /// Sends SIGTERM to every child, and SIGKILL to those that still run when the shutdown timeout has passed.
    /// Returns when all children have been reaped.
    pub fn end(mut self) {
        // From here on a SIGCHLD handler runs only during `sleep`, so it reaps no child between the check and the
        // kill.
        let _ = SigSet::from(Signal::SIGCHLD).thread_block();
        signal_all(self.running(), Signal::SIGTERM);
        wait_for_all(|| self.running().to_vec());
    }

    /// Removes the children that have ended. waitpid reaps a zombie, and fails for a child that has already been
    /// reaped.
    fn running(&mut self) -> &[Pid] {
        self.0.retain(|pid| waitpid(*pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive));
        &self.0
    }
}

/// Waits until `running`, which reaps, returns no child. Kills the children with SIGKILL when the shutdown timeout
/// has passed. [`Children`] and [`Supervisor`](crate::Supervisor) both end this way.
pub(crate) fn wait_for_all(mut running: impl FnMut() -> Vec<Pid>) {
    shutdown::request(); // starts the timeout, if no signal has started it
    while !running().is_empty() {
        if shutdown::timeout_has_passed() {
            signal_all(&running(), Signal::SIGKILL);
        }
        sleep();
    }
}

/// Sends a signal to children that have not been reaped.
pub(crate) fn signal_all<'a>(pids: impl IntoIterator<Item = &'a Pid>, signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}

/// Sleeps for the interval, or until a signal arrives. All signals are unblocked during the sleep.
fn sleep() {
    let _ = ppoll(&mut [], Some(INTERVAL.into()), Some(SigSet::empty()));
}

/// A child calls this first: the kernel kills the child when its parent dies. If the parent died before this call,
/// the child requests its own shutdown.
pub fn die_with_parent() {
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid().as_raw() != shutdown::FIRST.load(SeqCst) {
        let _ = raise(Signal::SIGTERM);
    }
}

/// A child with blocking calls calls this first: [`die_with_parent`], and takes signals in its handlers from now on.
pub fn begin_child() {
    die_with_parent();
    let _ = SigSet::all().thread_unblock();
}

/// The last call of a worker process: logs why it ends, and exits. server01-fork shows the call of _exit.
pub fn end_child(outcome: Result<(), Failed>, log: &Log) -> ! {
    if let Err(failed) = &outcome {
        log.repeated("Error:", &format!("{failed:?}; this process ends"));
    }
    // SAFETY: _exit instead of exit: functions that the parent registered with atexit must not run in the child.
    unsafe { libc::_exit(outcome.is_err().into()) }
}
