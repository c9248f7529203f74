//! The rules. Each is a function over the tree, and has a test that it can fail.

use crate::breach::Breach;
use crate::tree::Tree;

mod budget;
mod calls;
mod circles;
mod commands;
mod copies;
pub mod header;
mod lesson;
mod readme;
mod truths;
mod words;

/// A rule.
pub type Rule = fn(&Tree) -> Vec<Breach>;

/// All rules.
pub const ALL: &[Rule] = &[
    budget::examples,
    budget::crates,
    budget::line_width,
    calls::seam,
    calls::child_arm,
    calls::handlers,
    circles::files,
    copies::functions,
    lesson::calls,
    header::keys,
    readme::sections,
    commands::names,
    readme::table,
    readme::manifests,
    truths::listed,
    truths::guide,
    words::refused,
];
