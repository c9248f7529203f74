//! How many descriptors a process may have, and so how many clients.

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::report::Failed;

/// Clients of an event loop, unless the descriptors allow fewer.
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are left for rejected connections, the standard streams, the listener, signals and epoll.
const RESERVE: u64 = 32;

/// Sets the soft limit of descriptors, RLIMIT_NOFILE, to `wanted`, or to the hard limit if that is lower. Returns
/// the new limit. Login shells set a low soft limit (1024) because of programs that use select; a process may raise
/// its own.
///
/// # Errors
/// The errors of getrlimit(2) and setrlimit(2).
pub fn limit_descriptors(wanted: u64) -> Result<u64, Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    let limit = hard.min(wanted);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).context("setrlimit")?;
    Ok(limit)
}

/// The option for the number of clients of an event loop.
#[derive(Args, Clone, Copy, Debug)]
pub struct MaxConns {
    /// Clients at once [default: what the limit of descriptors leaves, and at most 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_conns: Option<u64>,
}

impl MaxConns {
    /// Sets the limit of descriptors, see [`limit_descriptors`], and returns how many clients it allows at once.
    ///
    /// # Errors
    /// `--max-conns` needs more descriptors than the limit allows.
    pub fn within(&self, descriptors: u64) -> Result<usize, Failed> {
        let limit = limit_descriptors(descriptors)?;
        let most = limit.saturating_sub(RESERVE);
        match self.max_conns.unwrap_or(MAX_CONNS.min(most)) {
            n if (1..=most).contains(&n) => Ok(n as usize),
            n => Err(Failed::new(format!(
                "--max-conns {n}: the hard limit of {limit} descriptors leaves {most} for clients"
            ))),
        }
    }
}
