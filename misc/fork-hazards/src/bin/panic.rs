//! Hazard: a panic in the child unwinds into the parent's loop, and there are two servers.
//!
//! Run: cargo run -p fork-hazards --bin panic
//! Try: cargo run -p fork-hazards --bin panic-fixed

use std::panic::{self, catch_unwind, panic_any};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fork_hazards::{Shielded, end, leave, say};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getpid};
use tempfile::NamedTempFile;

/// A panic that makes a second server of a child
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    end("panic", serve())
}

fn serve() -> Result<()> {
    let _shielded = Shielded::new()?;
    panic::set_hook(Box::new(|_| say(format_args!("process {}: panic", getpid()))));
    let main_process = getpid();
    // A guard of the parent's: dropped, it removes the file.
    let state = NamedTempFile::new().context("temporary file")?;
    for request in 1..=3 {
        say(format_args!("server {}: request {request}", getpid()));
        // As a server does that must outlive a bad request. The child of request 1 comes out here, too.
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
        Ok(ForkResult::Child) => {
            work(request);
            // The panic goes past this line.
            leave(0)
        }
        Ok(ForkResult::Parent { child }) => {
            let _ = waitpid(child, None);
        }
        Err(e) => say(format_args!("fork: {e}")),
    }
}

/// Request 1 is the bad one.
#[expect(clippy::panic, reason = "the defect that the lesson is about")]
fn work(request: u32) {
    if request == 1 {
        panic_any("a bad request");
    }
}
