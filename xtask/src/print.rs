//! Lines on stdout.

use std::io::{self, Write};

/// Prints a line at once. A closed pipe is no error.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
