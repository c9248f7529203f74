//! Both ends of a connection in one process: what poll and each call say after the peer has closed, case by case.
//!
//! Run: cargo run -p rst-packet --bin rst-table
//! Try: unshare -rn sh -c 'ip link set lo up; target/debug/rst-table'

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use rst_packet::cases::{Case, Row, show};
use rst_packet::counters::Counters;

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// What poll and each call say after the peer has closed
#[derive(Parser)]
struct Args {
    /// Cases to show [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Bytes of an upload: more than the buffers of both ends hold
    #[arg(long, default_value_t = 25 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16_777_216..=1 << 30))]
    upload: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let cases = if args.cases.is_empty() { Case::value_variants().to_vec() } else { args.cases };
    if let Err(e) = Counters::read() {
        return fail(UNAVAILABLE, &format!("the kernel's counters: {e}"));
    }
    let mut out = io::stdout();
    let _ = writeln!(out, "{:14}{:23}{:9}{:8}{:9}calls in order", "case", "poll", "OutRsts", "OnData", "OnClose");
    for case in cases {
        match measure(case, args.upload as usize) {
            Ok((Row { poll, calls }, moved)) => {
                let (rsts, data, close) = (moved.out_rsts, moved.abort_on_data, moved.abort_on_close);
                let _ = writeln!(out, "{:14}{poll:23}{rsts:<9}{data:<8}{close:<9}{calls}", word(case));
            }
            Err(e) => return fail(1, &format!("{}: {e}", word(case))),
        }
    }
    ExitCode::SUCCESS
}

fn fail(status: u8, why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "Error: {why}");
    ExitCode::from(status)
}

fn word(case: Case) -> String {
    case.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn measure(case: Case, upload: usize) -> io::Result<(Row, Counters)> {
    let before = Counters::read()?;
    let row = show(case, upload)?;
    Ok((row, Counters::read()?.since(&before)))
}
