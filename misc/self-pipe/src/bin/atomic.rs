//! pselect, ppoll, epoll_pwait: the call unblocks the signal and sleeps in one atomic step.
//!
//! Run: cargo run -p self-pipe --bin atomic -- --call ppoll
//! Try: target/debug/atomic --window 5000 & sleep 1; grep -E 'Pnd|Blk' /proc/$!/status

use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::select::{FdSet, pselect};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;
use self_pipe::{Experiment, end, on_signal, result_text, silent_client};

/// Calls that unblock a signal and sleep in one atomic step
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// The call
    #[arg(long, value_enum, default_value_t = Call::Pselect)]
    call: Call,
}

#[derive(Clone, Copy, ValueEnum)]
enum Call {
    Pselect,
    Ppoll,
    EpollPwait,
}

static CAUGHT: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    end("atomic", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    on_signal(Signal::SIGALRM, note)?;
    let (client, _other_end) = silent_client()?;
    // Block before the check: from here to the sleep the signal can only become pending.
    SigSet::from(Signal::SIGALRM).thread_block().context("sigprocmask")?;
    if CAUGHT.load(SeqCst) {
        return Ok(());
    }
    args.experiment.window()?;
    let timeout = args.experiment.timeout();
    let began = Instant::now();
    let (name, result) = match args.call {
        Call::Pselect => ("pselect", with_pselect(client.as_fd(), timeout)),
        Call::Ppoll => ("ppoll", with_ppoll(client.as_fd(), timeout)),
        Call::EpollPwait => ("epoll_pwait", with_epoll_pwait(client.as_fd(), timeout)),
    };
    args.experiment.report(
        name,
        result_text(result),
        began,
        format_args!("the flag: {}", CAUGHT.load(SeqCst)),
    );
    Ok(())
}

/// The last argument is the signal mask during the sleep. Before and after it SIGALRM is blocked.
fn with_pselect(client: impl AsFd, timeout: Duration) -> nix::Result<libc::c_int> {
    let mut readable = FdSet::new();
    readable.insert(client.as_fd());
    pselect(None, &mut readable, None, None, &TimeSpec::from(timeout), &SigSet::empty())
}

fn with_ppoll(client: impl AsFd, timeout: Duration) -> nix::Result<libc::c_int> {
    ppoll(
        &mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)],
        Some(timeout.into()),
        Some(SigSet::empty()),
    )
}

fn with_epoll_pwait(client: impl AsFd, timeout: Duration) -> nix::Result<libc::c_int> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(client, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }];
    let mask = SigSet::empty();
    let (fd, milliseconds) = (epoll.0.as_raw_fd(), timeout.as_millis() as libc::c_int);
    // SAFETY: the kernel writes at most one event and reads the mask.
    let n = unsafe { libc::epoll_pwait(fd, events.as_mut_ptr(), 1, milliseconds, mask.as_ref()) };
    Errno::result(n)
}

/// A flag is not enough: see `fixed`.
extern "C" fn note(_: libc::c_int) {
    CAUGHT.store(true, SeqCst);
}
