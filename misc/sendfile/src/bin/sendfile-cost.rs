//! The system calls and the CPU time per MiB of four ways to send a file.
//!
//! Run: cargo run --release -p sendfile --bin sendfile-cost
//! Try: cargo run --release -p sendfile --bin sendfile-cost -- --size 4 --only sendfile --rounds 1

use std::fs::File;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use nix::time::{ClockId, clock_gettime};
use sendfile::pair::{drain, pair};
use sendfile::ways::{Sent, Way, send};
use sendfile::{MIB, is_not_permitted, print_line, temporary_file};

/// System calls and CPU time per MiB of the sender, four ways, over loopback
#[derive(Parser)]
struct Args {
    /// Size of the file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    size: u64,
    /// How often each way sends the file; the median is printed
    #[arg(long, value_name = "N", default_value_t = 7,
          value_parser = clap::value_parser!(u16).range(1..=101))]
    rounds: u16,
    /// Measure only this way
    #[arg(long, value_enum)]
    only: Option<Way>,
    /// Send this file instead of a temporary one
    #[arg(long)]
    file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    sendfile::run("sendfile-cost", || run(&args))
}

/// Measures all ways, then prints the median of each.
fn run(args: &Args) -> anyhow::Result<()> {
    let (file, len) = match &args.file {
        None => (temporary_file(b'a', args.size * MIB)?, args.size * MIB),
        Some(path) => open(path)?,
    };
    let is_chosen = |way: &&Way| args.only.is_none_or(|only| only == **way);
    let ways: Vec<Way> = Way::value_variants().iter().filter(is_chosen).copied().collect();
    let mut runs: Vec<Vec<Run>> = ways.iter().map(|_| Vec::new()).collect();
    // The ways take turns, so that other load on the machine disturbs all of them equally.
    for _ in 0..args.rounds {
        for (way, runs) in ways.iter().zip(&mut runs) {
            match measure(*way, &file, len) {
                Err(e) if is_not_permitted(&e) && args.only.is_none() => {}
                run => runs.push(run?),
            }
        }
    }
    print_line(&format!(
        "{len} bytes; rounds: {}; median CPU time of the sending thread",
        args.rounds
    ));
    print_line("way         system calls  per MiB  CPU us per MiB  of read-write  copied");
    let mut reference = None;
    for (way, runs) in ways.iter().zip(&mut runs) {
        runs.sort_by_key(|run| run.cpu);
        match runs.get(runs.len() / 2) {
            Some(median) => print_row(*way, median, len as f64 / MIB as f64, &mut reference),
            None => print_line(&format!("{:10}  not permitted here (see ulimit -l)", way.name())),
        }
    }
    Ok(())
}

/// A file of the user: its length must be known and not zero.
fn open(path: &Path) -> anyhow::Result<(File, u64)> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let metadata = file.metadata().with_context(|| format!("fstat {}", path.display()))?;
    let is_usable = metadata.is_file() && metadata.len() > 0;
    ensure!(is_usable, "{}: not a regular file, or empty", path.display());
    Ok((file, metadata.len()))
}

/// One file, sent once.
struct Run {
    sent: Sent,
    cpu: Duration,
}

/// Sends the file over a new connection to a receiver that reads all of it.
fn measure(way: Way, file: &File, len: u64) -> anyhow::Result<Run> {
    let (sender, receiver) = pair().context("a TCP connection over loopback")?;
    let receiver = drain(receiver).context("clone")?;
    let before = cpu()?;
    // Only the sender is measured.
    let sent = send(way, file, len, &sender).context(way.name())?;
    let cpu = cpu()?.saturating_sub(before);
    sender.shutdown(Shutdown::Write).context("shutdown")?;
    let received = receiver.join().ok().context("the receiver panicked")?.context("recv")?;
    let (name, bytes) = (way.name(), sent.bytes);
    ensure!(received == len && bytes == len, "{name}: {bytes} of {len} sent, {received} received");
    Ok(Run { sent, cpu })
}

/// CPU time of this thread: the receiver has its own.
fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("clock_gettime")?.into())
}

/// `reference` is the CPU time of read-write, which is measured first.
fn print_row(way: Way, median: &Run, mib: f64, reference: &mut Option<f64>) {
    let Sent { calls, copied, completed, .. } = median.sent;
    let cpu = median.cpu.as_secs_f64() * 1e6 / mib;
    if way == Way::ReadWrite {
        *reference = Some(cpu);
    }
    let ratio = reference.map_or("-".to_owned(), |reference| format!("{:.2}", cpu / reference));
    let copied = if completed > 0 { format!("  {copied} of {completed}") } else { String::new() };
    let (name, per_mib) = (way.name(), calls as f64 / mib);
    print_line(&format!(
        "{name:10}  {calls:>12}  {per_mib:>7.2}  {cpu:>14.1}  {ratio:>13}{copied}"
    ));
}
