//! Hazard: what was in the buffer at the fork is printed twice.
//!
//! Run: cargo run -p fork-hazards --bin buffer
//! Try: cargo run -p fork-hazards --bin buffer-fixed -- --cure flush

use std::io::{self, Write};
use std::process::{self, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use fork_hazards::{end, say};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// A buffer that is printed twice
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    end("buffer", demonstrate())
}

fn demonstrate() -> Result<()> {
    // No line feed: it stays in this process's memory, which the child copies.
    write!(io::stdout(), "buffered-line ").context("stdout")?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(),
        Ok(ForkResult::Parent { child }) => waitpid(child, None).context("waitpid")?,
        Err(e) => return Err(e).context("fork"),
    };
    say("");
    Ok(())
}

/// exit, not _exit: it runs what is registered for the end of the program, and that flushes stdout.
fn child() -> ! {
    process::exit(0)
}
