//! What the programs about the accept queue share: a network namespace, measurements, output.
#![warn(missing_docs)]

pub mod network;
pub mod probe;
pub mod server;
pub mod test_clients;

use std::io::{self, Write};
use std::process::ExitCode;

use common::report::escape;

/// EX_UNAVAILABLE of sysexits.h: the kernel or the machine does not permit the experiment.
const UNAVAILABLE: u8 = 69;

/// Why a program stops early.
#[derive(Debug)]
pub enum Stop {
    /// A call failed: exit status 1.
    Failed(anyhow::Error),
    /// A privilege or a kernel feature is missing: exit status 69.
    Unavailable(String),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// Moves the process into its own network namespace, runs the experiment there, prints an error
/// as one line, and returns the exit status.
pub fn run(name: &str, experiment: impl FnOnce() -> Result<(), Stop>) -> ExitCode {
    let (line, code) = match network::enter().and_then(|()| experiment()) {
        Ok(()) => return ExitCode::SUCCESS,
        // The whole chain of causes on one line: operation, object, reason.
        Err(Stop::Failed(error)) => (format!("{error:#}"), ExitCode::FAILURE),
        Err(Stop::Unavailable(why)) => (why, ExitCode::from(UNAVAILABLE)),
    };
    let _ = writeln!(io::stderr(), "{name}: {}", escape(&line));
    code
}

/// Prints a line on stdout. A closed pipe (`| head`) or a full disk does not end the experiment.
pub fn print_line(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
