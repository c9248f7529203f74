//! Three fixes for the lock: fork before the first thread, write(2) in the child, or Command.
//!
//! Run: cargo run -p fork-hazards --bin lock-fixed -- --fix early
//! Try: strace -f -e trace=clone,clone3,vfork,write target/debug/lock-fixed --fix command

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, ValueEnum};
use common::report::Failed;
use fork_hazards::{die_with, end_child, leave, print_line, wait_with_timeout};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, read};

/// A child prints although another thread of the parent holds the lock of stdout
#[derive(Parser)]
struct Args {
    /// The fix
    #[arg(long, value_enum, default_value_t = Fix::Write)]
    fix: Fix,
    /// How long the parent waits for the child
    #[arg(long, default_value_t = 20_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
    /// The program that Command starts
    #[arg(long, hide = true)]
    program: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fix {
    /// Fork before the first thread: the child copies free locks
    Early,
    /// Only async-signal-safe calls in the child: write(2) takes no lock
    Write,
    /// No fork: Command starts a new program, which has its own locks
    Command,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    if args.program {
        print_line("the child has printed: a new program");
        return Ok(());
    }
    let timeout = Duration::from_millis(args.timeout);
    let outcome = match args.fix {
        Fix::Early => early(timeout),
        Fix::Write => write(timeout),
        Fix::Command => command(),
    };
    Ok(outcome?)
}

/// The child exists before the thread that locks stdout.
fn early(timeout: Duration) -> Result<()> {
    let parent = getpid();
    let (start, notify) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    // SAFETY: this process has one thread, so the child may call any function.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => early_child(parent, start, notify),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    while_stdout_is_locked(|| {
        drop(notify);
        wait(child, timeout)
    })
}

/// The child is forked while the lock is held, and does not use the lock.
fn write(timeout: Duration) -> Result<()> {
    let parent = getpid();
    while_stdout_is_locked(|| {
        // SAFETY: two threads, so the child makes only async-signal-safe calls.
        let child = match unsafe { fork() } {
            Ok(ForkResult::Child) => writing_child(parent),
            Ok(ForkResult::Parent { child }) => child,
            Err(e) => return Err(e).context("fork"),
        };
        wait(child, timeout)
    })
}

/// Command starts a new program while the lock is held.
fn command() -> Result<()> {
    while_stdout_is_locked(|| {
        let status = Command::new("/proc/self/exe").arg("--program").status();
        let status = status.context("/proc/self/exe")?;
        status.success().then_some(()).ok_or_else(|| anyhow!("the child: {status}"))
    })
}

/// Prints when the parent closes its end of the pipe, with the locks of the time of the fork.
fn early_child(parent: Pid, start: OwnedFd, notify: OwnedFd) -> ! {
    die_with(parent);
    drop(notify);
    // End of file: the parent has closed its end.
    let _ = read(&start, &mut [0]);
    let _ = writeln!(io::stdout(), "the child has printed: forked before the first thread");
    leave(0)
}

/// Makes one async-signal-safe call.
fn writing_child(parent: Pid) -> ! {
    die_with(parent);
    let text = b"the child has printed: with write(2)\n";
    // SAFETY: the bytes exist longer than the call.
    unsafe { libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len()) };
    leave(0)
}

fn wait(child: Pid, timeout: Duration) -> Result<()> {
    if wait_with_timeout(child, timeout)?.is_none() {
        end_child(child);
        return Err(anyhow!("child {child} has not ended"));
    }
    Ok(())
}

/// Calls `action` while another thread holds the lock of stdout.
fn while_stdout_is_locked(action: impl FnOnce() -> Result<()>) -> Result<()> {
    let (locked, is_locked) = mpsc::channel();
    let (unlock, may_unlock) = mpsc::channel::<()>();
    let holder = thread::Builder::new().spawn(move || {
        let lock = io::stdout().lock();
        let _ = locked.send(());
        let _ = may_unlock.recv();
        drop(lock);
    });
    let holder = holder.context("thread")?;
    is_locked.recv().context("the thread that locks stdout")?;
    let outcome = action();
    drop(unlock);
    let _ = holder.join();
    outcome?;
    print_line("the parent has reaped it; the lock was held the whole time");
    Ok(())
}
