//! SIGCHLD coalesces: several children that end together cause one signal, so reap in a loop.
//!
//! Run: cargo run -p self-pipe --bin reap -- --once
//! Try: cargo run -p self-pipe --bin reap

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use self_pipe::{end, on_signal, print_line};

/// Children that end together cause one SIGCHLD
#[derive(Parser)]
struct Args {
    /// Number of children that end while SIGCHLD is blocked
    #[arg(short = 'n', long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    children: u8,
    /// The bug: one waitpid per signal
    #[arg(long)]
    once: bool,
}

static ONCE: AtomicBool = AtomicBool::new(false);
static SIGNALS: AtomicU32 = AtomicU32::new(0);
static REAPED: AtomicU32 = AtomicU32::new(0);

fn main() -> ExitCode {
    end("reap", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    ONCE.store(args.once, SeqCst);
    on_signal(Signal::SIGCHLD, reap_children)?;
    let sigchld = SigSet::from(Signal::SIGCHLD);
    sigchld.thread_block().context("sigprocmask")?;
    let mut children = Vec::new();
    for _ in 0..args.children {
        // SAFETY: this process has one thread, so the child may call any function.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => child(),
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(e) => return Err(e).context("fork"),
        }
    }
    for child in &children {
        wait_unreaped(*child)?;
    }
    print_line(format_args!("{} children have ended while SIGCHLD was blocked", children.len()));
    // The handler runs before this call returns.
    sigchld.thread_unblock().context("sigprocmask")?;
    let zombies = children.iter().filter(|child| is_zombie(**child)).count();
    let (signals, reaped) = (SIGNALS.load(SeqCst), REAPED.load(SeqCst));
    print_line(format_args!("{signals} SIGCHLD, {reaped} reaped, {zombies} zombies"));
    // Reaps the zombies that the bug has left.
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok() {}
    Ok(())
}

fn child() -> ! {
    // SAFETY: _exit, because exit would run the parent's atexit functions.
    unsafe { libc::_exit(0) }
}

/// Waits until the child has ended. WNOWAIT keeps it as a zombie.
fn wait_unreaped(child: Pid) -> Result<()> {
    waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).context("waitid")?;
    Ok(())
}

fn is_zombie(child: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    matches!(waitid(Id::Pid(child), flags), Ok(WaitStatus::Exited(..)))
}

/// Loops until waitpid returns 0 (no child has ended) or fails (no child is left).
extern "C" fn reap_children(_: libc::c_int) {
    let errno = Errno::last_raw();
    SIGNALS.fetch_add(1, SeqCst);
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {
        REAPED.fetch_add(1, SeqCst);
        if ONCE.load(SeqCst) {
            break;
        }
    }
    Errno::set_raw(errno);
}
