//! The multiply service. [`frame`] says where a message ends, [`request`] what it means,
//! [`session`] is one client's session without a socket. The sockets are in `src/bin`.
#![warn(missing_docs)]

pub mod client;
pub mod events;
pub mod frame;
pub mod pool;
pub mod request;
pub mod session;
