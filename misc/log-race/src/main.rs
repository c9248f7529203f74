//! N processes append to one log: which lines are lost or torn, and which locks prevent it.
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

use crate::log::{Count, Log, Unavailable};
use crate::writer::{Job, Mode, writer};

/// sysexits.h: the kernel does not have what the program needs, or does not permit it.
const UNAVAILABLE: u8 = 69;
/// The limit of bytes of one run.
const MAX_BYTES: u64 = 256 << 20;

/// N processes append to one log: which lines are lost or torn, and which locks prevent it
#[derive(Parser)]
struct Args {
    /// Number of writers
    #[arg(short = 'n', long, default_value_t = 4, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,
    /// Lines per writer
    #[arg(long, default_value_t = 2000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
    /// Bytes per line
    #[arg(long, default_value_t = 120, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(32..=65_536))]
    size: u32,
    /// Only this way to write, without the table of locks
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Write the log to this new file and keep it
    #[arg(long, value_name = "FILE", requires = "mode")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if u64::from(args.writers) * u64::from(args.lines) * u64::from(args.size) > MAX_BYTES {
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
    print_line(format_args!("{writers} writers, {lines} lines of {size} bytes per writer"));
    print_line(format_args!(
        "{:18} {:33} {:>5} {:>6} {:>7} {:>6}",
        "mode", "calls for one line", "whole", "broken", "missing", "/s"
    ));
    let all = Mode::value_variants();
    for mode in args.mode.as_ref().map_or(all, std::slice::from_ref) {
        let time = race(&log, *mode, args).with_context(|| mode.to_string())?;
        let Count { complete, broken, missing } = log.count(*writers, *lines, *size as usize)?;
        let rate = f64::from(writers * lines) / time.as_secs_f64();
        print_line(format_args!(
            "{:18} {:33} {complete:>5} {broken:>6} {missing:>7} {rate:>6.0}",
            mode.to_string(),
            mode.steps()
        ));
    }
    if args.mode.is_none() {
        print_line("");
        locks::table(&log)?;
    }
    Ok(())
}

/// Truncates the log and runs all writers.
fn race(log: &Log, mode: Mode, args: &Args) -> Result<Duration> {
    log.empty()?;
    let (wait, gate) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let shared = log.open()?;
    let mut children = Vec::new();
    for number in 0..args.writers {
        let job =
            Job { number, lines: args.lines, size: args.size as usize, mode, parent: getpid() };
        // SAFETY: this process has one thread, so the child may call any function.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => writer(&job, log, &shared, &wait, gate),
            Ok(ForkResult::Parent { child }) => children.push(child),
            // The existing writers see the closed gate, write, and are reaped by init.
            Err(e) => return Err(e).context("fork"),
        }
    }
    let began = Instant::now();
    // The writers read end of file from the other end, and all start now.
    drop(gate);
    for child in children {
        let status = waitpid(child, None).context("waitpid")?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "a writer failed: {status:?}");
    }
    Ok(began.elapsed())
}

/// Prints a line. A closed stdout does not end the program.
pub fn print_line(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
