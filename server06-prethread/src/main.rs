//! TCP concurrent server: a pool of threads, all blocked in accept on the one listener.
//!
//! Run: cargo run -p server06-prethread
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server05-threads
//! Next: server06a-queue
//! Diff base: server05-threads
//! Overload: queue (in the listener's backlog, until a thread comes back to accept)

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen, Pool};
use common::report::{Failed, Log};
use common::service::serve;
use common::sock::{Backoff, listen};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use socket2::Socket;

const BACKLOG: i32 = 1024;
/// A signal does not end a wait on a condition variable: so often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// TCP concurrent server: a pool of threads in accept
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// What the threads and the stop tell each other.
struct Table {
    /// The descriptors that are being served. A number is taken out before it is closed.
    clients: BTreeSet<RawFd>,
    /// Threads of the pool that have not ended.
    workers: u16,
    stopping: bool,
    failed: Option<Failed>,
}

/// The listener.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
static TABLE: Mutex<Table> = Mutex::new(Table { clients: BTreeSet::new(), workers: 0, stopping: false, failed: None });
static GONE: Condvar = Condvar::new();

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    // Blocked here, so that the pool inherits it: signals are the main thread's.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    for signal in &signals {
        on_signal(signal, stop)?;
    }

    let listener = Arc::new(listen(&args.listen, BACKLOG)?);
    STOP_FD.store(listener.as_raw_fd(), SeqCst);
    for _ in 0..args.pool.workers {
        let (listener, shared) = (Arc::clone(&listener), Arc::clone(&args));
        lock().workers += 1;
        // Not thread::spawn, which panics where the kernel has no thread to give.
        Builder::new().spawn(move || worker(&listener, &shared)).context("clone")?;
    }

    while STOPS.load(SeqCst) == 0 {
        // Unblocks the signals and sleeps in one step: none can slip in between the look and the sleep.
        SigSet::empty().suspend().context("sigsuspend")?;
    }
    signals.thread_unblock().context("sigprocmask")?;
    end_clients(Duration::from_millis(args.limits.grace));
    args.log.cpu_time();
    lock().failed.take().map_or(Ok(()), Err)
}

/// Installs a handler without SA_RESTART, so that a sleeping sigsuspend returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// A panic that held the lock has left the table whole: each change is one step.
fn lock() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's whole life: one client at a time, as server00-iterative's whole process.
fn worker(listener: &Socket, args: &Args) {
    let outcome = accept_loop(listener, args);
    let mut table = lock();
    table.workers -= 1;
    // The others would meet the same: the first one ends the pool as a signal would.
    if let (Err(failed), None) = (outcome, &table.failed) {
        table.failed = Some(failed);
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
    GONE.notify_all();
}

/// The kernel keeps the sleepers in a queue and wakes one of them for each connection: no herd, and all take turns.
fn accept_loop(listener: &Socket, args: &Args) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    while STOPS.load(SeqCst) == 0 {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after, for every thread.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // Not by the stop, whose signals the pool has blocked: a tracer may do it, or SIGCONT after SIGSTOP.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        // Younger than the connection, and so dropped before it, also by a panic.
        let _place = Place::of(&conn);
        // A panic ends this conversation and not the thread, which the pool could not do without.
        if let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| serve(&mut conn, &args.limits))) {
            args.log.client(&peer, &outcome);
        }
    }
    Ok(())
}

/// An entry among the clients, from the accept to the moment before the close.
struct Place {
    fd: RawFd,
}

impl Place {
    fn of(conn: &Socket) -> Self {
        let fd = conn.as_raw_fd();
        let mut table = lock();
        table.clients.insert(fd);
        // Accepted in the moment of the stop, and not seen by `end_clients`: it is treated as the others were.
        if table.stopping {
            let _ = shutdown(fd, Shutdown::Read);
        }
        Place { fd }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock().clients.remove(&self.fd);
    }
}

/// Ends all reading: what was received is still answered. When the grace is over, or a second signal comes, ends all.
fn end_clients(grace: Duration) {
    let end = Instant::now() + grace;
    let mut table = lock();
    table.stopping = true;
    shut_down(&table.clients, Shutdown::Read);
    while table.workers > 0 && Instant::now() < end && STOPS.load(SeqCst) < 2 {
        table = wait(table);
    }
    shut_down(&table.clients, Shutdown::Both);
    // The threads that this ended get a moment for their log lines; the end of the process takes whoever is left.
    if table.workers > 0 {
        drop(wait(table));
    }
}

/// Gives the lock away, sleeps until a thread has ended or it is time to look for a signal, and takes the lock again.
fn wait(table: MutexGuard<'static, Table>) -> MutexGuard<'static, Table> {
    GONE.wait_timeout(table, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

/// While the table is locked no thread closes its connection, so each number is a client's and no stranger's.
fn shut_down(clients: &BTreeSet<RawFd>, how: Shutdown) {
    for fd in clients {
        let _ = shutdown(*fd, how);
    }
}

/// One call ends the accepting of the whole pool.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}
