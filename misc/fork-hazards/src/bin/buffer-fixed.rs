//! Two fixes for the copied buffer: flush before the fork, or end the child with _exit.
//!
//! Run: cargo run -p fork-hazards --bin buffer-fixed -- --fix flush
//! Try: strace -f -e trace=write,exit_group target/debug/buffer-fixed --fix exit

use std::io::{self, Write};
use std::process;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use common::report::Failed;
use fork_hazards::{leave, print_line};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// A buffer that is printed once
#[derive(Parser)]
struct Args {
    /// The fix
    #[arg(long, value_enum, default_value_t = Fix::Flush)]
    fix: Fix,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Fix {
    /// Flush before the fork: the child copies an empty buffer
    Flush,
    /// End the child with _exit: its copy is discarded
    Exit,
}

fn main() -> Result<(), Failed> {
    Ok(demonstrate(Args::parse().fix)?)
}

fn demonstrate(fix: Fix) -> Result<()> {
    write!(io::stdout(), "buffered-line ").context("stdout")?;
    if fix == Fix::Flush {
        io::stdout().flush().context("stdout")?;
    }
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(fix),
        Ok(ForkResult::Parent { child }) => waitpid(child, None).context("waitpid")?,
        Err(e) => return Err(e).context("fork"),
    };
    print_line("");
    Ok(())
}

fn child(fix: Fix) -> ! {
    match fix {
        Fix::Flush => process::exit(0),
        Fix::Exit => leave(0),
    }
}
