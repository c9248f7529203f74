//! What a machine can judge. Each rule is a function over the tree, with tests that it can fail.

use std::fmt;

use crate::check::Tree;

pub mod budget;
pub mod calls;
pub mod commands;
mod exceptions;
pub mod header;
pub mod readme;
pub mod truths;
pub mod words;

/// A breach: where, and why.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Breach {
    pub path: String,
    pub line: usize,
    pub reason: String,
}

impl Breach {
    pub fn new(path: &str, line: usize, reason: impl Into<String>) -> Breach {
        Breach { path: path.to_owned(), line, reason: reason.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line.max(1), self.reason)
    }
}

/// A rule.
pub type Rule = fn(&Tree) -> Vec<Breach>;

/// All of them.
pub const ALL: &[Rule] = &[
    budget::sizes,
    calls::seam,
    calls::child_arm,
    calls::handlers,
    header::keys,
    header::fragments,
    readme::sections,
    commands::names,
    readme::table,
    readme::manifests,
    truths::listed,
    truths::guide,
    words::banned,
];
