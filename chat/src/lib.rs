//! The chat protocol, without sockets: what every chat server of the workspace shares, and none of them teaches.
//!
//! **The core decides what is said; a server only decides how bytes move.** Two structs make a server:
//!
//! * [`Room`]: who is in it, and what each of them is to be sent. A server tells it what happens
//!   ([`connect`](Room::connect), [`receive`](Room::receive), [`disconnect`](Room::disconnect), [`tick`](Room::tick)),
//!   and then asks [`next_changed`](Room::next_changed) for whom there is something to do.
//! * [`Session`]: one client's conversation. What waits to be sent, whether it is to be read from, when it is over.
//!
//! The life of a client, in any concurrency model:
//!
//! ```
//! # use chat::{Limits, Room, Slow};
//! # use std::time::Instant;
//! # let (limits, now) = (Limits { no_log: true, ..Limits::default() }, Instant::now());
//! let mut room = Room::open(&limits, &Default::default(), Slow::Kick).unwrap();
//! room.connect(1, [127, 0, 0, 1].into(), now); // from accept(2); the server numbers its clients
//! room.receive(1, b"alice\n", now); // from read(2)
//! while let Some(id) = room.next_changed() {
//!     let session = room.session_mut(id).unwrap();
//!     assert_eq!(session.pending(), b"* welcome alice; 1 here, /help lists the commands\n"); // for send(2)
//!     session.sent(session.pending().len(), now);
//! }
//! ```
#![warn(missing_docs)]

pub mod cli;
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
mod timers;

pub use cli::{Limits, Slow};
pub use commands::is_nick;
pub use event::Event;
pub use room::{ClientId, Room};
pub use server::Options;
pub use session::Session;
