//! What a close sends, and what the other end then gets: shared by the server, its client and the two tables.
#![warn(missing_docs)]

pub mod cases;
pub mod closing;
pub mod counters;
pub mod ours;
