//! Four ways to send a file, their system calls, and a folder that no file name can leave.
#![warn(missing_docs)]

pub mod beneath;
pub mod calls;
pub mod pair;
pub mod session;
pub mod ways;

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use common::report::escape;

/// Bytes.
pub const MIB: u64 = 1 << 20;
/// EX_UNAVAILABLE of sysexits.h: the kernel or the machine does not permit the experiment.
const UNAVAILABLE: u8 = 69;

/// Runs an experiment, prints an error as one line, and returns the exit status.
pub fn run(name: &str, experiment: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let Err(error) = experiment() else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "{name}: {}", escape(&format!("{error:#}")));
    match is_not_permitted(&error) {
        true => ExitCode::from(UNAVAILABLE),
        false => ExitCode::FAILURE,
    }
}

/// True if MSG_ZEROCOPY is unknown to this kernel, or if RLIMIT_MEMLOCK or net.core.optmem_max
/// permit no more pinned memory.
pub fn is_not_permitted(error: &anyhow::Error) -> bool {
    let errno = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::ENOBUFS | libc::ENOPROTOOPT))
}

/// Prints a line on stdout. A closed pipe or a full disk does not end the experiment.
pub fn print_line(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A temporary file without a name: the kernel removes it when the process ends.
///
/// # Errors
/// The call that failed.
pub fn temporary_file(byte: u8, len: u64) -> anyhow::Result<File> {
    let mut file = tempfile::tempfile().context("open O_TMPFILE")?;
    let block = vec![byte; MIB as usize];
    let mut left = len;
    while left > 0 {
        let n = left.min(MIB);
        let block = block.get(..n as usize).unwrap_or_default();
        file.write_all(block).context("write a temporary file")?;
        left -= n;
    }
    Ok(file)
}
