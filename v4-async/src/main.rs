#![forbid(unsafe_code)]
mod rt;
mod trace;
fn main() {}
