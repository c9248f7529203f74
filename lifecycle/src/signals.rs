//! Two ways to take a signal without a race: a handler for programs that block in one call, and a descriptor for
//! event loops.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use common::report::Failed;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Installs a signal handler without SA_RESTART: the call that the signal interrupts returns EINTR.
///
/// # Errors
/// The errors of sigaction(2).
pub fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: every handler of this workspace makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// Sets what exec may have handed down wrongly: a process inherits ignored signals, signal(7).
///
/// If SIGCHLD is ignored, the kernel reaps the children and waitpid fails with ECHILD. SIGPIPE and SIGXFSZ end a
/// process that writes to a closed connection, or to a log file at its size limit: ignored, the write fails with an
/// error instead.
pub(crate) fn reset_inherited() {
    for (signal, handler) in [
        (Signal::SIGCHLD, SigHandler::SigDfl),
        (Signal::SIGPIPE, SigHandler::SigIgn),
        (Signal::SIGXFSZ, SigHandler::SigIgn),
    ] {
        // SAFETY: the default action and "ignore" run no code in this process.
        let _ = unsafe { nix::sys::signal::signal(signal, handler) };
    }
}

/// Blocked signals as a descriptor that is readable while a signal is pending, signalfd(2).
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks SIGTERM and SIGINT. Call it before the ready line, so that a signal sent right after the line stays
    /// pending, and before the first thread is created, because a thread inherits the signal mask.
    ///
    /// # Errors
    /// One line that names the call and the errno.
    pub fn new() -> Result<Self, Failed> {
        Signals::of(&[Signal::SIGTERM, Signal::SIGINT])
    }

    /// Blocks these signals.
    ///
    /// # Errors
    /// One line that names the call and the errno.
    pub fn of(signals: &[Signal]) -> Result<Self, Failed> {
        reset_inherited();
        let signals = SigSet::from_iter(signals.iter().copied());
        signals.thread_block().context("sigprocmask")?;
        Ok(Signals(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?))
    }

    /// Takes one pending signal.
    ///
    /// # Errors
    /// `WouldBlock`: no signal is pending.
    pub fn read(&self) -> io::Result<Signal> {
        let signal = self.0.read_signal()?.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(Signal::try_from(signal.ssi_signo as i32)?)
    }

    /// Sleeps until a signal is pending, and takes it. For a thread that has nothing else to do.
    ///
    /// # Errors
    /// The errors of poll(2).
    pub fn wait(&self) -> io::Result<Signal> {
        while poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) == Err(Errno::EINTR) {}
        self.read()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
