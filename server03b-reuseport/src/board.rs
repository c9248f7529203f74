//! What the workers know of one another: a count of clients each, in memory that fork does not copy.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// A place in the pool: its worker writes, and whoever replaces that worker goes on with it. A cache line each, so that
/// two workers that count do not take it from one another.
#[repr(C, align(64))]
pub struct Place {
    /// Clients that are being served now.
    pub held: AtomicU64,
    /// Those taken from this place's queue.
    pub connections: AtomicU64,
    /// Those of them that were told `ERR busy`.
    refused: AtomicU64,
    /// CPU time of its workers, in microseconds; of those that had time to write it down.
    pub cpu_us: AtomicU64,
}

/// The places of all workers. All bytes zero is a valid one.
pub fn shared_places(workers: usize) -> nix::Result<&'static [Place]> {
    let length = NonZeroUsize::new(size_of::<Place>() * workers).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let page =
        unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)? };
    // SAFETY: page-aligned, long enough, zero, never unmapped; all fields are atomics, so all access is shared.
    Ok(unsafe { slice::from_raw_parts(page.cast().as_ptr(), workers) })
}

impl Place {
    /// A new connection; true if the pool serves fewer than `most`. Two workers that look at the same moment may both find
    /// the last place.
    pub fn admits(&self, pool: &[Place], most: u64) -> bool {
        self.connections.fetch_add(1, SeqCst);
        let is_full = pool.iter().map(|place| place.held.load(SeqCst)).sum::<u64>() >= most;
        self.refused.fetch_add(is_full.into(), SeqCst);
        !is_full
    }

    /// The worker is dead, and its clients with it, however it was killed: one counter for all could not tell how many.
    pub fn release_all(&self) {
        self.held.store(0, SeqCst);
    }
}

/// The table that is printed at the end.
pub fn print(pool: &[Place]) {
    let mut all = [0; 3];
    let mut text = String::from("worker  connections  refused    CPU ms\n");
    let mut line = |name: &str, [connections, refused, cpu_us]: [u64; 3]| {
        let _ = writeln!(text, "{name:>6}  {connections:11}  {refused:7}  {:8}", cpu_us / 1000);
    };
    for (number, place) in pool.iter().enumerate() {
        let row = [&place.connections, &place.refused, &place.cpu_us].map(|count| count.load(SeqCst));
        all.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        line(&number.to_string(), row);
    }
    line("all", all);
    let _ = io::stderr().write_all(text.as_bytes());
}
