//! The chat protocol, without descriptors: what every chat server of the workspace shares, and none of them teaches.
//!
//! **The core decides what is said; a server only decides how bytes move.** So every difference between two servers
//! is their concurrency, not their chat. Nothing in here has a socket, a thread or a clock of its own: bytes and the
//! time go in, bytes come out. (The chat log is a file, and the exception: the server says who keeps it.)
//!
//! Three structs make a server:
//!
//! * [`Hub`]: the room, one of them. [`Hub::handle`] takes what happened to one client and says what is to be sent,
//!   to whom: a list of [`Out`]. [`Hub::receivers`] turns "to all" into clients.
//! * [`Input`], one per client: received bytes go in ([`Input::feed`]); [`Input::next`] says whether to tell the hub
//!   something, to read on, or to leave the socket alone for a while. *Not reading* is the rate limit: TCP pushes back.
//! * [`Outbox`], one per client: what waits to be sent. It shares the bytes with all other outboxes, has a high-water
//!   mark, and knows the end of a conversation: last words, FIN, a short drain.
//!
//! The life of a client, in any concurrency model:
//!
//! ```
//! # use chat::{Hub, Event, Input, Limits, Next, Outbox, Send, Slow, To};
//! # use std::{collections::BTreeMap, net::IpAddr, time::{Instant, SystemTime}};
//! # let (limits, now) = (Limits::default(), Instant::now());
//! # let address: IpAddr = [127, 0, 0, 1].into();
//! let mut hub = Hub::new(&limits, now, SystemTime::now());
//! let mut outboxes = BTreeMap::new();
//! let id = 1; // the server numbers its clients, and never uses a number twice
//! let mut input = Input::new(&limits, now);
//! outboxes.insert(id, Outbox::new(&limits, Slow::Kick));
//! let mut said = hub.handle(id, Event::Connected(address), now); // nothing, or `! server-full`
//! input.feed(b"alice\n"); // from read(2)
//! while let Next::Tell(event) = input.next(now) {
//!     said.extend(hub.handle(id, event, now));
//! }
//! for out in &said {
//!     for to in hub.receivers(out.to) {
//!         if let Some(outbox) = outboxes.get_mut(&to) {
//!             outbox.push(out, now); // Fit::Overflow: next, tell the hub Event::TooSlow of this one
//!         }
//!     }
//! }
//! let outbox = &outboxes[&id];
//! assert_eq!(outbox.next(), Send::Write); // then write(2) its slices, and consume what the kernel took
//! assert_eq!(&*outbox.slices()[0], b"* welcome alice; 1 here, /help lists the commands\n");
//! ```
#![warn(missing_docs)]

pub mod cli;
pub mod history;
pub mod hub;
pub mod input;
pub mod line;
pub mod outbox;
pub mod rate;

pub use cli::{Limits, Slow};
pub use hub::{ConnId, Event, Hub, Out, Then, To, Why};
pub use input::{Input, Next};
pub use outbox::{Fit, Outbox, Send};
