//! Hazard: another thread held the lock of stdout at the fork, and in the child that thread does not exist.
//!
//! Run: cargo run -p fork-hazards --bin lock
//! Try: cargo run -p fork-hazards --bin lock-fixed -- --cure write

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fork_hazards::{die_with, end, end_child, leave, say, wait_at_most, where_it_sleeps};
use nix::unistd::{ForkResult, Pid, fork, getpid};

/// A child that is stuck in println!, since another thread held the lock of stdout at the fork
#[derive(Parser)]
struct Args {
    /// How long the parent waits for the child
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    patience: u64,
}

fn main() -> ExitCode {
    end("lock", demonstrate(Duration::from_millis(Args::parse().patience)))
}

fn demonstrate(patience: Duration) -> Result<()> {
    let parent = getpid();
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
    // SAFETY: it is not safe, and that is the lesson: this process has two threads, and the child uses a lock.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => child(parent),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    // In the parent the lock is free again at once. The child has a copy of it, which nobody will ever unlock.
    drop(unlock);
    let _ = holder.join();
    match wait_at_most(child, patience)? {
        Some(status) => say(format_args!("the child ended: {status:?}")),
        None => {
            let wchan = where_it_sleeps(child);
            say(format_args!("child {child} is stuck after {} ms, it sleeps in {wchan}", patience.as_millis()));
            end_child(child);
        }
    }
    Ok(())
}

fn child(parent: Pid) -> ! {
    die_with(parent);
    let _ = writeln!(io::stdout(), "the child speaks");
    leave(0)
}
