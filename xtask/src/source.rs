//! A Rust source file as the rules read it.

mod calls;
mod depth;
mod file;
mod functions;
mod lines;
mod names;

pub use calls::calls;
pub use file::Source;
pub use functions::{Function, functions};
pub use names::names;
