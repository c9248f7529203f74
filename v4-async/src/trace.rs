//! The executor in slow motion: each step as a line of JSON, and a pause after it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use chat::Options;
use clap::Parser;
use common::report::Failed;
use serde::Serialize;

/// Chat with async/await, and our own executor
#[derive(Parser)]
#[command(name = "v4-async", version)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// Write each step of the executor to this descriptor, as JSON: 2 is stderr, or `3 3>file`
    #[arg(long, value_name = "FD")]
    trace: Option<u16>,
    /// Pause after each step
    #[arg(long, value_name = "MS", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=10_000))]
    slow_motion: u64,
}

/// One step.
#[derive(Serialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// A task is created.
    Spawn { task: u64 },
    /// The task's future is polled ...
    Poll { task: u64 },
    /// ... and is not done, ...
    Pending { task: u64 },
    /// ... or is done, and the task is removed.
    Done { task: u64 },
    /// The task waits for the descriptor.
    Park { task: u64, fd: i32 },
    /// The task moves to the end of the ready queue.
    Yield { task: u64 },
    /// epoll_wait, for this time at most.
    Sleep { ms: Option<u128> },
    /// The task is put into the ready queue.
    Wake { task: u64 },
}

#[derive(Serialize)]
struct Line {
    us: u128,
    #[serde(flatten)]
    step: Step,
}

struct Trace {
    out: Option<File>,
    pause: Duration,
    start: Instant,
}

/// The trace, if the options ask for one.
static TRACE: OnceLock<Trace> = OnceLock::new();

/// Parses the command line, and starts the trace if the options ask for one.
pub fn start() -> Result<Options, Failed> {
    let Args { options, trace, slow_motion } = Args::parse();
    let open = |fd: u16| {
        let path = format!("/dev/fd/{fd}");
        let file = OpenOptions::new().append(true).open(&path);
        file.with_context(|| format!("--trace {fd}: open {path}"))
    };
    let out = trace.map(open).transpose()?;
    if out.is_some() || slow_motion > 0 {
        let pause = Duration::from_millis(slow_motion);
        let _ = TRACE.set(Trace { out, pause, start: Instant::now() });
    }
    Ok(options)
}

/// The task that is being polled.
static CURRENT: AtomicU64 = AtomicU64::new(0);

pub fn current() -> u64 {
    CURRENT.load(Relaxed)
}

pub fn step(step: Step) {
    if let Step::Poll { task } = step {
        CURRENT.store(task, Relaxed);
    }
    let Some(trace) = TRACE.get() else { return };
    if let Some(mut out) = trace.out.as_ref() {
        let line = Line { us: trace.start.elapsed().as_micros(), step };
        // One write for each line. A line that cannot be written is lost: the room goes on.
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            let _ = out.write_all(&text);
        }
    }
    thread::sleep(trace.pause);
}
