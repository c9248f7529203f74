//! The options that mean the same in every chat server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

/// Clients at once.
pub const MAX_CONNS: u32 = 1000;
/// Clients at once from one address. Loopback is exempt: all clients of the gateway have that address.
pub const MAX_PER_ADDR: u32 = 64;
/// Milliseconds from the connection to an accepted nick.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 30_000;
/// Milliseconds that a member may send no line. An empty line counts.
pub const IDLE_TIMEOUT_MS: u64 = 600_000;
/// Milliseconds without progress while bytes wait to be sent.
pub const WRITE_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds from SIGTERM or SIGINT to the end of all sessions.
pub const GRACE_MS: u64 = 1_000;
/// Lines a second from one client ...
pub const RATE: u32 = 10;
/// ... and at once, after a silence.
pub const BURST: u32 = 20;
/// Milliseconds of rate-limit delay after which a flooding client is disconnected.
pub const FLOOD_TIMEOUT_MS: u64 = 100_000;
/// Bytes that may wait for one client.
pub const OUTBOX: usize = 256 * 1024;
/// Lines kept for `/history`.
pub const HISTORY: usize = 1000;

/// The limits of a chat. All times are in milliseconds, and at least 1.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Clients at once
    #[arg(long, default_value_t = MAX_CONNS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_conns: u32,
    /// Clients at once from one address; loopback is exempt
    #[arg(long, default_value_t = MAX_PER_ADDR, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_per_addr: u32,
    /// Time from the connection to an accepted nick
    #[arg(long, default_value_t = HANDSHAKE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub handshake_timeout: u64,
    /// Disconnect a member that sends no line in this time
    #[arg(long, default_value_t = IDLE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub idle_timeout: u64,
    /// Disconnect a client that takes no bytes in this time while bytes wait for it
    #[arg(long, default_value_t = WRITE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub write_timeout: u64,
    /// Shutdown timeout: how long clients may take to read the final message after SIGTERM or SIGINT
    #[arg(long, default_value_t = GRACE_MS, value_name = "MS", value_parser = ms())]
    pub grace: u64,
    /// Lines a second from one client
    #[arg(long, default_value_t = RATE, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Lines at once from one client, after a silence
    #[arg(long, default_value_t = BURST, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub burst: u32,
    /// Total rate-limit delay after which a flooding client is disconnected
    #[arg(long, default_value_t = FLOOD_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub flood_timeout: u64,
    /// Bytes that may wait to be sent to one client
    #[arg(long, default_value_t = OUTBOX, value_name = "BYTES", value_parser = bytes)]
    pub outbox: usize,
    /// Lines kept for /history
    #[arg(long, default_value_t = HISTORY, value_name = "LINES", value_parser = lines)]
    pub history: usize,
    /// Append all lines of the room to this file, and read the history from it at the start
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Write no chat log, not even the default one of v0-processes
    #[arg(long, conflicts_with = "log")]
    pub no_log: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_conns: MAX_CONNS,
            max_per_addr: MAX_PER_ADDR,
            handshake_timeout: HANDSHAKE_TIMEOUT_MS,
            idle_timeout: IDLE_TIMEOUT_MS,
            write_timeout: WRITE_TIMEOUT_MS,
            grace: GRACE_MS,
            rate: RATE,
            burst: BURST,
            flood_timeout: FLOOD_TIMEOUT_MS,
            outbox: OUTBOX,
            history: HISTORY,
            log: None,
            no_log: false,
        }
    }
}

impl Limits {
    /// The shutdown timeout, `--grace`.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace)
    }

    /// The `--write-timeout`.
    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout)
    }

    /// The chat log, if there is one.
    pub fn log_file(&self) -> Option<&Path> {
        self.log.as_deref().filter(|_| !self.no_log)
    }
}

/// What happens to a reader that is slower than the room. A server has to give up something: a message, a reader, or
/// everybody's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Slow {
    /// Its queue grows without bound
    Grow,
    /// It misses lines, and gets their number
    Drop,
    /// It gets `! slow-reader` and is disconnected
    #[default]
    Kick,
}

/// One millisecond to one day: no infinite timeout, and no deadline that overflows.
fn ms() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=86_400_000)
}

fn within(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| format!("a number from {} to {}", range.start(), range.end()))
}

fn bytes(text: &str) -> Result<usize, String> {
    within(text, 4096..=1 << 30)
}

fn lines(text: &str) -> Result<usize, String> {
    within(text, 0..=1_000_000)
}
