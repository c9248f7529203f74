//! Request and reply over named pipes. The server's loop is in `src/bin/fifo-server.rs`, the
//! client's calls are in [`client`].

use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use nix::poll::PollTimeout;

pub mod client;
pub mod events;
pub mod numbers;
pub mod pidfd;
pub mod record;
pub mod rundir;
pub mod sockets;
pub mod wake;

/// The timeout of poll that ends at a deadline. Rounded up: a program that wakes just before its
/// deadline finds nothing to do, and with less than a millisecond left poll would not sleep at all.
#[must_use]
pub fn poll_timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |at| {
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    })
}

/// Parses a time in milliseconds: at least `least`, at most one day.
#[must_use]
pub fn ms(least: u64) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=86_400_000)
}
