//! Seven ways to send messages between processes: what each does, and how fast it is.
//!
//! Each cell of the tables is an experiment on a new bus.
//!
//! Run: cargo run --release -p ipc-bus
//! Try: cargo run --release -p ipc-bus -- --bus seqpacket --bus dgram

mod bus;
mod crash;
mod probe;
mod process;
mod rate;
mod torn;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::bus::{Bus, Unavailable};
use crate::process::start_timeout;
use crate::rate::{Load, measure};

/// Seven ways to send messages between processes, measured
#[derive(Parser)]
struct Args {
    /// Only this bus; may be repeated [default: all]
    #[arg(long, value_enum, value_name = "BUS")]
    bus: Vec<Bus>,
    /// Number of writers
    #[arg(short = 'n', long, default_value_t = 4, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,
    /// Messages per writer in a round
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Number of rounds; each measures a pipe and the bus, and the median is printed
    #[arg(long, default_value_t = 3, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=21))]
    rounds: u32,
    /// Do not measure rates
    #[arg(long)]
    no_rates: bool,
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

/// A column: title, width, experiment.
type Column = (&'static str, usize, fn(Bus) -> Result<String>);

/// The experiments, in tables of at most 80 columns.
const TABLES: [&[Column]; 4] = [
    &[
        ("queued", 7, probe::queued),
        ("boundaries", 10, probe::boundaries),
        ("whole up to", 22, torn::whole_up_to),
        ("end of file", 13, probe::end_of_file),
    ],
    &[("a descriptor", 12, probe::carries_a_descriptor), ("left after kill -9", 23, crash::left)],
    &[
        ("100 bytes into a buffer of 10", 37, probe::short_buffer),
        ("MSG_PEEK|MSG_TRUNC", 18, probe::next_length),
    ],
    &[("an empty message", 32, probe::empty_message)],
];

fn run(args: &Args, missing: &mut Missing) -> Result<()> {
    let buses = if args.bus.is_empty() { Bus::value_variants() } else { args.bus.as_slice() };
    if !args.no_rates {
        rates(buses, args, missing)?;
        print_line("");
    }
    for (i, columns) in TABLES.iter().enumerate() {
        if i > 0 {
            print_line("");
        }
        table(buses, missing, columns)?;
    }
    Ok(())
}

fn table(buses: &[Bus], missing: &mut Missing, columns: &[Column]) -> Result<()> {
    let head: String = columns.iter().map(|(title, width, _)| format!(" {title:width$}")).collect();
    print_line(format!("{:20}{head}", "bus").trim_end());
    for bus in buses {
        start_timeout()?;
        let mut row = format!("{:20}", bus.name());
        for (title, width, probe) in columns {
            let result = probe(*bus).with_context(|| format!("{}: {title}", bus.name()));
            let cell = missing.cell(result)?;
            row += &format!(" {:width$}", cell.as_deref().unwrap_or("-"));
        }
        print_line(row.trim_end());
    }
    Ok(())
}

fn rates(buses: &[Bus], args: &Args, missing: &mut Missing) -> Result<()> {
    let load = Load { writers: args.writers, messages: args.messages, rounds: args.rounds };
    print_line(format_args!("{} writers, one reader", args.writers));
    print_line(format!("{:20} 128 B: /s  of pipe reads/message 1 KiB: /s  of pipe", "bus"));
    for bus in buses {
        let row = match missing.cell(measure(*bus, 128, load))? {
            None => "not available".to_owned(),
            Some(small) => rate::row(&small, &measure(*bus, 1024, load)?),
        };
        print_line(format!("{:20} {row}", bus.name()));
    }
    Ok(())
}

/// sysexits.h: the kernel has no such bus, or does not permit it.
const UNAVAILABLE: u8 = 69;

/// The buses that are not available. They are reported at the end.
struct Missing(Vec<String>);

impl Missing {
    /// `None`: the bus is not available. Any other error ends the program.
    fn cell<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        let text = match result {
            Ok(value) => return Ok(Some(value)),
            Err(e) => e.downcast::<Unavailable>()?.to_string(),
        };
        if !self.0.contains(&text) {
            self.0.push(text);
        }
        Ok(None)
    }
}

/// Prints a line. A closed stdout does not end the program.
fn print_line(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
