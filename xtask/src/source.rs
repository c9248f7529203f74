//! A Rust source file as the rules read it.

mod attributes;
mod calls;
mod depth;
mod file;
mod functions;
mod lexer;

pub use calls::{Calls, calls};
pub use depth::first_loop;
pub use file::Source;
pub use functions::{Function, functions};
