//! Children that never outlive the measurement, and a measurement that never outlives its patience.

use std::ptr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid};

/// No experiment takes this long ...
const PATIENCE_SECONDS: libc::time_t = 60;
/// ... and when it does, whatever sleeps is interrupted again and again.
const AGAIN_SECONDS: libc::time_t = 5;

/// In a child: die with the parent, however it ends.
pub fn die_with(parent: Pid) {
    let _ = set_pdeathsig(Signal::SIGKILL);
    // A parent that died before the prctl has sent no signal.
    if getppid() != parent {
        leave(1);
    }
}

/// The end of a child: nothing of the parent's runs a second time.
pub fn leave(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Waits for a child that ends or has been killed.
pub fn reap(child: Pid) -> Result<()> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map(drop).context("waitpid"),
        }
    }
}

/// Starts anew. A read that sleeps for too long returns EINTR: a bus that hangs is an error, not a hang.
pub fn watchdog() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("sigaction")?;
    // Whoever started this program may have blocked it.
    SigSet::from(Signal::SIGALRM).thread_unblock().context("sigprocmask")?;
    let after = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: after(AGAIN_SECONDS), it_value: after(PATIENCE_SECONDS) };
    // SAFETY: the kernel reads one itimerval.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) }).context("setitimer")?;
    Ok(())
}

extern "C" fn nothing(_: libc::c_int) {}
