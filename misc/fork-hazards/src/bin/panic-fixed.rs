//! The cure for the panic in the child: `fn child(..) -> !`, which catches it and leaves by _exit.
//!
//! Run: cargo run -p fork-hazards --bin panic-fixed
//! Try: cargo run -p fork-hazards --bin panic

use std::panic::{self, catch_unwind, panic_any};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fork_hazards::{Shielded, end, leave, say};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getpid};
use tempfile::NamedTempFile;

/// A panic that ends its child, and nothing else
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    end("panic-fixed", serve())
}

fn serve() -> Result<()> {
    let _shielded = Shielded::new()?;
    panic::set_hook(Box::new(|_| say(format_args!("process {}: panic", getpid()))));
    let main_process = getpid();
    // A guard of the parent's: dropped, it removes the file.
    let state = NamedTempFile::new().context("temporary file")?;
    for request in 1..=3 {
        say(format_args!("server {}: request {request}", getpid()));
        let _ = catch_unwind(|| handle(request));
    }
    let there = if state.path().exists() { "there" } else { "GONE" };
    say(format_args!("server {}: at its end the state file is {there}", getpid()));
    if getpid() != main_process {
        say(format_args!("server {}: I was the child of a bad request", getpid()));
    }
    Ok(())
}

fn handle(request: u32) {
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(request),
        Ok(ForkResult::Parent { child }) => match waitpid(child, None) {
            Ok(status) => say(format_args!("{status:?}")),
            Err(e) => say(format_args!("waitpid: {e}")),
        },
        Err(e) => say(format_args!("fork: {e}")),
    }
}

/// `!`: the compiler checks that no way leads back into the parent's loop. 101 is what a panic exits with in Rust.
fn child(request: u32) -> ! {
    match catch_unwind(|| work(request)) {
        Ok(()) => leave(0),
        Err(_) => leave(101),
    }
}

/// Request 1 is the bad one.
#[expect(clippy::panic, reason = "the defect that the lesson is about")]
fn work(request: u32) {
    if request == 1 {
        panic_any("a bad request");
    }
}
