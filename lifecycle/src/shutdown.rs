//! A graceful shutdown on SIGTERM and SIGINT, without a race.
//!
//! A handler that only sets a flag is not enough: if the signal arrives after the server has checked the flag and
//! before it calls accept, accept sleeps forever. So the handler also calls shutdown(2), which is
//! async-signal-safe, on the descriptors that this process may sleep on:
//!
//! * on the listener: accept fails with EINVAL, now and later;
//! * on each connection, for reading: the session answers what it has received, then reads end of file, and ends.
//!
//! The first signal also starts a timer, which sends SIGALRM every 50 ms and interrupts the call that sleeps. A
//! worker that shares its listener with other processes must not shut it down; it sees the request after the next
//! SIGALRM. When the shutdown timeout (`--grace`) has passed, or at a second signal, the handler shuts down the
//! connections for writing too, and every session ends.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Context;
use common::cli::Limits;
use common::report::Failed;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::time::ClockId;
use nix::unistd::getpid;
use socket2::Socket;

use crate::on_signal;
use crate::signals::reset_inherited;

/// Connections with a descriptor below this number can be registered. Other sessions end at their own timeouts.
const MOST_FDS: usize = 8192;

/// The interval of the timer.
const INTERVAL: Duration = Duration::from_millis(50);

/// How many times SIGTERM and SIGINT have arrived.
static REQUESTS: AtomicU32 = AtomicU32::new(0);
static TIMEOUT_MS: AtomicU64 = AtomicU64::new(0);
/// When the shutdown timeout ends, in milliseconds of the monotonic clock.
static END_MS: AtomicU64 = AtomicU64::new(u64::MAX);
/// The process that called [`on_signals`]. Its children have other pids.
pub(crate) static FIRST: AtomicI32 = AtomicI32::new(0);
/// The descriptor that new clients come from, and the process that registered it.
static SOURCE: AtomicI32 = AtomicI32::new(-1);
static SOURCE_OF: AtomicI32 = AtomicI32::new(0);
/// Indexed by descriptor: true for a registered connection.
static CONNS: [AtomicBool; MOST_FDS] = [const { AtomicBool::new(false) }; MOST_FDS];

/// From now on SIGTERM and SIGINT request a shutdown, and a second one ends the shutdown timeout early. Resets the
/// signal state that exec may have handed down: ignored and blocked signals.
///
/// # Errors
/// The errors of sigaction(2) and sigprocmask(2).
pub fn on_signals(limits: &Limits) -> Result<(), Failed> {
    TIMEOUT_MS.store(limits.grace, SeqCst);
    FIRST.store(getpid().as_raw(), SeqCst);
    reset_inherited();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGALRM] {
        on_signal(signal, handler)?;
    }
    SigSet::all().thread_unblock().context("sigprocmask")?;
    Ok(())
}

/// True after a shutdown has been requested.
pub fn requested() -> bool {
    REQUESTS.load(SeqCst) > 0
}

/// True after the shutdown timeout has passed, or a second signal has arrived.
pub fn timeout_has_passed() -> bool {
    now_ms() >= END_MS.load(SeqCst)
}

/// Requests a shutdown, as the first signal does.
pub fn request() {
    if !requested() {
        handler(libc::SIGTERM);
    }
}

/// Registers the listener, or the channel that new clients come from: a shutdown makes accept or recvmsg return. A
/// child that inherits the descriptor does not shut it down, because shutdown(2) would act on the parent's socket
/// too.
pub fn register(source: &Socket) {
    SOURCE_OF.store(getpid().as_raw(), SeqCst);
    SOURCE.store(source.as_raw_fd(), SeqCst);
    // The handler of a signal that arrived before the store has not found it.
    if requested() {
        shut_down(source.as_raw_fd(), libc::SHUT_RD);
    }
}

/// Runs `serve` while the connection is registered: a shutdown ends its reading. The registration ends before the
/// descriptor is closed, because another connection may get the same number. `serve` must not panic.
pub(crate) fn with_registered<T>(conn: &mut Socket, serve: impl FnOnce(&mut Socket) -> T) -> T {
    let fd = conn.as_raw_fd();
    let entry = CONNS.get(fd as usize);
    entry.inspect(|entry| entry.store(true, SeqCst));
    if requested() {
        shut_down(fd, libc::SHUT_RD);
    }
    let outcome = serve(conn);
    entry.inspect(|entry| entry.store(false, SeqCst));
    outcome
}

/// The handler of SIGTERM, SIGINT and SIGALRM. The first signal ends reading and starts the timer. A second signal,
/// or the end of the timeout, ends writing too.
extern "C" fn handler(signal: libc::c_int) {
    let errno = Errno::last_raw();
    let me = getpid().as_raw();
    let is_timer = signal == libc::SIGALRM;
    let is_first = !is_timer && REQUESTS.fetch_add(1, SeqCst) == 0;
    // Ctrl-C reaches a child twice, from the terminal and as SIGTERM from the parent: that is no second request.
    let is_second = !is_timer && !is_first && FIRST.load(SeqCst) == me;
    if is_first {
        END_MS.store(now_ms() + TIMEOUT_MS.load(SeqCst), SeqCst);
        start_timer();
        if SOURCE_OF.load(SeqCst) == me {
            shut_down(SOURCE.load(SeqCst), libc::SHUT_RD);
        }
        shut_down_conns(libc::SHUT_RD);
    }
    if is_second {
        END_MS.store(0, SeqCst);
    }
    if timeout_has_passed() {
        shut_down_conns(libc::SHUT_RDWR);
    }
    Errno::set_raw(errno);
}

fn shut_down_conns(how: libc::c_int) {
    for (fd, entry) in CONNS.iter().enumerate() {
        if entry.load(SeqCst) {
            shut_down(fd as RawFd, how);
        }
    }
}

fn shut_down(fd: RawFd, how: libc::c_int) {
    // SAFETY: shutdown is async-signal-safe. If the descriptor is not a socket, it fails and does nothing.
    unsafe { libc::shutdown(fd, how) };
}

fn now_ms() -> u64 {
    ClockId::CLOCK_MONOTONIC.now().map_or(0, |now| Duration::from(now).as_millis() as u64)
}

/// Sends SIGALRM to this process, now and then again after each interval.
fn start_timer() {
    let interval = libc::timeval { tv_sec: 0, tv_usec: INTERVAL.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: interval, it_value: libc::timeval { tv_sec: 0, tv_usec: 1 } };
    // SAFETY: on Linux this is a plain system call. The kernel reads one itimerval and writes nothing.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}
