//! Where a budget and clarity fight, clarity wins, and this table says why. An entry that is not needed is a breach
//! itself, so the table never outlives its reasons.

use super::budget::What;

/// A larger budget for one file or function.
pub struct Exception {
    /// An example's name, a path, or a path and a function: `xtask/src/main.rs main`.
    pub subject: &'static str,
    pub what: What,
    pub most: usize,
    pub reason: &'static str,
}

pub const EXCEPTIONS: &[Exception] = &[Exception {
    subject: "server01-fork",
    what: What::Diff,
    most: 200,
    reason: "the step from one client to many brings the table of children, reaping, the limit and the end of the \
             family at once",
}];
