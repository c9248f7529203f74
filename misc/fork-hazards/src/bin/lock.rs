//! Bug: another thread holds the lock of stdout at the fork. In the child this thread does not
//! exist.
//!
//! Run: cargo run -p fork-hazards --bin lock
//! Try: cargo run -p fork-hazards --bin lock-fixed -- --fix write

use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use common::report::Failed;
use fork_hazards::{die_with, end_child, leave, print_line, wait_with_timeout, wchan};
use nix::unistd::{ForkResult, Pid, fork, getpid};

/// A child blocks in a print call: another thread held the lock of stdout at the fork
#[derive(Parser)]
struct Args {
    /// How long the parent waits for the child
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
}

fn main() -> Result<(), Failed> {
    Ok(demonstrate(Duration::from_millis(Args::parse().timeout))?)
}

fn demonstrate(timeout: Duration) -> Result<()> {
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
    // SAFETY: this is the bug: the process has two threads, and the child uses a lock.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => child(parent),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    // The parent releases its lock. The child has a locked copy that no thread can unlock.
    drop(unlock);
    let _ = holder.join();
    match wait_with_timeout(child, timeout)? {
        Some(status) => print_line(format_args!("the child ended: {status:?}")),
        None => {
            let wchan = wchan(child);
            let ms = timeout.as_millis();
            print_line(format_args!(
                "child {child} has not ended after {ms} ms; it sleeps in {wchan}"
            ));
            end_child(child);
        }
    }
    Ok(())
}

/// The life of the child: it blocks in writeln!.
fn child(parent: Pid) -> ! {
    die_with(parent);
    let _ = writeln!(io::stdout(), "the child has printed");
    leave(0)
}
