//! What poll(2) and each call return after the peer has closed, case by case.
//!
//! Run: cargo run -p rst-packet --bin rst-table
//! Try: unshare -rn sh -c 'ip link set lo up; target/debug/rst-table'

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use rst_packet::cases::{Case, play};
use rst_packet::counters;

/// What poll and each call return after the peer has closed
#[derive(Parser)]
struct Args {
    /// Cases to show [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Size of an upload in bytes; it must be larger than the buffers of both ends
    #[arg(long, default_value_t = 25 << 20, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(16_777_216..=1 << 30))]
    upload: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let all = Case::value_variants();
    let cases = if args.cases.is_empty() { all } else { &args.cases };
    if let Err(e) = counters::read() {
        return fail(UNAVAILABLE, &format!("the kernel's counters: {e}"));
    }
    print_line(&format!("{:14}{:23}OutRsts  OnData  OnClose", "case", "poll"));
    for case in cases {
        let name = case.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        match row(*case, args.upload as usize) {
            Ok(text) => print_line(&format!("{name:14}{text}")),
            Err(e) => return fail(1, &format!("{name}: {e}")),
        }
    }
    ExitCode::SUCCESS
}

/// The events of poll, the counters, and on a second line the calls.
fn row(case: Case, upload: usize) -> io::Result<String> {
    let before = counters::read()?;
    let (poll, calls) = play(case, upload)?;
    let after = counters::read()?;
    let ([rsts, data, close], [rsts0, data0, close0]) = (after, before);
    let (rsts, data, close) = (rsts - rsts0, data - data0, close - close0);
    Ok(format!("{poll:23}{rsts:>7}  {data:>6}  {close:>7}\n    {calls}"))
}

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn fail(status: u8, why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "Error: {why}");
    ExitCode::from(status)
}

fn print_line(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
