//! What the workers count, in memory that all processes of the pool share.

use std::num::NonZeroUsize;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::Context;
use common::report::{Failed, write_now};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// The counters of one worker. A worker that replaces a dead one continues them. Each worker has
/// its own cache line, so that two workers on two CPUs do not slow each other down.
#[repr(C, align(64))]
pub struct Counters {
    /// Clients that are served now.
    clients: AtomicUsize,
    connections: AtomicUsize,
    rejected: AtomicUsize,
    /// A killed worker does not add its CPU time.
    pub cpu_ms: AtomicUsize,
}

/// The pool as one worker sees it.
pub struct Worker {
    pub mine: &'static Counters,
    /// The counters of all workers.
    pub counters: &'static [Counters],
    /// Clients at once, of all workers together.
    pub max_conns: usize,
}

/// Makes a mapping that fork does not copy: what one process writes, all processes read.
pub fn shared_counters(workers: usize) -> Result<&'static [Counters], Failed> {
    let length = NonZeroUsize::new(size_of::<Counters>() * workers).context("no workers")?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the address of the mapping: it overlaps no other memory.
    let map = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) };
    // SAFETY: page-aligned, long enough, zero, never unmapped; all fields are atomics.
    Ok(unsafe { slice::from_raw_parts(map.context("mmap")?.cast().as_ptr(), workers) })
}

impl Counters {
    /// One counter for the whole pool could not tell how many clients a killed worker had.
    pub fn set_clients(&self, served: usize) {
        self.clients.store(served, SeqCst);
    }
}

impl Worker {
    /// Counts a new connection. False if the pool is at its limit: the client must be rejected.
    pub fn admits(&self, served: usize) -> bool {
        self.mine.connections.fetch_add(1, SeqCst);
        // First count the client, then add up. So two workers that want the last slot may both
        // reject their client, but never both serve it.
        self.mine.set_clients(served + 1);
        let sum: usize = self.counters.iter().map(|worker| worker.clients.load(SeqCst)).sum();
        if sum > self.max_conns {
            self.mine.set_clients(served);
            self.mine.rejected.fetch_add(1, SeqCst);
        }
        sum <= self.max_conns
    }
}

/// Prints the counters. A row that stderr does not take at once is lost: a full pipe must not
/// block the shutdown.
pub fn print(counters: &[Counters]) {
    write_now(b"worker  connections  rejected    CPU ms\n");
    for (number, worker) in counters.iter().enumerate() {
        let [connections, rejected, cpu_ms] =
            [&worker.connections, &worker.rejected, &worker.cpu_ms].map(|n| n.load(SeqCst));
        let row = format!("{number:6}  {connections:11}  {rejected:8}  {cpu_ms:8}\n");
        write_now(row.as_bytes());
    }
}
