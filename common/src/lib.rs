//! The byte service, without the lessons: options, the listener, the protocol, the log.
//!
//! This crate does not fork, wait, accept, install a signal handler, create a thread, set non-blocking mode or call
//! select, poll (except to write a log line), epoll or io_uring: those calls are the lessons, and each lesson stays
//! in the example that teaches it. This crate does not exit and does not panic on input. What keeps a server alive
//! is in the crate `lifecycle`, which depends on this one.
#![warn(missing_docs)]

#[cfg(not(target_os = "linux"))]
compile_error!("These examples use epoll, io_uring, signalfd and /proc: build and run them on Linux.");

mod blocking;
pub mod cli;
pub mod descriptors;
pub mod report;
pub mod service;
pub mod sock;
