//! Two cures for the copied buffer: flush before the fork, or leave the child by _exit.
//!
//! Run: cargo run -p fork-hazards --bin buffer-fixed -- --cure flush
//! Try: strace -f -e trace=write,exit_group target/debug/buffer-fixed --cure exit

use std::io::{self, Write};
use std::process::{self, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use fork_hazards::{end, leave, say};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// A buffer that is printed once
#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value_t = Cure::Flush)]
    cure: Cure,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Cure {
    /// Flush before the fork: an empty buffer is copied
    Flush,
    /// Leave the child by _exit: its copy is thrown away
    Exit,
}

fn main() -> ExitCode {
    end("buffer-fixed", demonstrate(Args::parse().cure))
}

fn demonstrate(cure: Cure) -> Result<()> {
    write!(io::stdout(), "buffered-line ").context("stdout")?;
    if cure == Cure::Flush {
        io::stdout().flush().context("stdout")?;
    }
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(cure),
        Ok(ForkResult::Parent { child }) => waitpid(child, None).context("waitpid")?,
        Err(e) => return Err(e).context("fork"),
    };
    say("");
    Ok(())
}

fn child(cure: Cure) -> ! {
    match cure {
        Cure::Flush => process::exit(0),
        Cure::Exit => leave(0),
    }
}
