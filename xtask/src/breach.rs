//! What a rule reports.

use std::fmt;

/// A breach of a rule: where, and why.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Breach {
    pub path: String,
    pub line: usize,
    pub reason: String,
}

impl Breach {
    pub fn new(path: &str, line: usize, reason: impl Into<String>) -> Breach {
        Breach { path: path.to_owned(), line: line.max(1), reason: reason.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.reason)
    }
}
