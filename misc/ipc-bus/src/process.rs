//! Children that end with their parent, and a timeout for each experiment.

use std::ptr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

/// The timeout of an experiment ...
const TIMEOUT_SECONDS: libc::time_t = 60;
/// ... and after it the interval in which blocked calls are interrupted again.
const INTERVAL_SECONDS: libc::time_t = 5;

/// Makes a child that runs `life`, which returns its exit status. The kernel kills the child when
/// the parent ends.
pub fn start(life: impl FnOnce() -> i32) -> Result<Pid> {
    let parent = getpid();
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => run_child(parent, life),
        Ok(ForkResult::Parent { child }) => Ok(child),
        Err(e) => Err(e).context("fork"),
    }
}

/// The whole life of a child. _exit, because exit would run the parent's atexit functions and flush
/// its buffers.
fn run_child(parent: Pid, life: impl FnOnce() -> i32) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    // If the parent has ended before prctl, the kernel sends no signal.
    let status = if getppid() == parent { life() } else { 1 };
    // SAFETY: _exit ends the process.
    unsafe { libc::_exit(status) }
}

/// Waits until the child has ended.
pub fn reap(child: Pid) -> Result<()> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map(drop).context("waitpid"),
        }
    }
}

/// Starts the timeout of the next experiment. After the timeout a blocked read fails with EINTR.
pub fn start_timeout() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("sigaction")?;
    // The parent may have blocked SIGALRM.
    SigSet::from(Signal::SIGALRM).thread_unblock().context("sigprocmask")?;
    let after = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
    let (it_interval, it_value) = (after(INTERVAL_SECONDS), after(TIMEOUT_SECONDS));
    let timer = libc::itimerval { it_interval, it_value };
    // SAFETY: the kernel reads one itimerval.
    let rc = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
    Errno::result(rc).map(drop).context("setitimer")
}

/// SIGALRM needs a handler: its default action ends the process.
extern "C" fn nothing(_: libc::c_int) {}
