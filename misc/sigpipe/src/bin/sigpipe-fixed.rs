//! Three fixes: the same calls return EPIPE, and the process survives.
//!
//! Run: cargo run -p sigpipe --bin sigpipe-fixed
//! Try: cargo run -p sigpipe --bin sigpipe-fixed -- --fix handler

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::report::Failed;
use nix::sys::signal::SigHandler;
use nix::sys::socket::MsgFlags;
use sigpipe::{Case, on_sigpipe};

/// How the process survives.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fix {
    /// Each send has the flag MSG_NOSIGNAL; the disposition stays the default
    Nosignal,
    /// The whole process ignores SIGPIPE
    Ignore,
    /// A handler catches the signal; then send returns EPIPE
    Handler,
}

/// The calls of `sigpipe` with a fix
#[derive(Parser)]
struct Args {
    /// How the peer ends the connection [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// The fix [default: each of them]
    #[arg(long, value_enum)]
    fix: Option<Fix>,
}

/// How often the handler has run.
static SIGPIPES: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let cases = if args.cases.is_empty() { Case::value_variants() } else { &args.cases };
    let fixes = args.fix.as_ref().map_or(Fix::value_variants(), std::slice::from_ref);
    let mut text = format!("{:10}{:12}{:8}calls in order\n", "fix", "case", "SIGPIPE");
    for fix in fixes {
        let flags = apply(*fix).context("sigaction SIGPIPE")?;
        for case in cases {
            let (before, mut calls) = (SIGPIPES.load(SeqCst), Vec::new());
            case.play(flags, |call| calls.push(call)).context("loopback")?;
            let signals = SIGPIPES.load(SeqCst) - before;
            text +=
                &format!("{:10}{:12}{signals:<8}{}\n", name(fix), name(case), calls.join(" · "));
        }
    }
    // The reader of stdout may have closed it.
    on_sigpipe(SigHandler::SigIgn).context("sigaction SIGPIPE")?;
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Sets the disposition of the signal. Returns the flags for send.
fn apply(fix: Fix) -> io::Result<MsgFlags> {
    match fix {
        // For one call: right for a library, which must not change the disposition of the process.
        Fix::Nosignal => on_sigpipe(SigHandler::SigDfl).map(|()| MsgFlags::MSG_NOSIGNAL),
        // Once at the start: right for a server. Children inherit it through fork and exec.
        Fix::Ignore => on_sigpipe(SigHandler::SigIgn).map(|()| MsgFlags::empty()),
        // The thread that writes receives the signal before the call returns. exec resets the
        // handler.
        Fix::Handler => on_sigpipe(SigHandler::Handler(count)).map(|()| MsgFlags::empty()),
    }
}

extern "C" fn count(_: libc::c_int) {
    SIGPIPES.fetch_add(1, SeqCst);
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
