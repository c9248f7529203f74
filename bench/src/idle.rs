//! What a connection costs that does nothing: user memory of the server per idle client.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testkit::{Peer, Server, procs};

use crate::subject::Subject;

/// Descriptors this process keeps for itself.
const RESERVE: u64 = 64;

/// Bytes of anonymous memory per idle connection, and how many there were. `None` where the design does not hold so
/// many.
///
/// # Errors
/// Where the server does not start or loses a connection.
pub fn bytes_per_connection(subject: &Subject, wanted: usize) -> Result<Option<(usize, f64)>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?;
    let count = wanted.min(hard.saturating_sub(RESERVE) as usize);
    if !subject.serves_at_once(count) {
        return Ok(None);
    }
    let Some(server) = subject.start(count)? else { return Ok(None) };
    let mut first = server.connect();
    first.ask(1);
    // Until the server has closed it: it would be counted among the idle ones otherwise.
    first.half_close();
    first.read_to_end();
    let (memory, open) = (memory(&server), descriptors(&server));
    let mut peers = Vec::with_capacity(count);
    for _ in 0..count {
        peers.push(Peer::try_connect(server.addr).with_context(|| subject.name.clone())?);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while descriptors(&server) < open + count {
        ensure!(Instant::now() < deadline, "{}: holds {} of {count}", subject.name, descriptors(&server) - open);
        std::thread::sleep(Duration::from_millis(20));
    }
    let grown = self::memory(&server).saturating_sub(memory);
    ensure!(peers.iter().all(Peer::is_waiting), "{}: an idle client was told something", subject.name);
    Ok(Some((count, grown as f64 / count as f64)))
}

fn memory(server: &Server) -> u64 {
    server.family().iter().map(|proc| procs::anonymous_bytes(proc.pid)).sum()
}

fn descriptors(server: &Server) -> usize {
    server.family().iter().map(|proc| procs::descriptors(proc.pid).len()).sum()
}
