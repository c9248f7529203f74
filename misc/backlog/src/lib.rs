//! What both demos of a listener that cannot keep up share: a network of their own, and ways to look into it.
#![warn(missing_docs)]

pub mod network;
pub mod probe;

use std::io::{self, Write};
use std::process::ExitCode;

use common::report::escape;

/// EX_UNAVAILABLE of sysexits.h: the kernel or the machine does not permit the experiment.
const UNAVAILABLE: u8 = 69;

/// Why a demo stops: something failed (exit 1), or the machine does not permit it (exit 69).
#[derive(Debug)]
pub enum Stop {
    /// Something failed.
    Failed(anyhow::Error),
    /// A privilege or a feature of the kernel is missing.
    Unavailable(String),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// One line for what stopped it, and the exit status.
pub fn finish(name: &str, outcome: Result<(), Stop>) -> ExitCode {
    let (line, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => (format!("{error:#}"), ExitCode::FAILURE),
        Err(Stop::Unavailable(why)) => (why, ExitCode::from(UNAVAILABLE)),
    };
    let _ = writeln!(io::stderr(), "{name}: {}", escape(&line));
    code
}

/// A line on stdout. A reader that has gone away (`| head`) ends no experiment.
pub fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
