//! The fix for the panic in the child: `fn child(..) -> !` catches the panic and ends with _exit.
//!
//! Run: cargo run -p fork-hazards --bin panic-fixed
//! Try: cargo run -p fork-hazards --bin panic

use std::panic::{self, catch_unwind, panic_any};

use anyhow::{Context, Result};
use clap::Parser;
use common::report::Failed;
use fork_hazards::{block_signals, leave, print_line};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getpid};
use tempfile::NamedTempFile;

/// A panic that ends only its child
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
        Ok(ForkResult::Child) => child(request),
        Ok(ForkResult::Parent { child }) => match waitpid(child, None) {
            Ok(WaitStatus::Exited(pid, status)) => {
                print_line(format_args!("child {pid}: exit {status}"))
            }
            Ok(status) => print_line(format_args!("{status:?}")),
            Err(e) => print_line(format_args!("waitpid: {e}")),
        },
        Err(e) => print_line(format_args!("fork: {e}")),
    }
}

/// `!`: the compiler checks that this function never returns into the parent's loop. 101 is Rust's
/// exit status after a panic.
fn child(request: u32) -> ! {
    match catch_unwind(|| work(request)) {
        Ok(()) => leave(0),
        Err(_) => leave(101),
    }
}

/// Request 1 is the bad request.
#[expect(clippy::panic, reason = "the bug of this lesson")]
fn work(request: u32) {
    if request == 1 {
        panic_any("a bad request");
    }
}
