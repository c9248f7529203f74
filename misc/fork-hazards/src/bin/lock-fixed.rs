//! Three cures for the held lock: fork before the first thread, raw write(2) in the child, or Command.
//!
//! Run: cargo run -p fork-hazards --bin lock-fixed -- --cure early
//! Try: strace -f -e trace=clone,clone3,vfork,write target/debug/lock-fixed --cure command

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, ValueEnum};
use fork_hazards::{die_with, end, end_child, leave, say, wait_at_most};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, read};

/// A child that speaks although another thread of the parent holds the lock of stdout
#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value_t = Cure::Write)]
    cure: Cure,
    /// How long the parent waits for the child
    #[arg(long, default_value_t = 20_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    patience: u64,
    /// The program that Command starts
    #[arg(long, hide = true)]
    program: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cure {
    /// Fork before the first thread is made: the locks that the child copies are free
    Early,
    /// In the child only async-signal-safe calls: write(2) knows no lock
    Write,
    /// Do not fork: Command starts a new program, which has locks of its own
    Command,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.program {
        say("the child speaks: a program of its own");
        return ExitCode::SUCCESS;
    }
    let patience = Duration::from_millis(args.patience);
    let outcome = match args.cure {
        Cure::Early => early(patience),
        Cure::Write => write(patience),
        Cure::Command => command(),
    };
    end("lock-fixed", outcome)
}

fn early(patience: Duration) -> Result<()> {
    let parent = getpid();
    let (go, gone) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => child_from_before(parent, go, gone),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    while_stdout_is_locked(|| {
        drop(gone);
        wait(child, patience)
    })
}

fn write(patience: Duration) -> Result<()> {
    let parent = getpid();
    while_stdout_is_locked(|| {
        // SAFETY: two threads; the child makes async-signal-safe calls only.
        let child = match unsafe { fork() } {
            Ok(ForkResult::Child) => child_that_writes(parent),
            Ok(ForkResult::Parent { child }) => child,
            Err(e) => return Err(e).context("fork"),
        };
        wait(child, patience)
    })
}

fn command() -> Result<()> {
    while_stdout_is_locked(|| {
        let status = Command::new("/proc/self/exe").arg("--program").status().context("/proc/self/exe")?;
        status.success().then_some(()).ok_or_else(|| anyhow!("the child: {status}"))
    })
}

/// Speaks when the parent says go, with whatever locks it copied long ago.
fn child_from_before(parent: Pid, go: OwnedFd, gone: OwnedFd) -> ! {
    die_with(parent);
    drop(gone);
    // End of file: the parent has closed its end.
    let _ = read(&go, &mut [0]);
    let _ = writeln!(io::stdout(), "the child speaks: forked before the first thread");
    leave(0)
}

fn child_that_writes(parent: Pid) -> ! {
    die_with(parent);
    let text = b"the child speaks: with write(2)\n";
    // SAFETY: the bytes outlive the call.
    unsafe { libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len()) };
    leave(0)
}

fn wait(child: Pid, patience: Duration) -> Result<()> {
    if wait_at_most(child, patience)?.is_none() {
        end_child(child);
        return Err(anyhow!("child {child} is stuck"));
    }
    Ok(())
}

/// Another thread holds the lock of stdout for as long as `act` takes.
fn while_stdout_is_locked(act: impl FnOnce() -> Result<()>) -> Result<()> {
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
    let outcome = act();
    drop(unlock);
    let _ = holder.join();
    outcome?;
    say("the parent has reaped it; the lock was held all the while");
    Ok(())
}
