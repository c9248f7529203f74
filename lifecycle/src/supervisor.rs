//! A pool of worker processes: when the parent has to fork the next worker, and how the pool ends.
//!
//! The pool has a fixed number of slots, one worker each. A worker that ends leaves its slot empty, and the example forks
//! again: `while pool.needs_worker() { match fork() {..} }`. A worker that was killed is replaced at once. If workers fail,
//! the pool waits before each replacement: 100 ms, then 200 ms, up to 5 s. If five workers fail at their start within 10 s,
//! a resource is missing and the server ends.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::report::{self, Failed, Log};
use nix::poll::{PollFd, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use socket2::Socket;

use crate::children::{signal_all, wait_for_all};
use crate::{Server, on_signal, shutdown};

/// The delay before the second replacement of workers that fail. Each further delay is twice as long ...
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// ... up to this one.
const DELAY_MOST: Duration = Duration::from_secs(5);
/// If no worker fails for this time, the next replacement starts at once again.
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails within this time after its start has failed at its start.
const AT_START: Duration = Duration::from_secs(1);
/// This many failures at the start within `SETTLED` end the server.
const FAILURES: usize = 5;
/// The delay after a young worker was killed. If something kills every new worker, the parent does not spin in fork.
const DELAY_KILLED: Duration = Duration::from_millis(50);

/// Keeps a pool of worker processes complete. The example forks; the supervisor says when.
#[derive(Debug)]
pub struct Supervisor<'a> {
    /// None: the slot is empty.
    slots: Vec<Option<Worker>>,
    restarts: Restarts,
    is_ready: bool,
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
            restarts: Restarts::new(Instant::now()),
            is_ready: false,
            log: &server.log,
        })
    }

    /// False after a shutdown has been requested, or too many workers have failed at their start.
    pub fn is_running(&self) -> bool {
        !shutdown::requested() && self.restarts.failures.len() < FAILURES
    }

    /// True if a slot is empty and its worker may be started now.
    pub fn needs_worker(&self) -> bool {
        self.is_running() && self.is_incomplete() && self.restarts.due <= Instant::now()
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

    /// Prints the ready line when all workers have been started for the first time.
    pub fn ready(&mut self, listener: &Socket) {
        if !self.is_ready && !self.is_incomplete() {
            report::ready(listener);
            self.is_ready = true;
        }
    }

    /// A call that is needed for the next worker has failed: logs it, and delays that worker. Before the ready line it ends
    /// the server, because the pool cannot be completed.
    pub fn failed(&mut self, call: &str, error: impl Display) {
        let now = Instant::now();
        self.restarts.last_failure = format!("{call}: {error}");
        self.log.repeated("WARN", &self.restarts.last_failure);
        self.restarts.back_off(now);
        if !self.is_ready {
            self.restarts.failures.resize(FAILURES, now);
        }
    }

    /// Sleeps until a worker ends, a worker is due, a shutdown is requested, or one of `fds` is ready. Then it reaps the
    /// workers that have ended.
    pub fn sleep(&mut self, fds: &mut [PollFd]) {
        let timeout = self.is_incomplete().then(|| self.restarts.due.saturating_duration_since(Instant::now()).into());
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
            true => Err(self.restarts.gave_up()),
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
        let now = Instant::now();
        self.restarts.failures.retain(|failure| now - *failure < SETTLED);
    }

    /// A worker that exits with 0 was asked to, and SIGKILL comes from another process: neither is a failure of the worker.
    fn ended(&mut self, worker: &Worker, status: WaitStatus) {
        let (failed, reason) = match status {
            WaitStatus::Exited(_, 0) => (false, None),
            WaitStatus::Exited(_, code) => (true, Some(format!("exit status {code}"))),
            WaitStatus::Signaled(_, signal, _) => (signal != Signal::SIGKILL, Some(format!("killed by {signal}"))),
            _ => return,
        };
        if let Some(reason) = reason {
            self.restarts.last_failure = format!("worker {} ended: {reason}", worker.pid);
            self.log.warn(&self.restarts.last_failure);
        }
        self.restarts.ended(failed, worker.started, Instant::now());
    }
}

/// When the next worker may be started. The caller passes the time.
#[derive(Debug)]
struct Restarts {
    /// No worker is started before this time.
    due: Instant,
    /// The delay after the next failure.
    delay: Duration,
    /// When workers have failed at their start.
    failures: Vec<Instant>,
    last_failure: String,
}

impl Restarts {
    fn new(now: Instant) -> Self {
        Restarts { due: now, delay: Duration::ZERO, failures: Vec::new(), last_failure: String::new() }
    }

    /// A worker that was started at `started` has ended.
    fn ended(&mut self, failed: bool, started: Instant, now: Instant) {
        let is_young = now - started < AT_START;
        if !failed {
            self.due = self.due.max(now + if is_young { DELAY_KILLED } else { Duration::ZERO });
            return;
        }
        if is_young {
            self.failures.push(now);
        }
        // Only a failure of a replacement delays the next one: workers that fail together are all replaced at once.
        if started >= self.due {
            self.back_off(now);
        }
    }

    fn back_off(&mut self, now: Instant) {
        if now.saturating_duration_since(self.due) > SETTLED {
            self.delay = Duration::ZERO;
        }
        self.due = now + self.delay;
        self.delay = (self.delay * 2).clamp(DELAY_FIRST, DELAY_MOST);
    }

    fn gave_up(&self) -> Failed {
        Failed::new(format!("workers fail at their start: {}", self.last_failure))
    }
}

/// The handler of SIGCHLD. It does nothing, but with a handler the signal interrupts ppoll.
extern "C" fn wake(_: libc::c_int) {}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A worker that fails as soon as it is started. Returns the delay before the next worker.
    fn fail_at_start(restarts: &mut Restarts) -> Duration {
        let now = restarts.due;
        restarts.ended(true, now, now + MS);
        restarts.due - (now + MS)
    }

    #[test]
    fn delay_doubles_while_replacements_fail_and_ends_at_5_s() {
        let mut restarts = Restarts::new(Instant::now());
        let delays: Vec<_> = (0..9).map(|_| fail_at_start(&mut restarts).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn delay_starts_again_when_no_worker_has_failed_for_10_s() {
        let mut restarts = Restarts::new(Instant::now());
        for _ in 0..5 {
            fail_at_start(&mut restarts);
        }
        let later = restarts.due + SETTLED + MS;
        restarts.ended(true, restarts.due, later);
        assert_eq!(restarts.due, later);
    }

    #[test]
    fn workers_that_fail_together_are_replaced_together() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        (0..8).for_each(|_| restarts.ended(true, start, start + 5 * SETTLED));
        assert_eq!(restarts.due, start + 5 * SETTLED);
        assert!(restarts.failures.is_empty(), "they did not fail at their start");
    }

    #[test]
    fn third_kill_within_a_second_is_replaced_within_200_ms() {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(now);
        for _ in 0..3 {
            let started = now;
            now += 10 * MS;
            restarts.ended(false, started, now);
            assert!(restarts.due <= now + 50 * MS);
            now = restarts.due;
        }
        assert!(restarts.failures.is_empty());
    }

    #[test]
    fn old_worker_that_was_killed_is_replaced_at_once() {
        let now = Instant::now();
        let mut restarts = Restarts::new(now);
        restarts.ended(false, now, now + AT_START);
        assert_eq!(restarts.due, now + AT_START);
    }
}
