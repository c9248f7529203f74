//! Four ways to send a file, the calls behind them, and files that cannot be reached from outside a folder.
#![warn(missing_docs)]

pub mod beneath;
pub mod calls;
pub mod pair;
pub mod talk;
pub mod ways;
