//! Four ways to close a connection, and what the other end sees: for the server, its client and the
//! two tables.
#![warn(missing_docs)]

pub mod cases;
pub mod closing;
pub mod counters;
pub mod recorded;
