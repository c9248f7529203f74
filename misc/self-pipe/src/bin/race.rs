//! The race: the flag is looked at, the signal comes, and select sleeps although it has come.
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
use self_pipe::{Experiment, answer, end, on_signal, silent_client};

/// The race between a look at a flag and the sleep in select
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
    // Here the signal is handled: select knows nothing of it, and the look is over.
    experiment.window()?;
    let mut readable = FdSet::new();
    readable.insert(client.as_fd());
    let mut timeout = TimeVal::new(experiment.timeout().as_secs() as i64, experiment.timeout().subsec_micros().into());
    let began = Instant::now();
    let result = select(None, &mut readable, None, None, &mut timeout);
    experiment.report("select", answer(result), began, format_args!("the flag: {}", CAUGHT.load(SeqCst)));
    Ok(())
}

extern "C" fn note(_: libc::c_int) {
    CAUGHT.store(true, SeqCst);
}
