//! What the experiments share and none of them teaches: a signal that is due inside a widened window, a client that
//! stays silent, the report. The calls that wait are in `src/bin`.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::pipe2;

/// sysexits(3): the kernel lacks what the lesson needs, or forbids it.
const UNAVAILABLE: u8 = 69;

/// The experiment: look, and then sleep; the signal comes in between.
#[derive(Args, Debug)]
pub struct Experiment {
    /// The signal comes so long after the look
    #[arg(long, default_value_t = 20, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    signal_after: u64,
    /// The window: so long after the look begins the call that sleeps
    #[arg(long, default_value_t = 50, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=10_000))]
    window: u64,
    /// The call sleeps no longer than this
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
}

impl Experiment {
    /// The window between the look and the sleep, which is a few instructions in real programs. The timer is started
    /// in it, so that the signal never comes before the look.
    pub fn window(&self) -> Result<()> {
        say(format!(
            "looked: no signal yet. SIGALRM is due in {} ms, the sleep in {} ms",
            self.signal_after, self.window
        ));
        let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let after = Duration::from_millis(self.signal_after);
        let due = libc::timeval { tv_sec: after.as_secs() as i64, tv_usec: i64::from(after.subsec_micros()) };
        // SAFETY: the kernel reads one itimerval.
        let rc = unsafe {
            libc::setitimer(libc::ITIMER_REAL, &libc::itimerval { it_interval: zero, it_value: due }, ptr::null_mut())
        };
        Errno::result(rc).context("setitimer")?;
        // Begins again when a signal interrupts it.
        thread::sleep(Duration::from_millis(self.window));
        Ok(())
    }

    /// How long the call may sleep.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }

    /// What the call said, how long it slept, and what the program knows of the signal afterwards.
    pub fn report(&self, call: &str, answer: impl Display, began: Instant, signal: impl Display) {
        let slept = began.elapsed().as_millis();
        say(format!("{call}: {answer}, slept {slept} ms of {} ms; {signal}", self.timeout));
    }
}

/// A descriptor that never becomes readable: a client that says nothing. Its other end must be kept.
pub fn silent_client() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("pipe2")
}

/// Installs a handler without SA_RESTART; select, poll and epoll_wait return EINTR with it, too.
pub fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers of this crate make async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    // Whoever started this program may have blocked it, and the mask is inherited.
    SigSet::from(signal).thread_unblock().context("sigprocmask")
}

/// What a call said: its number, or the name of its error.
pub fn answer(result: Result<libc::c_int, Errno>) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), |n| n.to_string())
}

/// One line on stdout; a closed stdout is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The exit status, and one line where something failed: 69 if the kernel lacks a call or forbids it, else 1.
pub fn end(program: &str, outcome: Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "{program}: {error:#}");
    match error.downcast_ref::<Errno>() {
        Some(Errno::ENOSYS | Errno::EPERM) => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::FAILURE,
    }
}
