//! A Rust source file as the rules read it.

mod attributes;
mod calls;
mod depth;
mod file;
mod functions;
mod lines;

pub use attributes::is_test;
pub use calls::calls;
pub use file::Source;
pub use functions::{Function, functions};
