//! `Command` keeps the signal mask: SIGTERM does not end a child of a server that uses signalfd.
//!
//! Run: cargo run -p self-pipe --bin mask
//! Try: cargo run -p self-pipe --bin mask -- --clear

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use self_pipe::{end, print_line};

/// Which signal mask a child of Command inherits
#[derive(Parser)]
struct Args {
    /// The fix: clear the mask in the child, between fork and exec
    #[arg(long)]
    clear: bool,
    /// The child: print the mask
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> ExitCode {
    end("mask", run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    if args.child {
        return print("child ");
    }
    // A server that reads its signals from a signalfd blocks them.
    SigSet::from_iter([Signal::SIGUSR1, Signal::SIGTERM])
        .thread_set_mask()
        .context("sigprocmask")?;
    print("parent")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--child");
    if args.clear {
        let clear = || {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(Into::into)
        };
        // SAFETY: the closure makes one async-signal-safe call.
        unsafe { command.pre_exec(clear) };
    }
    let status = command.status().context("/proc/self/exe")?;
    if !status.success() {
        bail!("the child: {status}");
    }
    Ok(())
}

/// Prints the mask of this process.
fn print(process: &str) -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let mask =
        status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap_or_default().trim();
    print_line(format_args!("{process} SigBlk {mask}"));
    Ok(())
}
