//! The workspace's test library: starts the real servers on port 0, abuses them as clients and kernels do, and checks
//! after every test that nothing was lost.
//!
//! A server's `tests/conformance.rs` is three lines that call [`conformance`]. What is tested follows from the
//! example's own `Cargo.toml` ([`catalogue`]).
#![warn(missing_docs)]
// This crate is test code: a failed expectation is a panic, as in any test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

mod cases;
pub mod catalogue;
pub mod chat;
mod faults;
mod life;
pub mod oracle;
mod peer;
mod peers;
pub mod procs;
mod server;
mod subject;
pub mod tools;

pub use peer::{End, Peer};
pub use server::{Server, TIMEOUT, describe, eventually};
pub use subject::{conformance, conformance_with};

/// The first `n` bytes of an answer, made the obvious way and not with the code under test.
pub fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| b'a' + (i % 26) as u8).collect()
}
