//! signalfd: the signal stays blocked and is read as data. Two equal pending signals are one
//! record.
//!
//! Run: cargo run -p self-pipe --bin signalfd -- --kills 5
//! Try: cargo run -p self-pipe --bin signalfd -- --kills 5 --realtime

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::ptr;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpid, read};
use self_pipe::{Experiment, end, print_line, result_text, silent_client};

/// Signals read as data from a descriptor
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Number of calls kill(SIGUSR1) in the window, in addition to SIGALRM
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    kills: u32,
    /// Send SIGRTMIN instead: real-time signals queue
    #[arg(long)]
    realtime: bool,
}

fn main() -> ExitCode {
    end("signalfd", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    let (client, _other_end) = silent_client()?;
    let (name, signal) = match args.realtime {
        true => ("SIGRTMIN", libc::SIGRTMIN()),
        false => ("SIGUSR1", libc::SIGUSR1),
    };
    let signals = block_and_make_signalfd(&[libc::SIGALRM, signal])?;
    args.experiment.window()?;
    for _ in 0..args.kills {
        // SAFETY: no memory is involved. The signal is blocked, so it becomes pending.
        Errno::result(unsafe { libc::kill(getpid().as_raw(), signal) }).context("kill")?;
    }
    let mut fds = [client.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = PollTimeout::try_from(args.experiment.timeout()).unwrap_or(PollTimeout::MAX);
    let began = Instant::now();
    let result = poll(&mut fds, timeout);
    let readable = fds.last().and_then(PollFd::any) == Some(true);
    let readable = format!("the signalfd is readable: {readable}");
    args.experiment.report("poll", result_text(result), began, readable);
    let (mut alarms, mut records) = (0, 0);
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    // One record per pending signal, not per kill.
    while let Ok(n) = read(&signals, &mut record)
        && n == record.len()
    {
        // ssi_signo is the first field of signalfd_siginfo.
        match record.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as libc::c_int) {
            Some(libc::SIGALRM) => alarms += 1,
            _ => records += 1,
        }
    }
    print_line(format_args!("{} kill({name}), {records} records; {alarms} of SIGALRM", args.kills));
    Ok(())
}

/// Blocks the signals and makes a signalfd. With libc, because nix has no real-time signals.
fn block_and_make_signalfd(signals: &[libc::c_int]) -> Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset writes the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised by sigemptyset.
        Errno::result(unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) })
            .context("sigaddset")?;
    }
    // Not blocked, they would run their default action. Every thread must block them, so block them
    // before the first thread is created. SAFETY: pthread_sigmask reads the set.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc)).context("pthread_sigmask");
    }
    // SAFETY: signalfd reads the set and makes a descriptor.
    let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    let fd = Errno::result(fd).context("signalfd")?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let number = fd.as_raw_fd();
    print_line(format_args!("signalfd {number}: see /proc/{}/fdinfo/{number}", getpid()));
    Ok(fd)
}
