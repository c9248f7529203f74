//! A pool of worker processes: when the parent has to fork the next worker, and how the pool ends.
//!
//! The pool has a fixed number of slots, one worker each. A worker that ends leaves its slot empty, and the example forks
//! again: `while pool.needs_worker() { match fork() {..} }`. The first replacement starts at once; if workers keep dying,
//! the pool waits 100 ms, then 200 ms, up to 5 s before each one. If five workers fail at their start within 10 s, a
//! resource is missing and the server ends.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::report::{Failed, Log};
use nix::poll::{PollFd, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::children::{signal_all, wait_for_all};
use crate::{Server, on_signal, shutdown};

/// The delay before the second replacement. Each further delay is twice as long ...
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// ... up to this one.
const DELAY_MOST: Duration = Duration::from_secs(5);
/// If no worker dies for this time, the next replacement starts at once again.
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails within this time after its start has failed at its start.
const AT_START: Duration = Duration::from_secs(1);
/// This many failures at the start within `SETTLED` end the server.
const FAILURES: usize = 5;

/// Keeps a pool of worker processes complete. The example forks; the supervisor says when.
#[derive(Debug)]
pub struct Supervisor<'a> {
    /// None: the slot is empty.
    slots: Vec<Option<Worker>>,
    /// No worker is started before this time.
    due: Instant,
    /// The delay after the next death.
    delay: Duration,
    /// When workers have failed at their start.
    failures: Vec<Instant>,
    log: &'a Log,
}

#[derive(Debug)]
struct Worker {
    pid: Pid,
    started: Instant,
}

impl<'a> Supervisor<'a> {
    /// Creates a pool with empty slots. SIGCHLD, SIGTERM and SIGINT are blocked from now on, except in
    /// [`sleep`](Self::sleep): no signal is lost between a check and a sleep.
    ///
    /// # Errors
    /// The errors of sigaction(2) and sigprocmask(2).
    pub fn new(workers: u16, server: &'a Server) -> Result<Self, Failed> {
        shutdown::on_signals(&server.limits)?;
        on_signal(Signal::SIGCHLD, wake)?;
        SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]).thread_block().context("sigprocmask")?;
        Ok(Supervisor {
            slots: (0..workers).map(|_| None).collect(),
            due: Instant::now(),
            delay: Duration::ZERO,
            failures: Vec::new(),
            log: &server.log,
        })
    }

    /// False after a shutdown has been requested, or too many workers have failed at their start.
    pub fn is_running(&self) -> bool {
        !shutdown::requested() && self.failures.len() < FAILURES
    }

    /// True if a slot is empty and its worker may be started now.
    pub fn needs_worker(&self) -> bool {
        self.is_running() && self.is_incomplete() && self.due <= Instant::now()
    }

    /// The worker of each slot. None: the slot is empty.
    pub fn workers(&self) -> impl Iterator<Item = Option<Pid>> {
        self.slots.iter().map(|slot| slot.as_ref().map(|worker| worker.pid))
    }

    /// The entries of the empty slots in a table that has one entry for each slot. The first one is for the next worker.
    pub fn of_empty_slots<'t, T>(&self, table: &'t [T]) -> impl Iterator<Item = &'t T> {
        self.workers().zip(table).filter(|(worker, _)| worker.is_none()).map(|(_, entry)| entry)
    }

    /// Puts the worker that fork has just made into the first empty slot.
    pub fn add(&mut self, pid: Pid) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(Worker { pid, started: Instant::now() });
        }
    }

    /// A call that is needed for the next worker has failed: logs it, and delays that worker.
    pub fn failed(&mut self, call: &str, error: impl Display) {
        self.log.repeated("WARN", &format!("{call}: {error}"));
        self.back_off();
    }

    /// Sleeps until a worker ends, a worker is due, a shutdown is requested, or one of `fds` is ready. Then it reaps the
    /// workers that have ended.
    pub fn sleep(&mut self, fds: &mut [PollFd]) {
        let timeout = self.is_incomplete().then(|| self.due.saturating_duration_since(Instant::now()).into());
        let _ = ppoll(fds, timeout, Some(SigSet::empty()));
        self.reap();
    }

    /// Sends SIGTERM to every worker.
    pub fn terminate(&self) {
        signal_all(&self.pids(), Signal::SIGTERM);
    }

    /// Waits until all workers have ended. Kills those that still run when the shutdown timeout has passed.
    ///
    /// # Errors
    /// The pool ends because too many workers have failed at their start.
    pub fn wait(mut self) -> Result<(), Failed> {
        let gave_up = !shutdown::requested();
        wait_for_all(|| {
            self.reap();
            self.pids()
        });
        match gave_up {
            true => Err(Failed::new(format!("{FAILURES} workers failed at their start within {SETTLED:?}"))),
            false => Ok(()),
        }
    }

    fn is_incomplete(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Children of this process that have not been reaped, so these numbers belong to no other process.
    fn pids(&self) -> Vec<Pid> {
        self.workers().flatten().collect()
    }

    /// A loop, because signals do not queue: two children that end together may send one SIGCHLD. WNOHANG, because the
    /// other workers still run.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            let worker = self.slots.iter_mut().find_map(|slot| slot.take_if(|worker| worker.pid == pid));
            worker.inspect(|worker| self.ended(worker, status));
        }
        self.failures.retain(|failure| failure.elapsed() < SETTLED);
    }

    /// A worker that exits with 0 was asked to, and SIGKILL comes from another process: neither is a failure of the worker.
    fn ended(&mut self, worker: &Worker, status: WaitStatus) {
        // Only the death of a replacement delays the next one: workers that die together are all replaced at once.
        if worker.started >= self.due {
            self.back_off();
        }
        let (failed, reason) = match status {
            WaitStatus::Exited(_, 0) => return,
            WaitStatus::Exited(_, code) => (true, format!("exit status {code}")),
            WaitStatus::Signaled(_, signal, _) => (signal != Signal::SIGKILL, format!("killed by {signal}")),
            other => (true, format!("{other:?}")),
        };
        self.log.warn(&format!("worker {} ended: {reason}", worker.pid));
        if failed && worker.started.elapsed() < AT_START {
            self.failures.push(Instant::now());
        }
    }

    fn back_off(&mut self) {
        if self.due.elapsed() > SETTLED {
            self.delay = Duration::ZERO;
        }
        self.due = Instant::now() + self.delay;
        self.delay = (self.delay * 2).clamp(DELAY_FIRST, DELAY_MOST);
    }
}

/// The handler of SIGCHLD. It does nothing, but with a handler the signal interrupts ppoll.
extern "C" fn wake(_: libc::c_int) {}
