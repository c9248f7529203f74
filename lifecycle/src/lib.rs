//! What keeps a server alive and is not the lesson of any server: start, limits, shutdown, supervision.
//!
//! Every server has a [`Server`]: its options, its listener, its log. The rest depends on the kind of server:
//!
//! | kind of server | modules |
//! |---|---|
//! | one client at a time | [`shutdown`] |
//! | one process per client | [`shutdown`], [`Children`] |
//! | a pool of processes | [`shutdown`], [`Supervisor`] |
//! | threads | [`shutdown`], [`Semaphore`] |
//! | an event loop | [`clients`], [`Signals`] |
//!
//! The system calls of the lessons are not made here: fork, accept, read, write, select, poll, epoll, io_uring,
//! sendmsg and thread creation stay in the examples.
#![warn(missing_docs)]

mod children;
pub mod clients;
mod permits;
mod server;
pub mod shutdown;
mod signals;
mod supervisor;

pub use children::{Children, begin_child, die_with_parent, end_child};
pub use permits::{Permit, Semaphore};
pub use server::{BACKLOG, Server};
pub use signals::{Signals, on_signal};
pub use supervisor::Supervisor;
