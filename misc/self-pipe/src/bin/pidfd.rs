//! pidfd: one descriptor per child, readable when that child ends; no SIGCHLD to count, lose or wait for.
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
use self_pipe::{Experiment, answer, end, on_signal, say, silent_client};

/// One descriptor per child, readable when the child ends
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Children; the n-th exits with status n
    #[arg(short = 'n', long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    children: u8,
}

fn main() -> ExitCode {
    end("pidfd", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    // The alarm of the experiment has no part here: the children are the event.
    on_signal(nix::sys::signal::Signal::SIGALRM, nothing)?;
    let (client, _other_end) = silent_client()?;
    let mut pidfds = Vec::new();
    for status in 0..args.children {
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => child(status),
            // A child that is not reaped keeps its pid: the number cannot be a stranger's yet.
            Ok(ForkResult::Parent { child }) => pidfds.push(pidfd_open(child)?),
            Err(e) => return Err(e).context("fork"),
        }
    }
    // All of them end in the window. Nothing is lost: a pidfd stays readable.
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
    say(format_args!("{} children reaped, statuses {statuses:?}", statuses.len()));
    Ok(())
}

/// The places of the pidfds whose children have ended; none at the timeout.
fn poll_once(pidfds: &[OwnedFd], client: &OwnedFd, experiment: &Experiment) -> Result<Vec<usize>> {
    let fds = pidfds.iter().chain([client]);
    let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(experiment.timeout().as_millis() as u64).unwrap_or(PollTimeout::MAX);
    let began = Instant::now();
    let result = poll(&mut fds, timeout);
    experiment.report("poll", answer(result), began, format_args!("{} pidfds watched", pidfds.len()));
    result.context("poll")?;
    let children = fds.iter().take(pidfds.len()).enumerate();
    Ok(children.filter(|(_, fd)| fd.any() == Some(true)).map(|(index, _)| index).collect())
}

fn child(status: u8) -> ! {
    // SAFETY: _exit, not exit: nothing of the parent's runs at the child's end.
    unsafe { libc::_exit(i32::from(status)) }
}

fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: makes a descriptor; the kernel sets close-on-exec on it.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd).context("pidfd_open (Linux 5.3)")?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The child behind this descriptor, and no other one.
fn reap(pidfd: &OwnedFd) -> Result<i32> {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).context("waitid")? {
        WaitStatus::Exited(_, status) => Ok(status),
        other => anyhow::bail!("waitid: {other:?}"),
    }
}

extern "C" fn nothing(_: libc::c_int) {}
