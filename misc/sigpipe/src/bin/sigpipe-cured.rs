//! The cures: the same calls, and EPIPE instead of death.
//!
//! Run: cargo run -p sigpipe --bin sigpipe-cured
//! Try: cargo run -p sigpipe --bin sigpipe-cured -- --cure handler

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::report::Failed;
use nix::sys::signal::SigHandler;
use nix::sys::socket::MsgFlags;
use sigpipe::{Case, on_sigpipe};

/// What keeps the process alive.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cure {
    /// Each send says that it wants no signal; the disposition stays the deadly one
    Nosignal,
    /// The whole process ignores SIGPIPE
    Ignore,
    /// A handler takes the signal, and send returns EPIPE afterwards
    Handler,
}

/// The calls of `sigpipe`, and what keeps the process alive
#[derive(Parser)]
struct Args {
    /// How the peer goes [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// What keeps the process alive [default: each in turn]
    #[arg(long, value_enum)]
    cure: Option<Cure>,
}

/// How often the handler ran.
static SIGPIPES: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let cases = if args.cases.is_empty() { Case::value_variants() } else { &args.cases };
    let cures = args.cure.as_ref().map_or(Cure::value_variants(), std::slice::from_ref);
    let mut text = format!("{:10}{:12}{:9}calls in order\n", "cure", "case", "SIGPIPE");
    for cure in cures {
        let flags = take(*cure).context("sigaction SIGPIPE")?;
        for case in cases {
            let (before, mut calls) = (SIGPIPES.load(SeqCst), Vec::new());
            case.play(flags, |call| calls.push(call)).context("loopback")?;
            let signals = SIGPIPES.load(SeqCst) - before;
            text += &format!("{:10}{:12}{signals:<9}{}\n", name(cure), name(case), calls.join(" · "));
        }
    }
    // Whoever reads this may have gone too.
    on_sigpipe(SigHandler::SigIgn).context("sigaction SIGPIPE")?;
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// The disposition of the signal and the flags of send, for each cure.
fn take(cure: Cure) -> io::Result<MsgFlags> {
    match cure {
        // For this call only: right for a library, which must not change what is the whole process's.
        Cure::Nosignal => on_sigpipe(SigHandler::SigDfl).map(|()| MsgFlags::MSG_NOSIGNAL),
        // Once at the start: right for a server. Children inherit it over fork and exec.
        Cure::Ignore => on_sigpipe(SigHandler::SigIgn).map(|()| MsgFlags::empty()),
        // The signal comes to the thread that writes, before the call returns. Exec puts the default back.
        Cure::Handler => on_sigpipe(SigHandler::Handler(count)).map(|()| MsgFlags::empty()),
    }
}

extern "C" fn count(_: libc::c_int) {
    SIGPIPES.fetch_add(1, SeqCst);
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
