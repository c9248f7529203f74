//! The multiply service without a descriptor: what a message is ([`frame`]), what it means ([`request`]), and a
//! client's whole conversation ([`conn`]). The sockets are in `src/bin`.
#![warn(missing_docs)]

pub mod conn;
pub mod frame;
pub mod request;
pub mod stop;
