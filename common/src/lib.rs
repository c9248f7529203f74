//! The byte service, without the lessons: options, the listener, the protocol, the log.
//!
//! This crate does not fork, wait, accept, install a signal handler, create a thread, set non-blocking mode or call select,
//! poll, epoll or io_uring: those calls are the lessons, and each lesson stays in the example that teaches it. This crate
//! does not exit, does not panic on input, and has no global state. What keeps a server alive is in the crate `lifecycle`,
//! which depends on this one.
#![warn(missing_docs)]

mod blocking;
pub mod cli;
pub mod report;
pub mod service;
pub mod sock;
