//! The loop in slow motion: every step as a line of JSON, and a pause after it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use common::report::Failed;
use serde::Serialize;

/// How to watch the loop at work.
#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Write each step of the loop to this descriptor, as a line of JSON: 2 is stderr, or `3 3>file`
    #[arg(long, value_name = "FD")]
    trace: Option<u16>,
    /// Pause after each step
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    slow_motion: u64,
}

/// One step.
#[derive(Serialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// A new task.
    Spawn { task: u64 },
    /// Its future is polled ...
    Poll { task: u64 },
    /// ... and is not done,
    Pending { task: u64 },
    /// ... or is: the task is gone.
    Done { task: u64 },
    /// A system call said EAGAIN: the task waits for the descriptor.
    Park { task: u64, fd: i32 },
    /// The task goes to the end of the ready queue.
    Yield { task: u64 },
    /// Nobody is ready, or it is time to ask: epoll_wait, for so long at most.
    Sleep { ms: Option<u128> },
    /// A task is put into the ready queue.
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

/// Where the steps go; nowhere by default.
static TRACE: OnceLock<Trace> = OnceLock::new();

/// From here on each step is shown, if the options say so.
pub fn start(args: &TraceArgs) -> Result<(), Failed> {
    let open = |fd: u16| {
        let path = format!("/dev/fd/{fd}");
        OpenOptions::new().append(true).open(&path).with_context(|| format!("--trace {fd}: {path}"))
    };
    let out = args.trace.map(open).transpose()?;
    if out.is_some() || args.slow_motion > 0 {
        let _ = TRACE.set(Trace {
            out,
            pause: Duration::from_millis(args.slow_motion),
            start: Instant::now(),
        });
    }
    Ok(())
}

/// The task being polled.
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
        // One write for a line. What cannot be written is not worth the room.
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            let _ = out.write_all(&text);
        }
    }
    thread::sleep(trace.pause);
}
