//! The bug: a process writes to a connection that has ended, and SIGPIPE kills it without a
//! message.
//!
//! Run: cargo run -p sigpipe
//! Try: target/debug/sigpipe fin; echo $?
//! Next: src/bin/sigpipe-fixed.rs

use std::io::{self, Write};

use anyhow::Context;
use clap::Parser;
use common::report::Failed;
use nix::sys::signal::SigHandler;
use nix::sys::socket::MsgFlags;
use sigpipe::{Case, on_sigpipe};

/// Writes to a connection that has ended, as a C program does. The call that is not printed has
/// killed it
#[derive(Parser)]
struct Args {
    /// How the peer ends the connection
    #[arg(value_enum, default_value_t = Case::Fin)]
    case: Case,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // Rust ignores SIGPIPE before main. A C program starts with the default, unless its parent has
    // ignored the signal.
    on_sigpipe(SigHandler::SigDfl).context("sigaction SIGPIPE")?;
    args.case
        .play(MsgFlags::empty(), |call| {
            let _ = writeln!(io::stdout(), "{call}");
        })
        .context("loopback")?;
    Ok(())
}
