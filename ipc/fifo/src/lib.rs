//! Request and reply over named pipes: the records, the private directory, the server's loop and the client's call.

pub mod client;
pub mod numbers;
pub mod record;
pub mod rundir;
pub mod server;
pub mod sys;
