//! The bug: a program that writes to a peer that has gone, and is killed for it without a word.
//!
//! Run: cargo run -p sigpipe
//! Try: target/debug/sigpipe fin; echo $?
//! Next: src/bin/sigpipe-cured.rs

use std::io::{self, Write};

use anyhow::Context;
use clap::Parser;
use common::report::Failed;
use nix::sys::signal::SigHandler;
use nix::sys::socket::MsgFlags;
use sigpipe::{Case, on_sigpipe};

/// Writes to a peer that has gone, as a C program would: the call that is missing in the output has killed it
#[derive(Parser)]
struct Args {
    /// How the peer goes
    #[arg(value_enum, default_value_t = Case::Fin)]
    case: Case,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // Rust's start-up code ignores SIGPIPE. Every C program starts with this, unless its parent has ignored it.
    on_sigpipe(SigHandler::SigDfl).context("sigaction SIGPIPE")?;
    args.case
        .play(MsgFlags::empty(), |call| {
            let _ = writeln!(io::stdout(), "{call}");
        })
        .context("loopback")?;
    Ok(())
}
