//! TCP concurrent server: one acceptor, a bounded queue, and a pool of threads that serve.
//!
//! Run: cargo run -p server06a-queue
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06-prethread
//! Next: server07-io-uring
//! Diff base: server06-prethread
//! Overload: queue (--queue clients wait for a thread; the next ones are told `ERR busy` by a thread of its own, and closed
//! without a word where that one has enough to do, so that the acceptor never waits for a client)

mod queue;

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
use common::service::{Refusal, serve};
use common::sock::{Backoff, listen, refuse};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{Shutdown, shutdown};
use queue::{Queue, lock};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
const QUEUE: u16 = 64;
/// Clients that wait to be told `ERR busy`.
const DEAD_ENDS: usize = 8;
/// A queue that is full may have room a moment later, when the threads are awake: so long it is not final.
const PATIENCE: Duration = Duration::from_millis(200);
/// A signal does not end a wait on a condition variable: so often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// TCP concurrent server: one acceptor, a bounded queue, a pool of threads
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    /// Clients that may wait for a worker
    #[arg(long, default_value_t = QUEUE, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue: u16,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// What the threads share.
struct Shared {
    args: Args,
    work: Queue<Client>,
    refusals: Queue<Client>,
}

/// The listener.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
/// The descriptors that wait or are being served. A number is taken out before it is closed.
static CLIENTS: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
static GONE: Condvar = Condvar::new();

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    for signal in &signals {
        on_signal(signal, stop)?;
    }

    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);
    let (work, refusals) = (Queue::new(args.queue.into()), Queue::new(DEAD_ENDS));
    let shared = Arc::new(Shared { args, work, refusals });
    let args = &shared.args;
    // Blocked here, so that the pool inherits it: signals are the main thread's.
    signals.thread_block().context("sigprocmask")?;
    for number in 0..=args.pool.workers {
        let shared = Arc::clone(&shared);
        // One thread more than the pool has: it serves nobody. Not thread::spawn, which panics where there is none.
        Builder::new().spawn(move || worker(&shared, number > 0)).context("clone")?;
    }
    signals.thread_unblock().context("sigprocmask")?;

    let mut backoff = Backoff::default();
    let mut patience = PATIENCE;
    while STOPS.load(SeqCst) == 0 {
        let (conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        let client = Client { _place: Place::of(&conn), conn, peer, since: Instant::now() };
        let too_many = shared.work.push(client, patience);
        // Waited once, and in vain: from now on refused at once, until one finds room again.
        patience = if too_many.is_some() { Duration::ZERO } else { PATIENCE };
        // What finds no room here either is dropped, and so closed.
        too_many.and_then(|client| shared.refusals.push(client, Duration::ZERO));
    }

    shared.work.close();
    shared.refusals.close();
    end_clients(Duration::from_millis(args.limits.grace));
    args.log.cpu_time();
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// One client. Dropped in this order, also by a panic: first the number leaves the table, then it is closed.
struct Client {
    _place: Place,
    conn: Socket,
    peer: SockAddr,
    since: Instant,
}

/// An entry among the clients, from the accept to the moment before the close.
struct Place {
    fd: RawFd,
}

impl Place {
    fn of(conn: &Socket) -> Self {
        let fd = conn.as_raw_fd();
        lock(&CLIENTS).insert(fd);
        Place { fd }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&CLIENTS).remove(&self.fd);
        GONE.notify_all();
    }
}

/// A thread's whole life: one client at a time.
fn worker(shared: &Shared, serves: bool) {
    let (args, queue) = (&shared.args, if serves { &shared.work } else { &shared.refusals });
    while let Some(mut client) = queue.pop() {
        // Its deadline was running while it waited; one that was reset meanwhile is gone with its first read.
        if serves && client.since.elapsed() >= Duration::from_millis(args.limits.idle_timeout) {
            shared.refusals.push(client, Duration::ZERO);
            continue;
        }
        // A panic ends this conversation and not the thread, which the pool could not do without.
        let outcome = catch_unwind(AssertUnwindSafe(|| match serves {
            true => serve(&mut client.conn, &args.limits),
            false => refuse(&mut client.conn, Refusal::Busy, &args.limits),
        }));
        if let Ok(outcome) = outcome {
            args.log.client(&client.peer, &outcome);
        }
    }
}

/// Ends all reading: what was received is still answered, also to those that wait. When the grace is over, or a second
/// signal comes, ends all.
fn end_clients(grace: Duration) {
    let end = Instant::now() + grace;
    let mut clients = lock(&CLIENTS);
    shut_down(&clients, Shutdown::Read);
    while !clients.is_empty() && Instant::now() < end && STOPS.load(SeqCst) < 2 {
        clients = wait(clients);
    }
    shut_down(&clients, Shutdown::Both);
    // The threads that this ended get a moment for their log lines; the end of the process takes whoever is left.
    if !clients.is_empty() {
        drop(wait(clients));
    }
}

/// Gives the lock away, sleeps until somebody has gone or it is time to look for a signal, and takes the lock again.
fn wait(clients: MutexGuard<'static, BTreeSet<RawFd>>) -> MutexGuard<'static, BTreeSet<RawFd>> {
    GONE.wait_timeout(clients, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

/// While the table is locked no thread closes its connection, so each number is a client's and no stranger's.
fn shut_down(clients: &BTreeSet<RawFd>, how: Shutdown) {
    for fd in clients {
        let _ = shutdown(*fd, how);
    }
}

/// One call ends the accepting.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}
