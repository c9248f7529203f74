//! pidfd: one descriptor per child, readable when the child has ended. No SIGCHLD is needed.
//!
//! Run: cargo run -p self-pipe --bin pidfd
//! Try: cargo run -p self-pipe --bin reap -- --once

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid, fork};
use self_pipe::{Experiment, end, on_signal, print_line, result_text, silent_client};

/// One descriptor per child, readable when the child has ended
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Number of children; they exit with status 0, 1, 2 ...
    #[arg(short = 'n', long, default_value_t = 3, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    children: u8,
}

fn main() -> ExitCode {
    end("pidfd", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    // The SIGALRM of the experiment is ignored here: the event is the end of a child.
    on_signal(nix::sys::signal::Signal::SIGALRM, nothing)?;
    let (client, _other_end) = silent_client()?;
    let mut pidfds = Vec::new();
    for status in 0..args.children {
        // SAFETY: this process has one thread, so the child may call any function.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => child(status),
            // The pid cannot belong to another process yet, because the child is not reaped.
            Ok(ForkResult::Parent { child }) => pidfds.push(pidfd_open(child)?),
            Err(e) => return Err(e).context("fork"),
        }
    }
    // All children end in the window. Nothing is lost: a pidfd stays readable.
    args.experiment.window()?;
    let mut statuses = Vec::new();
    while !pidfds.is_empty() {
        let ended = poll_once(&pidfds, &client, &args.experiment)?;
        if ended.is_empty() {
            break;
        }
        for index in ended.into_iter().rev() {
            statuses.push(reap(&pidfds.swap_remove(index))?);
        }
    }
    statuses.sort();
    print_line(format_args!("{} children reaped, statuses {statuses:?}", statuses.len()));
    Ok(())
}

/// The positions of the pidfds whose children have ended. Empty: timeout.
fn poll_once(pidfds: &[OwnedFd], client: &OwnedFd, experiment: &Experiment) -> Result<Vec<usize>> {
    let fds = pidfds.iter().chain([client]);
    let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(experiment.timeout()).unwrap_or(PollTimeout::MAX);
    let began = Instant::now();
    let result = poll(&mut fds, timeout);
    let watched = format!("{} pidfds watched", pidfds.len());
    experiment.report("poll", result_text(result), began, watched);
    result.context("poll")?;
    let children = fds.iter().take(pidfds.len()).enumerate();
    Ok(children.filter(|(_, fd)| fd.any() == Some(true)).map(|(index, _)| index).collect())
}

fn child(status: u8) -> ! {
    // SAFETY: _exit, because exit would run the parent's atexit functions.
    unsafe { libc::_exit(i32::from(status)) }
}

fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: makes a descriptor, with close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd).context("pidfd_open (Linux 5.3)")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Reaps the child of this descriptor and no other.
fn reap(pidfd: &OwnedFd) -> Result<i32> {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).context("waitid")? {
        WaitStatus::Exited(_, status) => Ok(status),
        other => anyhow::bail!("waitid: {other:?}"),
    }
}

extern "C" fn nothing(_: libc::c_int) {}
