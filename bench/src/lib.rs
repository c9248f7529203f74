//! Runs each design's release binary under the load client, and counts what the *server* spends.
//!
//! The figure that compares designs is the server's CPU time per request: user and system time of its whole family,
//! reaped children included. A rate alone would measure the client too, and on two cores the scheduler.
#![warn(missing_docs)]

pub mod against;
pub mod chats;
pub mod idle;
pub mod measure;
pub mod plot;
pub mod subject;
pub mod syscalls;
