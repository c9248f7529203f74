//! The loop in slow motion: every step as a line of JSON, and a pause after it.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
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

/// One step. Tasks, descriptors and timers have numbers from one sequence; 0 is the loop itself.
#[derive(Serialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// A new task, made by another one.
    Spawn { task: u64, by: u64 },
    /// Its future is polled ...
    Poll { task: u64 },
    /// ... and is not done,
    Pending { task: u64 },
    /// ... or is: the task is gone.
    Done { task: u64 },
    /// A system call said EAGAIN: the task waits for the descriptor.
    Park { task: u64, sock: usize },
    /// It has used up its budget, and goes to the end of the ready queue.
    Yield { task: u64 },
    /// Nobody is ready: epoll_wait, for so long at most.
    Sleep { ms: Option<u128> },
    /// A task is put into the ready queue.
    Wake { task: u64, by: By },
}

/// Why a task is woken.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Sock(usize),
    Timer,
    Task(u64),
}

#[derive(Serialize)]
struct Line {
    us: u128,
    #[serde(flatten)]
    step: Step,
}

/// Where the steps go; nowhere by default.
pub struct Trace {
    out: Option<RefCell<File>>,
    pause: Duration,
    start: Instant,
}

impl Trace {
    /// # Errors
    /// The descriptor is not open, or not for writing.
    pub fn new(args: &TraceArgs) -> Result<Trace, Failed> {
        let open = |fd: u16| {
            let path = format!("/dev/fd/{fd}");
            OpenOptions::new().append(true).open(&path).with_context(|| format!("--trace {fd}: {path}"))
        };
        let out = args.trace.map(open).transpose()?.map(RefCell::new);
        Ok(Trace { out, pause: Duration::from_millis(args.slow_motion), start: Instant::now() })
    }

    #[cfg(test)]
    pub fn off() -> Trace {
        Trace { out: None, pause: Duration::ZERO, start: Instant::now() }
    }

    pub fn step(&self, step: Step) {
        if let Some(out) = &self.out {
            let line = Line { us: self.start.elapsed().as_micros(), step };
            // One write for a line. What cannot be written is not worth the room.
            if let Ok(mut text) = serde_json::to_vec(&line) {
                text.push(b'\n');
                let _ = out.borrow_mut().write_all(&text);
            }
        }
        if !self.pause.is_zero() {
            thread::sleep(self.pause);
        }
    }
}
