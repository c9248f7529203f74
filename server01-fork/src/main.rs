//! TCP concurrent server: one child process per client.
//!
//! Run: cargo run -p server01-fork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server00-iterative
//! Next: server02-select
//! Diff base: server00-iterative
//! Overload: refuse (beyond --max-conns a child says `ERR busy` and no more, so that the parent never waits for a client)

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Refusal, serve};
use common::sock::{Backoff, listen, refuse};
use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u16 = 64;
const MOST_CONNS: u16 = 1024;
/// Children beyond the limit, there only to say `ERR busy`.
const DEAD_ENDS: u16 = 8;
/// A client that has left frees its place a moment later, when its child is reaped: so long a full house is not final.
const PATIENCE: Duration = Duration::from_millis(200);

/// TCP concurrent server: one child process per client
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients, and so children, at once
    #[arg(long, default_value_t = MAX_CONNS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_CONNS as i64))]
    max_conns: u16,
    #[command(flatten)]
    log: Log,
}

/// The descriptor this process is serving from: the listener in the parent, the client's in a child.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
/// The children that are not reaped yet, 0 where a place is free: the handler empties it, so it is made of atomics.
static CHILDREN: [AtomicI32; (MOST_CONNS + DEAD_ENDS) as usize] = [const { AtomicI32::new(0) }; _];

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // Before the first fork, or a child that ends at once would end unseen.
    on_signal(Signal::SIGCHLD, reap_children)?;
    on_signal(Signal::SIGTERM, stop)?;
    on_signal(Signal::SIGINT, stop)?;
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);

    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);

    let mut backoff = Backoff::default();
    let mut full_since = None;
    while STOPS.load(SeqCst) == 0 {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept: a child ended, and the handler has reaped it.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        // Blocked until the table knows the child: a quick one could be reaped before it is written down.
        signals.thread_block().context("sigprocmask")?;
        let (place, entry) = free_place(args.max_conns, &mut full_since);
        let parent = getpid();
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => child(listener, conn, &peer, parent, place < args.max_conns, &args),
            Ok(ForkResult::Parent { child }) => entry.store(child.as_raw(), SeqCst),
            Err(e) => {
                args.log.repeated("WARN", &format!("fork: {e}"));
                let _ = refuse(&mut conn, Refusal::Busy, &args.limits);
            }
        }
        // The client sees the end of the stream only when the last copy is closed: this one must not stay open.
        drop(conn);
        signals.thread_unblock().context("sigprocmask")?;
    }

    end_children(&signals, Duration::from_millis(args.limits.grace));
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

/// A free place in the table: one of the first `max_conns`, or a dead end's where the house has been full for a while.
/// Meanwhile the kernel's backlog holds the clients. Where the dead ends are taken too, one of them is done in a second.
fn free_place(max_conns: u16, full_since: &mut Option<Instant>) -> (u16, &'static AtomicI32) {
    loop {
        let free = (0..max_conns + DEAD_ENDS).zip(&CHILDREN).find(|(_, entry)| entry.load(SeqCst) == 0);
        let now = Instant::now();
        let patience = match free {
            Some((place, entry)) if place < max_conns => {
                *full_since = None;
                return (place, entry);
            }
            Some(dead_end) => match (*full_since.get_or_insert(now) + PATIENCE).saturating_duration_since(now) {
                Duration::ZERO => return dead_end,
                patience => Some(patience.into()),
            },
            None => None,
        };
        // Unblocks the signals and sleeps in one step: no SIGCHLD can slip in between the look and the sleep.
        let _ = ppoll(&mut [], patience, Some(SigSet::empty()));
    }
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: Socket, mut conn: Socket, peer: &SockAddr, parent: Pid, welcome: bool, args: &Args) -> ! {
    drop(listener); // or the port stays taken for as long as this client stays
    STOP_FD.store(conn.as_raw_fd(), SeqCst);
    let _ = set_pdeathsig(Signal::SIGKILL);
    // Unblocked only now: before the store a SIGTERM would have shut the listener down for the whole family.
    let _ = SigSet::all().thread_unblock();
    // A parent that died before the prctl has sent no signal.
    if getppid() == parent {
        // A panic must not unwind into the parent's loop either.
        let outcome = catch_unwind(AssertUnwindSafe(|| match welcome {
            true => serve(&mut conn, &args.limits),
            false => refuse(&mut conn, Refusal::Busy, &args.limits),
        }));
        if let Ok(outcome) = outcome {
            args.log.client(peer, &outcome);
        }
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit(0) }
}

/// Asks every child to finish, and kills those that have not when the grace is over or a second signal comes.
fn end_children(signals: &SigSet, grace: Duration) {
    // While SIGCHLD is blocked nobody reaps, so each pid in the table is a child of ours and no stranger.
    let _ = signals.thread_block();
    let tell = |signal| {
        for pid in CHILDREN.iter().map(|entry| entry.load(SeqCst)).filter(|pid| *pid != 0) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    };
    tell(Signal::SIGTERM);
    let end = Instant::now() + grace;
    while CHILDREN.iter().any(|entry| entry.load(SeqCst) != 0) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || STOPS.load(SeqCst) > 1 {
            tell(Signal::SIGKILL);
        }
        // The handlers run while this sleeps, and only then.
        let _ = ppoll(&mut [], Some(left.max(Duration::from_millis(10)).into()), Some(SigSet::empty()));
    }
}

/// One call ends the accepting, or the conversation: reading ends, what was received is still answered.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// A loop, since signals do not queue: children that end together may send one SIGCHLD. WNOHANG, since others live on.
extern "C" fn reap_children(_: libc::c_int) {
    let errno = Errno::last_raw();
    while let Some(pid) = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|status| status.pid()) {
        if let Some(entry) = CHILDREN.iter().find(|entry| entry.load(SeqCst) == pid.as_raw()) {
            entry.store(0, SeqCst);
        }
    }
    Errno::set_raw(errno);
}
