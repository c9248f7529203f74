//! The chat protocol without sockets: the part that all chat servers of the workspace share.
//!
//! **This crate decides what is sent; a server only decides how bytes move.** A server uses two types:
//!
//! * [`Room`]: the members, and what each of them is to be sent. A server reports what has happened
//!   ([`connect`](Room::connect), [`received`](Room::received), [`tick`](Room::tick), [`shut_down`](Room::shut_down)), and
//!   then asks [`next_changed`](Room::next_changed) for the clients that it has to handle.
//! * [`Session`]: one client. It says which bytes wait to be sent, whether to read from the client, and when it is over.
//!
//! An error has one way: the result of read(2) goes to [`Room::received`], the result of send(2) to [`Session::sent`], and the
//! failure of any other call on the client's socket is [`Session::fail`]. After an error [`Session::is_over`] is true. The
//! server then closes the socket and calls [`Room::remove`], and the other members read that the connection was lost.
//!
//! The life of a client, in any concurrency model:
//!
//! ```
//! # use chat::{Limits, Room, Slow};
//! # use std::time::Instant;
//! # let (limits, now) = (Limits::default(), Instant::now());
//! let mut room: Room = Room::open(&limits, &Default::default(), Slow::Kick).unwrap();
//! room.connect(1, [127, 0, 0, 1].into(), now); // from accept(2); the server numbers its clients
//! room.received(1, &Ok(6), b"alice\n", now); // from read(2)
//! while let Some(id) = room.next_changed() {
//!     let session = room.session_mut(id).unwrap();
//!     assert!(session.pending().ends_with(b"* welcome alice; 1 here, /help lists the commands\n")); // for send(2)
//!     session.sent(&Ok(session.pending().len()), now);
//! }
//! ```
#![warn(missing_docs)]

pub mod cli;
mod client;
mod commands;
pub mod event;
pub mod history;
pub mod input;
pub mod line;
pub mod log;
pub mod outbox;
pub mod rate;
pub mod room;
pub mod server;
pub mod session;

pub use cli::{Limits, Slow};
pub use client::ClientId;
pub use commands::is_nick;
pub use event::Event;
pub use room::{Room, Step};
pub use server::Options;
pub use session::Session;
