//! A pool of worker processes: when the parent has to fork the next worker, and how the pool ends.
//!
//! The pool has a fixed number of slots, one worker each. A worker that ends leaves its slot empty, and the example
//! forks again: `while pool.needs_worker() { match fork() {..} }`. If workers fail at their start, the pool waits
//! before each replacement: 100 ms, 200 ms, 400 ms ... If five workers fail at their start within 10 s, a resource
//! is missing and the server ends.

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

/// The delay after a worker was killed at its start. If it failed instead: two times, four times ... this delay.
const DELAY: Duration = Duration::from_millis(50);
/// The delay after a call failed that is needed for the next worker.
const DELAY_CALL: Duration = Duration::from_secs(1);
/// A worker that ends within this time has ended at its start.
const AT_START: Duration = Duration::from_secs(1);
/// This many failures at the start ...
const FAILURES: usize = 5;
/// ... within this time end the server.
const WINDOW: Duration = Duration::from_secs(10);

/// Keeps a pool of worker processes complete. The example forks; the supervisor says when.
pub struct Supervisor<'a> {
    /// None: the slot is empty.
    slots: Vec<Option<Worker>>,
    restarts: Restarts,
    is_ready: bool,
    log: &'a Log,
}

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

    /// The entries of the empty slots in a table that has one entry for each slot. The first one is for the next
    /// worker.
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

    /// A call that is needed for the next worker has failed: logs it, and delays that worker. Before the ready line
    /// it ends the server, because the pool cannot be completed.
    pub fn failed(&mut self, call: &str, error: impl Display) {
        self.restarts.last_failure = format!("{call}: {error}");
        self.log.repeated("WARN", &self.restarts.last_failure);
        let now = Instant::now();
        self.restarts.due = now + DELAY_CALL;
        if !self.is_ready {
            self.restarts.failures.resize(FAILURES, now);
        }
    }

    /// Sleeps until a worker ends, a worker is due, a shutdown is requested, or one of `fds` is ready. Then it
    /// reaps the workers that have ended.
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
            true => Err(Failed::new(format!("workers fail at their start: {}", self.restarts.last_failure))),
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

    /// A loop, because signals do not queue: two children that end together may send one SIGCHLD. WNOHANG, because
    /// the other workers still run.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            let worker = self.slots.iter_mut().find_map(|slot| slot.take_if(|worker| worker.pid == pid));
            worker.inspect(|worker| self.ended(worker, status));
        }
    }

    /// A worker that exits with 0 was asked to, and SIGKILL comes from another process: neither is a failure of the
    /// worker.
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
struct Restarts {
    /// No worker is started before this time.
    due: Instant,
    /// When workers have failed at their start.
    failures: Vec<Instant>,
    last_failure: String,
}

impl Restarts {
    fn new(now: Instant) -> Self {
        Restarts { due: now, failures: Vec::new(), last_failure: String::new() }
    }

    /// A worker that was started at `started` has ended. A killed worker is replaced at once too, but if something
    /// kills every new worker, the delay keeps the parent from spinning in fork.
    fn ended(&mut self, failed: bool, started: Instant, now: Instant) {
        self.failures.retain(|failure| now - *failure < WINDOW);
        if now - started >= AT_START {
            return;
        }
        if failed {
            self.failures.push(now);
        }
        self.due = self.due.max(now + DELAY * (1 << self.failures.len().min(FAILURES)));
    }
}

/// The handler of SIGCHLD. It does nothing, but with a handler the signal interrupts ppoll.
extern "C" fn wake(_: libc::c_int) {}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The delay after a worker that ended when it had run for `age`.
    fn delay_after(restarts: &mut Restarts, failed: bool, age: Duration) -> Duration {
        let started = restarts.due;
        restarts.ended(failed, started, started + age);
        restarts.due.saturating_duration_since(started + age)
    }

    #[test]
    fn delay_doubles_while_workers_fail_at_their_start() {
        let mut restarts = Restarts::new(Instant::now());
        let delays: Vec<_> = (0..5).map(|_| delay_after(&mut restarts, true, MS).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600]);
        assert_eq!(restarts.failures.len(), FAILURES, "the server ends");
    }

    #[test]
    fn failure_at_the_start_is_forgotten_after_10_s() {
        let mut restarts = Restarts::new(Instant::now());
        delay_after(&mut restarts, true, MS);
        restarts.due += WINDOW;
        delay_after(&mut restarts, true, MS);
        assert_eq!(restarts.failures.len(), 1);
    }

    #[test]
    fn third_kill_within_a_second_is_replaced_within_200_ms() {
        let mut restarts = Restarts::new(Instant::now());
        for _ in 0..3 {
            assert_eq!(delay_after(&mut restarts, false, MS), DELAY);
        }
        assert!(restarts.failures.is_empty() && DELAY < 200 * MS);
    }

    #[test]
    fn worker_that_has_run_for_a_second_is_replaced_at_once() {
        let mut restarts = Restarts::new(Instant::now());
        assert_eq!(delay_after(&mut restarts, false, AT_START), Duration::ZERO);
        assert_eq!(delay_after(&mut restarts, true, AT_START), Duration::ZERO);
    }
}
