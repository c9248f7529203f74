//! What the hazards share and none of them teaches: a parent that waits for a child with a limit, and says where a
//! child that does not come back sleeps. The forks are in `src/bin`.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

/// sysexits(3): the kernel lacks what the lesson needs, or forbids it.
const UNAVAILABLE: u8 = 69;

/// Waits for a child that may never end; `None` if it has not when the limit is over.
pub fn wait_at_most(child: Pid, limit: Duration) -> Result<Option<WaitStatus>> {
    let began = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).context("waitpid")? {
            WaitStatus::StillAlive if began.elapsed() < limit => thread::sleep(Duration::from_millis(2)),
            WaitStatus::StillAlive => return Ok(None),
            status => return Ok(Some(status)),
        }
    }
}

/// The kernel function a process sleeps in, proc_pid_wchan(5); `?` where the kernel does not say.
pub fn where_it_sleeps(pid: Pid) -> String {
    match fs::read_to_string(format!("/proc/{pid}/wchan")) {
        Ok(name) if !name.is_empty() && name != "0" => name,
        _ => "?".into(),
    }
}

/// Ends a child that is stuck, and reaps it.
pub fn end_child(child: Pid) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}

/// In a child: die with the parent. A stuck child must not outlive the demonstration that made it.
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

/// While this lives, Ctrl-C and its relatives wait: no file and no process is left behind half-way.
pub struct Shielded(SigSet);

impl Shielded {
    pub fn new() -> Result<Shielded> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before)).context("sigprocmask")?;
        Ok(Shielded(before))
    }
}

impl Drop for Shielded {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
    }
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
