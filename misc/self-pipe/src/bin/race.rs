//! The race: the flag is checked, then the signal arrives, and select sleeps its whole timeout.
//!
//! Run: cargo run -p self-pipe --bin race
//! Try: cargo run -p self-pipe --bin fixed

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nix::sys::select::{FdSet, select};
use nix::sys::signal::Signal;
use nix::sys::time::TimeVal;
use self_pipe::{Experiment, end, on_signal, result_text, silent_client};

/// The race between the check of a flag and the sleep in select
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}

static CAUGHT: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    end("race", wait(&Args::parse().experiment))
}

fn wait(experiment: &Experiment) -> Result<()> {
    on_signal(Signal::SIGALRM, note)?;
    let (client, _other_end) = silent_client()?;
    if CAUGHT.load(SeqCst) {
        return Ok(());
    }
    // The signal is handled here, after the check. select does not know about it.
    experiment.window()?;
    let mut readable = FdSet::new();
    readable.insert(client.as_fd());
    let timeout = experiment.timeout();
    let mut timeout = TimeVal::new(timeout.as_secs() as i64, timeout.subsec_micros().into());
    let began = Instant::now();
    let result = select(None, &mut readable, None, None, &mut timeout);
    experiment.report(
        "select",
        result_text(result),
        began,
        format_args!("the flag: {}", CAUGHT.load(SeqCst)),
    );
    Ok(())
}

/// A flag is not enough: see `fixed`.
extern "C" fn note(_: libc::c_int) {
    CAUGHT.store(true, SeqCst);
}
