//! SIGTERM and SIGINT end the accepting with one call: `shutdown` on the listener.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

use anyhow::Context;
use common::report::Failed;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);

/// The signals that stop a server.
pub const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Installs the handler, without SA_RESTART, so that a sleeping accept returns EINTR.
///
/// # Errors
/// Those of sigaction(2).
pub fn on_signal() -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    for signal in SIGNALS {
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    }
    Ok(())
}

/// From now on a signal shuts this listener down.
pub fn watch(listener: &impl AsRawFd) {
    let fd: RawFd = listener.as_raw_fd();
    STOP_FD.store(fd, SeqCst);
}

/// How many such signals have come.
pub fn count() -> u32 {
    STOPS.load(SeqCst)
}

extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}
