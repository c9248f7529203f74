//! What the programs share: a signal inside a widened window, a silent client, the report. The
//! calls that wait are in `src/bin`.

pub mod disturb;

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

/// sysexits.h: the kernel has no such call, or does not permit it.
const UNAVAILABLE: u8 = 69;

/// The experiment: check, then sleep; the signal arrives in between.
#[derive(Args, Debug)]
pub struct Experiment {
    /// Time from the check to the signal
    #[arg(long, default_value_t = 20, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    signal_after: u64,
    /// The window: time from the check to the call that sleeps
    #[arg(long, default_value_t = 50, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=10_000))]
    window: u64,
    /// Timeout of the call
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
}

impl Experiment {
    /// The window between the check and the sleep: in a real program a few instructions. The timer
    /// starts here, so the signal never arrives before the check.
    pub fn window(&self) -> Result<()> {
        print_line(format!(
            "checked: no signal. SIGALRM comes in {} ms, the call in {} ms",
            self.signal_after, self.window
        ));
        let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let after = Duration::from_millis(self.signal_after);
        let (tv_sec, tv_usec) = (after.as_secs() as i64, after.subsec_micros().into());
        let it_value = libc::timeval { tv_sec, tv_usec };
        let timer = libc::itimerval { it_interval: zero, it_value };
        // SAFETY: the kernel reads one itimerval.
        let rc = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
        Errno::result(rc).context("setitimer")?;
        // Repeats the sleep after a signal.
        thread::sleep(Duration::from_millis(self.window));
        Ok(())
    }

    /// The timeout of the call.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }

    /// Prints the result of the call, how long it slept, and what the program knows about the
    /// signal.
    pub fn report(&self, call: &str, result: impl Display, began: Instant, signal: impl Display) {
        let slept = began.elapsed().as_millis();
        print_line(format!("{call}: {result}, slept {slept} ms of {} ms; {signal}", self.timeout));
    }
}

/// A descriptor that never becomes readable: a silent client. The caller must keep the other end.
pub fn silent_client() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("pipe2")
}

/// Installs a handler without SA_RESTART.
pub fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers of this crate make only async-signal-safe calls.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    // The parent may have blocked the signal, and the mask is inherited.
    SigSet::from(signal).thread_unblock().context("sigprocmask")
}

/// The result of a call: its number, or the name of the errno.
pub fn result_text(result: Result<libc::c_int, Errno>) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), |n| n.to_string())
}

/// Prints a line. A closed stdout does not end the program.
pub fn print_line(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints an error as one line and returns the exit status: 69 if the kernel has no such call or
/// does not permit it, otherwise 1.
pub fn end(program: &str, outcome: Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "{program}: {error:#}");
    match error.downcast_ref::<Errno>() {
        Some(Errno::ENOSYS | Errno::EPERM) => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::FAILURE,
    }
}
