//! What the programs share: a wait with a timeout, and where a blocked child sleeps. The fork calls
//! are in `src/bin`.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

/// The time between two checks of a child.
const INTERVAL: Duration = Duration::from_millis(2);

/// Waits for a child. `None`: it has not ended within the timeout.
pub fn wait_with_timeout(child: Pid, timeout: Duration) -> Result<Option<WaitStatus>> {
    let began = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).context("waitpid")? {
            WaitStatus::StillAlive if began.elapsed() < timeout => thread::sleep(INTERVAL),
            WaitStatus::StillAlive => return Ok(None),
            status => return Ok(Some(status)),
        }
    }
}

/// The kernel function that a process sleeps in, proc_pid_wchan(5). `?`: the kernel does not report
/// it.
pub fn wchan(pid: Pid) -> String {
    match fs::read_to_string(format!("/proc/{pid}/wchan")) {
        Ok(name) if !name.is_empty() && name != "0" => name,
        _ => "?".into(),
    }
}

/// Kills a blocked child and reaps it.
pub fn end_child(child: Pid) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}

/// A child calls this first: the kernel kills it when the parent ends.
pub fn die_with(parent: Pid) {
    let _ = set_pdeathsig(Signal::SIGKILL);
    // If the parent has ended before prctl, the kernel sends no signal.
    if getppid() != parent {
        leave(1);
    }
}

/// The end of a child. _exit, because exit would run the parent's atexit functions and flush its
/// buffers.
pub fn leave(status: i32) -> ! {
    // SAFETY: _exit ends the process.
    unsafe { libc::_exit(status) }
}

/// Blocks the signals that end the process until the program exits, so that no file and no process
/// is left behind. Each program ends within a few seconds.
pub fn block_signals() -> Result<()> {
    let signals =
        SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block().context("sigprocmask")
}

/// Prints a line. A closed stdout does not end the program.
pub fn print_line(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
