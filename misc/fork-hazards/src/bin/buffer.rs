//! Bug: bytes that are in the buffer of stdout at the fork are printed twice.
//!
//! Run: cargo run -p fork-hazards --bin buffer
//! Try: cargo run -p fork-hazards --bin buffer-fixed -- --fix flush

use std::io::{self, Write};
use std::process;

use anyhow::{Context, Result};
use clap::Parser;
use common::report::Failed;
use fork_hazards::print_line;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// A buffer that is printed twice
#[derive(Parser)]
struct Args {}

fn main() -> Result<(), Failed> {
    let Args {} = Args::parse();
    Ok(demonstrate()?)
}

fn demonstrate() -> Result<()> {
    // Without a newline the text stays in memory, which the child copies.
    write!(io::stdout(), "buffered-line ").context("stdout")?;
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(),
        Ok(ForkResult::Parent { child }) => waitpid(child, None).context("waitpid")?,
        Err(e) => return Err(e).context("fork"),
    };
    print_line("");
    Ok(())
}

/// exit, not _exit: it runs the atexit functions, and Rust flushes stdout.
fn child() -> ! {
    process::exit(0)
}
