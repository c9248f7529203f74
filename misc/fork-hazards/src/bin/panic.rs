//! Bug: a panic in the child unwinds into the parent's loop, and then two servers run.
//!
//! Run: cargo run -p fork-hazards --bin panic
//! Try: cargo run -p fork-hazards --bin panic-fixed

use std::panic::{self, catch_unwind, panic_any};

use anyhow::{Context, Result};
use clap::Parser;
use common::report::Failed;
use fork_hazards::{block_signals, leave, print_line};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getpid};
use tempfile::NamedTempFile;

/// A panic that turns a child into a second server
#[derive(Parser)]
struct Args {}

fn main() -> Result<(), Failed> {
    let Args {} = Args::parse();
    Ok(serve()?)
}

fn serve() -> Result<()> {
    block_signals()?;
    panic::set_hook(Box::new(|_| print_line(format_args!("process {}: panic", getpid()))));
    let main_process = getpid();
    // The drop of this value removes the file.
    let state = NamedTempFile::new().context("temporary file")?;
    for request in 1..=3 {
        print_line(format_args!("server {}: request {request}", getpid()));
        // A server catches panics to survive a bad request. The child of request 1 continues here
        // too.
        let _ = catch_unwind(|| handle(request));
    }
    let state = if state.path().exists() { "there" } else { "GONE" };
    print_line(format_args!("server {}: at the end the state file is {state}", getpid()));
    if getpid() != main_process {
        print_line(format_args!(
            "server {}: this process was the child of a bad request",
            getpid()
        ));
    }
    Ok(())
}

fn handle(request: u32) {
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            work(request);
            // A panic does not reach this line.
            leave(0)
        }
        Ok(ForkResult::Parent { child }) => {
            let _ = waitpid(child, None);
        }
        Err(e) => print_line(format_args!("fork: {e}")),
    }
}

/// Request 1 is the bad request.
#[expect(clippy::panic, reason = "the bug of this lesson")]
fn work(request: u32) {
    if request == 1 {
        panic_any("a bad request");
    }
}
