//! What the workers count, in memory that the whole family shares.
//!
//! `counter += 1` from several processes would lose counts, so each worker has counters of its own, on a cache line of
//! its own, and they are atomics: the parent reads while they are written.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use crate::Args;

const MOST_WORKERS: usize = 1024;
/// So many of the last accepts are remembered.
const ORDER: usize = 4096;
const BAR: u64 = 40;
const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// One worker's counters. A worker that replaces another goes on with them.
#[repr(C, align(64))]
pub struct Tally {
    pub connections: AtomicU64,
    /// Times the worker was put to sleep in its wait, and so times it was woken.
    pub wakeups: AtomicU64,
    /// Times it came back from the wait and found no connection.
    pub wasted: AtomicU64,
    /// In a wait: its context switches when the wait began, plus 1. Elsewhere: 0.
    asleep: AtomicU64,
}

/// The shared page. All zero bytes are a valid one.
#[repr(C)]
pub struct Board {
    pub workers: [Tally; MOST_WORKERS],
    accepts: AtomicU64,
    order: [AtomicU8; ORDER],
}

/// Voluntary context switches of this process: how often it has gone to sleep. EAGAIN would undercount a herd: most of
/// those that are woken find the queue empty inside the kernel and sleep on, without ever coming back here.
pub fn switches() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches() as u64)
}

/// The same, of another process.
fn switches_of(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

impl Tally {
    /// The wait begins.
    pub fn sleeps(&self, switches: u64) {
        self.asleep.store(switches + 1, SeqCst);
    }

    /// The wait is over. If a signal ended it, the last wake-up was no connection's.
    pub fn woken(&self, times: u64, by_signal: bool) {
        self.asleep.store(0, SeqCst);
        self.wakeups.fetch_add(times.saturating_sub(by_signal.into()), SeqCst);
    }

    /// Wake-ups, those included that a worker has slept through without coming back from its wait.
    fn wakeups(&self, pid: Option<Pid>) -> u64 {
        let slept_on = |pid| {
            let began = self.asleep.load(SeqCst).checked_sub(1)?;
            switches_of(pid)?.checked_sub(began + 1)
        };
        self.wakeups.load(SeqCst) + pid.and_then(slept_on).unwrap_or(0)
    }
}

impl Board {
    /// A mapping that fork does not copy: what one process writes, all see.
    pub fn new() -> nix::Result<&'static Board> {
        let length = NonZeroUsize::new(size_of::<Board>()).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let page = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)?
        };
        // SAFETY: page-aligned, long enough, zero, never unmapped; all fields are atomics, so all access is shared.
        Ok(unsafe { page.cast::<Board>().as_ref() })
    }

    /// Counts a connection, and writes down whose it was.
    pub fn accepted(&self, tally: &Tally) {
        tally.connections.fetch_add(1, SeqCst);
        let place = self.workers.iter().position(|other| std::ptr::eq(other, tally)).unwrap_or(MOST_WORKERS);
        let turn = self.accepts.fetch_add(1, SeqCst) as usize % ORDER;
        if let Some(entry) = self.order.get(turn) {
            entry.store(letter(place), SeqCst);
        }
    }

    /// The last accepts, oldest first, a letter each.
    fn order(&self) -> String {
        let accepts = self.accepts.load(SeqCst) as usize;
        let turns = accepts.saturating_sub(ORDER)..accepts;
        turns.filter_map(|turn| self.order.get(turn % ORDER)).map(|entry| char::from(entry.load(SeqCst))).collect()
    }

    /// The table to stderr, or JSON to stdout.
    pub fn print(&self, args: &Args, pids: impl Iterator<Item = Option<Pid>>) {
        let rows: Vec<[u64; 4]> = self
            .workers
            .iter()
            .zip(pids)
            .map(|(tally, pid)| {
                let pid_number = pid.map_or(0, |pid| pid.as_raw() as u64);
                [pid_number, tally.connections.load(SeqCst), tally.wakeups(pid), tally.wasted.load(SeqCst)]
            })
            .collect();
        let wait = format!("{:?}", args.wait).to_lowercase();
        if args.json {
            let _ = writeln!(io::stdout(), "{}", json(&wait, &rows, &self.order()));
        } else {
            let _ = io::stderr().write_all(table(&wait, &rows, &self.order()).as_bytes());
        }
    }
}

fn letter(place: usize) -> u8 {
    LETTERS.get(place).copied().unwrap_or(b'+')
}

fn json(wait: &str, rows: &[[u64; 4]], order: &str) -> String {
    let worker = |(place, [pid, connections, wakeups, wasted]): (usize, &[u64; 4])| {
        let name = char::from(letter(place));
        format!(
            r#"{{"letter":"{name}","pid":{pid},"connections":{connections},"wakeups":{wakeups},"wasted":{wasted}}}"#
        )
    };
    let workers: Vec<String> = rows.iter().enumerate().map(worker).collect();
    format!(r#"{{"wait":"{wait}","workers":[{}],"order":"{order}"}}"#, workers.join(","))
}

fn table(wait: &str, rows: &[[u64; 4]], order: &str) -> String {
    let sum = |column: fn(&[u64; 4]) -> u64| rows.iter().map(column).sum::<u64>();
    let (connections, wakeups, wasted) = (sum(|row| row[1]), sum(|row| row[2]), sum(|row| row[3]));
    let most = rows.iter().map(|row| row[1]).max().unwrap_or(0).max(1);
    let mut text = String::from("    connections  wake-ups  wasted\n");
    for (place, [_, connections, wakeups, wasted]) in rows.iter().enumerate() {
        let bar = "#".repeat((connections * BAR).div_ceil(most) as usize);
        let _ = writeln!(text, "{}   {connections:11} {wakeups:9} {wasted:7}  {bar}", char::from(letter(place)));
    }
    let per_connection = wakeups as f64 / connections.max(1) as f64;
    let _ = writeln!(
        text,
        "all {connections:11} {wakeups:9} {wasted:7}  {wait}: {per_connection:.2} wake-ups per connection"
    );
    let recent = order.get(order.len().saturating_sub(64)..).unwrap_or_default();
    let _ = writeln!(text, "order {recent}");
    text
}
