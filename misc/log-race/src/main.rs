//! N processes append to one log: what is lost, what is torn, and which lock holds.
//!
//! Run: cargo run --release -p log-race
//! Try: cargo run --release -p log-race -- --mode seek --keep race.log

mod locks;
mod log;
mod writer;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getpid, pipe2};

use crate::log::{Log, Unavailable, Verdict};
use crate::writer::{Job, Mode, writer};

/// sysexits(3): the kernel lacks what the lesson needs, or forbids it.
const UNAVAILABLE: u8 = 69;
/// What one run may write.
const MOST_BYTES: u64 = 256 << 20;

/// N processes append to one log: what is lost, what is torn, and which lock holds
#[derive(Parser)]
struct Args {
    /// Writers at once
    #[arg(short = 'n', long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,
    /// Lines of each writer
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
    /// Bytes of a line
    #[arg(long, default_value_t = 120, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(32..=65_536))]
    size: u32,
    /// Only this way of writing, and not the table of locks
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Write the log to this new file and leave it there, to look at
    #[arg(long, value_name = "FILE", requires = "mode")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if u64::from(args.writers) * u64::from(args.lines) * u64::from(args.size) > MOST_BYTES {
        let reason = "writers x lines x size is more than 256 MiB";
        Args::command().error(ErrorKind::ValueValidation, reason).exit();
    }
    let Err(error) = run(&args) else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "log-race: {error:#}");
    if error.is::<Unavailable>() { ExitCode::from(UNAVAILABLE) } else { ExitCode::FAILURE }
}

fn run(args: &Args) -> Result<()> {
    let log = Log::new(args.keep.as_deref())?;
    let Args { writers, lines, size, .. } = args;
    say(format_args!("{writers} writers, {lines} lines of {size} bytes each"));
    say(format_args!(
        "{:22} {:44} {:>7} {:>7} {:>13} {:>9}",
        "mode", "what a writer does for a line", "whole", "broken", "bytes missing", "lines/s"
    ));
    let all = Mode::value_variants();
    for mode in args.mode.as_ref().map_or(all, std::slice::from_ref) {
        let time = race(&log, *mode, args).with_context(|| mode.to_string())?;
        let Verdict { whole, broken, missing } = log.judge(*writers, *lines, *size as usize)?;
        let rate = f64::from(writers * lines) / time.as_secs_f64();
        say(format_args!(
            "{:22} {:44} {whole:>7} {broken:>7} {missing:>13} {rate:>9.0}",
            mode.to_string(),
            mode.steps()
        ));
    }
    if args.mode.is_none() {
        say("");
        locks::table(&log)?;
    }
    Ok(())
}

/// All writers from an empty log to their ends.
fn race(log: &Log, mode: Mode, args: &Args) -> Result<Duration> {
    log.empty()?;
    let (wait, gate) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let shared = log.open()?;
    let mut children = Vec::new();
    for number in 0..args.writers {
        let job = Job { number, lines: args.lines, size: args.size as usize, mode, parent: getpid() };
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => writer(&job, log, &shared, &wait, gate),
            Ok(ForkResult::Parent { child }) => children.push(child),
            // Those that are there see the gate closed, write, and are reaped by init.
            Err(e) => return Err(e).context("fork"),
        }
    }
    let began = Instant::now();
    // End of file at the other end: every writer starts now.
    drop(gate);
    for child in children {
        let status = waitpid(child, None).context("waitpid")?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "a writer failed: {status:?}");
    }
    Ok(began.elapsed())
}

/// One line on stdout; a closed stdout is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
