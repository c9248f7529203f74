//! A graceful shutdown on SIGTERM and SIGINT, without a race.
//!
//! A handler that only sets a flag is not enough: if the signal arrives after the server has checked the flag and before it
//! calls accept, accept sleeps forever. So the handler also calls shutdown(2), which is async-signal-safe, on the
//! descriptors that this process may sleep on:
//!
//! * on the listener: accept fails with EINVAL, now and later;
//! * on each connection, for reading: the session answers what it has received, then reads end of file, and ends.
//!
//! The first signal also starts a timer, the shutdown timeout (`--grace`). When it expires (SIGALRM), or at a second
//! signal, the handler shuts down the connections for writing too, and every session ends.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use common::cli::Limits;
use common::report::Failed;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::getpid;
use socket2::Socket;

use crate::on_signal;

/// Connections with a descriptor below this number can be registered. Other sessions end at their own timeouts.
const MOST_FDS: usize = 8192;

/// How many signals have arrived.
static REQUESTS: AtomicU32 = AtomicU32::new(0);
static TIMEOUT_HAS_PASSED: AtomicBool = AtomicBool::new(false);
static TIMEOUT_MS: AtomicU64 = AtomicU64::new(0);
/// The process that called `on_signals`. Its children are not this process.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// The descriptor that new clients come from, and the process that registered it.
static SOURCE: AtomicI32 = AtomicI32::new(-1);
static SOURCE_OF: AtomicI32 = AtomicI32::new(0);
/// Indexed by descriptor: true for a registered connection.
static CONNS: [AtomicBool; MOST_FDS] = [const { AtomicBool::new(false) }; MOST_FDS];

/// From now on SIGTERM and SIGINT request a shutdown, and a second one ends the shutdown timeout early.
///
/// # Errors
/// The errors of sigaction(2).
pub fn on_signals(limits: &Limits) -> Result<(), Failed> {
    TIMEOUT_MS.store(limits.grace, SeqCst);
    FIRST.store(getpid().as_raw(), SeqCst);
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGALRM].into_iter().try_for_each(|signal| on_signal(signal, handler))
}

/// True after a shutdown has been requested.
pub fn requested() -> bool {
    REQUESTS.load(SeqCst) > 0
}

/// True after the shutdown timeout has passed, or a second signal has arrived.
pub fn timeout_has_passed() -> bool {
    TIMEOUT_HAS_PASSED.load(SeqCst)
}

/// Requests a shutdown, as the first signal does.
pub fn request() {
    if !requested() {
        handler(libc::SIGTERM);
    }
}

/// The pid of the process that called [`on_signals`].
pub(crate) fn first_process() -> i32 {
    FIRST.load(SeqCst)
}

/// Registers the listener, or the channel that new clients come from: a shutdown makes accept or recvmsg return. A child
/// that inherits the descriptor does not shut it down, because shutdown(2) would act on the parent's socket too.
pub fn register(source: &Socket) {
    SOURCE_OF.store(getpid().as_raw(), SeqCst);
    SOURCE.store(source.as_raw_fd(), SeqCst);
    // The handler of a signal that arrived before the store has not found it.
    if requested() {
        shut_down(source.as_raw_fd(), libc::SHUT_RD);
    }
}

/// A registered connection. Drop it before the descriptor is closed: another connection may get the same number.
pub(crate) struct Registered(RawFd);

/// Registers a connection: a shutdown ends its reading.
pub(crate) fn register_conn(conn: &Socket) -> Registered {
    let fd = conn.as_raw_fd();
    if let Some(entry) = CONNS.get(fd as usize) {
        entry.store(true, SeqCst);
    }
    if requested() {
        shut_down(fd, libc::SHUT_RD);
    }
    Registered(fd)
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(entry) = CONNS.get(self.0 as usize) {
            entry.store(false, SeqCst);
        }
    }
}

/// The handler of SIGTERM, SIGINT and SIGALRM. The first signal ends reading and starts the timer. SIGALRM or a second
/// signal ends writing too.
extern "C" fn handler(signal: libc::c_int) {
    let errno = Errno::last_raw();
    let me = getpid().as_raw();
    let is_second = REQUESTS.fetch_add(1, SeqCst) > 0;
    if !is_second {
        start_timer(Duration::from_millis(TIMEOUT_MS.load(SeqCst)));
    }
    if SOURCE_OF.load(SeqCst) == me {
        shut_down(SOURCE.load(SeqCst), libc::SHUT_RD);
    }
    // Ctrl-C reaches a child twice, from the terminal and as SIGTERM from the parent: that is no second request.
    let is_end = is_second && (signal == libc::SIGALRM || FIRST.load(SeqCst) == me);
    if is_end {
        TIMEOUT_HAS_PASSED.store(true, SeqCst);
    }
    for (fd, entry) in CONNS.iter().enumerate() {
        if entry.load(SeqCst) {
            shut_down(fd as RawFd, if is_end { libc::SHUT_RDWR } else { libc::SHUT_RD });
        }
    }
    Errno::set_raw(errno);
}

fn shut_down(fd: RawFd, how: libc::c_int) {
    // SAFETY: shutdown is async-signal-safe. If the descriptor is not a socket, it fails and does nothing.
    unsafe { libc::shutdown(fd, how) };
}

/// Sends SIGALRM to this process after `timeout`.
fn start_timer(timeout: Duration) {
    let once = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let after = libc::timeval { tv_sec: timeout.as_secs() as i64, tv_usec: timeout.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: once, it_value: after };
    // SAFETY: on Linux this is a plain system call. The kernel reads one itimerval and writes nothing.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}
