//! TCP concurrent server: one thread per client.
//!
//! Run: cargo run -p server05-threads
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server04-fdpass
//! Next: server06-prethread
//! Diff base: server00-iterative
//! Overload: refuse (beyond --max-conns a thread says `ERR busy` and no more, so that the acceptor never waits for a client)

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Refusal, serve};
use common::sock::{Backoff, listen, refuse};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u16 = 256;
const MOST_CONNS: u16 = 4096;
/// Threads beyond the limit, there only to say `ERR busy`.
const DEAD_ENDS: usize = 8;
/// Bytes of address space; memory is what a thread touches of it, some 16 KiB. glibc keeps 40 MiB of dead threads' stacks
/// for the next ones, with the last 16 KiB of each still in memory: of large stacks that is less than of small ones.
const STACK: usize = 1024 * 1024;
/// A client that has left frees its place a moment later, when its thread sees it: so long a full house is not final.
const PATIENCE: Duration = Duration::from_millis(200);
/// A signal does not end a wait on a condition variable: so often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// TCP concurrent server: one thread per client
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients, and so threads, at once
    #[arg(long, default_value_t = MAX_CONNS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_CONNS as i64))]
    max_conns: u16,
    #[command(flatten)]
    log: Log,
}

/// One client. Dropped in this order, also by a panic: first the place is given back, then the number is closed.
struct Client {
    place: Place,
    conn: Socket,
    peer: SockAddr,
}

/// An entry of the table of clients.
struct Place {
    fd: RawFd,
    welcome: bool,
}

type Table = BTreeMap<RawFd, bool>;

/// The listener.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
/// The descriptors that have a thread, and which of them are no dead ends. A number is taken out before it is closed.
static CLIENTS: Mutex<Table> = Mutex::new(Table::new());
static GONE: Condvar = Condvar::new();

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        on_signal(signal, stop)?;
    }

    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);

    let mut backoff = Backoff::default();
    let mut full_since = None;
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
        let Some(place) = free_place(&conn, args.max_conns, &mut full_since) else { break };
        let mut client = Client { place, conn, peer };
        // It follows when the thread is there: what is moved into a thread that cannot be made is dropped.
        let (hand_over, handed_over) = mpsc::sync_channel(1);
        let shared = Arc::clone(&args);
        // Not thread::spawn, which panics where the kernel has no thread to give.
        match Builder::new().stack_size(STACK).spawn(move || worker(&handed_over, &shared)) {
            Ok(_) => drop(hand_over.send(client)),
            Err(e) => {
                args.log.repeated("WARN", &format!("clone: {e}"));
                let _ = refuse(&mut client.conn, Refusal::Busy, &args.limits);
            }
        }
    }

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

impl Drop for Place {
    fn drop(&mut self) {
        lock().remove(&self.fd);
        GONE.notify_all();
    }
}

/// A place, or a dead end where the house has been full for a while; none once a stop has come. Meanwhile the kernel's
/// backlog holds the clients. Where the dead ends are taken too, one of them is done in a second.
fn free_place(conn: &Socket, max_conns: u16, full_since: &mut Option<Instant>) -> Option<Place> {
    let mut clients = lock();
    while STOPS.load(SeqCst) == 0 {
        let served = clients.values().filter(|welcome| **welcome).count();
        let welcome = served < usize::from(max_conns);
        if welcome {
            *full_since = None;
        }
        let final_word = !welcome && full_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
        if welcome || (final_word && clients.len() - served < DEAD_ENDS) {
            clients.insert(conn.as_raw_fd(), welcome);
            return Some(Place { fd: conn.as_raw_fd(), welcome });
        }
        clients = wait(clients);
    }
    None
}

/// A thread that panicked with the lock in its hand has left the table whole: each change is one call.
fn lock() -> MutexGuard<'static, Table> {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lock away, sleeps until somebody has gone or it is time to look for a signal, and takes the lock again.
fn wait(clients: MutexGuard<'static, Table>) -> MutexGuard<'static, Table> {
    GONE.wait_timeout(clients, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

/// A thread's whole life.
fn worker(handed_over: &Receiver<Client>, args: &Args) {
    // Signals are the main thread's. One that comes before this call is handled here, to the same effect.
    let _ = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block();
    if let Ok(mut client) = handed_over.recv() {
        let outcome = match client.place.welcome {
            true => serve(&mut client.conn, &args.limits),
            false => refuse(&mut client.conn, Refusal::Busy, &args.limits),
        };
        args.log.client(&client.peer, &outcome);
    }
}

/// Ends all reading: what was received is still answered. When the grace is over, or a second signal comes, ends all.
fn end_clients(grace: Duration) {
    let end = Instant::now() + grace;
    let mut clients = lock();
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

/// While the table is locked no thread closes its connection, so each number is a client's and no stranger's.
fn shut_down(clients: &Table, how: Shutdown) {
    for fd in clients.keys() {
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
