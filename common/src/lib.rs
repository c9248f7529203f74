//! What every server shares and none of them teaches: options, the listener, the byte service, the log.
//!
//! The seam is *bytes here, descriptors in the example*. Nothing in this crate forks, waits, accepts, installs a
//! signal handler, makes a thread, sets non-blocking mode or calls select, poll, epoll or io_uring: those calls are
//! the lessons, and a lesson stays in the file that teaches it. Nothing here exits, panics on input or keeps global
//! state.
#![warn(missing_docs)]

mod blocking;
pub mod cli;
pub mod report;
pub mod service;
pub mod sock;
