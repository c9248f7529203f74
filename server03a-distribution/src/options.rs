//! The options that the other servers do not have.

use clap::{Args, ValueEnum};

#[derive(Args, Clone, Copy)]
pub struct Options {
    /// How a worker waits for a connection
    #[arg(long = "wait", value_enum, default_value_t = Way::Accept, value_name = "HOW")]
    pub way: Way,
    /// Edge-triggered: with epoll, exclusive and shared
    #[arg(long)]
    pub edge: bool,
    /// Sleep for MS milliseconds with each connection before serving it
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = busy_ms())]
    pub busy: u64,
    /// On SIGUSR1 and at the end, print one line of JSON to stdout instead of the table to stderr
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Way {
    /// Blocked in accept
    Accept,
    /// In select, then accept
    Select,
    /// In poll, then accept
    Poll,
    /// In epoll_wait, with an epoll instance per worker, then accept
    Epoll,
    /// Like epoll, registered with EPOLLEXCLUSIVE
    Exclusive,
    /// In epoll_wait, with one epoll instance for all workers, then accept
    Shared,
    /// In flock, then blocked in accept: one worker at a time
    Flock,
}

fn busy_ms() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=60_000)
}
