//! What carries a message between processes: seven buses, and every cell of the table an experiment.
//!
//! Run: cargo run --release -p ipc-bus
//! Try: cargo run --release -p ipc-bus -- --bus seqpacket --bus dgram

mod bus;
mod probe;
mod process;
mod rate;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::bus::{Bus, Unavailable};
use crate::process::watchdog;
use crate::rate::{Load, measure};

/// sysexits(3): the kernel lacks what the lesson needs, or forbids it.
const UNAVAILABLE: u8 = 69;

/// What carries a message between processes: seven buses, measured live
#[derive(Parser)]
struct Args {
    /// Only these; all if none is named
    #[arg(long, value_enum, value_name = "BUS")]
    bus: Vec<Bus>,
    /// Writers at once
    #[arg(short = 'n', long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,
    /// Messages of each writer in a round
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Rounds of pipe and bus; the median is shown
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=21))]
    rounds: u32,
    /// Not the rates, only what each bus does
    #[arg(long)]
    no_rates: bool,
}

/// What was not there, told at the end.
struct Missing(Vec<String>);

impl Missing {
    /// A missing bus is a row with a dash; any other failure ends the program.
    fn cell<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(e) => {
                let text = e.downcast::<Unavailable>()?.to_string();
                if !self.0.contains(&text) {
                    self.0.push(text);
                }
                Ok(None)
            }
            Ok(value) => Ok(Some(value)),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut missing = Missing(Vec::new());
    if let Err(error) = run(&args, &mut missing) {
        let _ = writeln!(io::stderr(), "ipc-bus: {error:#}");
        return ExitCode::FAILURE;
    }
    for text in &missing.0 {
        let _ = writeln!(io::stderr(), "ipc-bus: {text}");
    }
    if missing.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(UNAVAILABLE) }
}

fn run(args: &Args, missing: &mut Missing) -> Result<()> {
    let buses = if args.bus.is_empty() { Bus::value_variants() } else { args.bus.as_slice() };
    if !args.no_rates {
        rates(buses, args, missing)?;
        say("");
    }
    properties(buses, missing)?;
    say("");
    edges(buses, missing)
}

fn rates(buses: &[Bus], args: &Args, missing: &mut Missing) -> Result<()> {
    let load = Load { writers: args.writers, messages: args.messages, rounds: args.rounds };
    say(format_args!("{} writers, one reader", args.writers));
    say(format_args!(
        "{:20} {:>10} {:>8} {:>13} {:>11} {:>8}",
        "bus", "128 B: /s", "of pipe", "reads/message", "1 KiB: /s", "of pipe"
    ));
    for bus in buses {
        let Some(small) = missing.cell(measure(*bus, 128, load))? else {
            say(format_args!("{:20} not available", bus.name()));
            continue;
        };
        let large = measure(*bus, 1024, load)?;
        say(format_args!(
            "{:20} {:>10.0} {:>8.2} {:>13.3} {:>11.0} {:>8.2}",
            bus.name(),
            small.per_second,
            small.of_pipe,
            small.reads_per_message,
            large.per_second,
            large.of_pipe
        ));
    }
    Ok(())
}

type Probe = fn(Bus) -> Result<String>;

/// A table with one column for each question.
fn table<const N: usize>(buses: &[Bus], missing: &mut Missing, columns: [(&str, usize, Probe); N]) -> Result<()> {
    let head = columns.map(|(title, width, _)| format!("{title:width$}"));
    say(format!("{:20} {}", "bus", head.join(" ")).trim_end());
    for bus in buses {
        watchdog()?;
        let mut row = format!("{:20}", bus.name());
        for (title, width, probe) in columns {
            let cell = missing.cell(probe(*bus).with_context(|| format!("{}: {title}", bus.name())))?;
            row += &format!(" {:width$}", cell.as_deref().unwrap_or("-"));
        }
        say(row.trim_end());
    }
    Ok(())
}

fn properties(buses: &[Bus], missing: &mut Missing) -> Result<()> {
    table(
        buses,
        missing,
        [
            ("queued", 7, probe::queued),
            ("boundaries", 10, probe::boundaries),
            ("whole up to", 22, probe::whole_up_to),
            ("end of file", 12, probe::end_of_file),
            ("a descriptor", 12, probe::carries_a_descriptor),
            ("left by a killed maker", 22, probe::after_a_crash),
        ],
    )
}

fn edges(buses: &[Bus], missing: &mut Missing) -> Result<()> {
    table(
        buses,
        missing,
        [
            ("100 bytes into a buffer of 10", 37, probe::short_buffer),
            ("MSG_PEEK|MSG_TRUNC", 18, probe::asks_the_length),
            ("an empty message", 32, probe::empty_message),
        ],
    )
}

/// One line on stdout; a closed stdout is no reason to stop.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
