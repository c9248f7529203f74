//! What the workers count, in memory that all processes of the pool share.
//!
//! `counter += 1` in several processes loses counts. So each worker has its own counters, on its
//! own cache line, and they are atomics, because the parent reads them at any time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use anyhow::Context;
use common::report::{Failed, write_now};
use lifecycle::on_signal;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use crate::Args;

const MOST_WORKERS: usize = 1024;
/// The order of this many accepts is kept.
const ORDER: usize = 4096;
const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// True after SIGUSR1 has arrived.
static IS_REQUESTED: AtomicBool = AtomicBool::new(false);

/// The counters of one worker. A worker that replaces a dead one continues them.
#[repr(C, align(64))]
pub struct Tally {
    connections: AtomicU64,
    /// How many times the worker was woken in its wait.
    wakeups: AtomicU64,
    /// How many times the wait returned, and accept found no connection.
    spurious: AtomicU64,
    /// During a wait: its context switches when the wait began, plus 1. Otherwise: 0.
    waiting: AtomicU64,
}

/// The shared memory. It is valid if all bytes are zero.
#[repr(C)]
pub struct Board {
    pub workers: [Tally; MOST_WORKERS],
    accepts: AtomicU64,
    order: [AtomicU8; ORDER],
}

/// The voluntary context switches of this process: how many times it went to sleep. Counting EAGAIN
/// would miss most spurious wake-ups: the kernel finds the queue empty, and lets the process sleep
/// again without a return from the call.
fn switches() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches() as u64)
}

/// The same of another process.
fn switches_of(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok();
    status.lines().find_map(number)
}

impl Tally {
    pub fn wait_begins(&self) {
        self.waiting.store(switches() + 1, SeqCst);
    }

    /// If a signal ended the wait, no connection caused the last wake-up.
    pub fn wait_ends(&self, by_signal: bool) {
        let times = (switches() + 1).saturating_sub(self.waiting.swap(0, SeqCst));
        self.wakeups.fetch_add(times.saturating_sub(by_signal.into()), SeqCst);
    }

    fn row((tally, pid): (&Tally, Option<Pid>)) -> [u64; 4] {
        let [connections, spurious] = [&tally.connections, &tally.spurious].map(|n| n.load(SeqCst));
        [pid.map_or(0, |pid| pid.as_raw() as u64), connections, tally.wakeups(pid), spurious]
    }

    pub fn count_spurious(&self) {
        self.spurious.fetch_add(1, SeqCst);
    }

    /// The wake-ups, with those of a wait that has not returned yet.
    fn wakeups(&self, pid: Option<Pid>) -> u64 {
        let began = self.waiting.load(SeqCst); // its first switch is the sleep that still lasts
        let in_this_wait = pid.filter(|_| began > 0).and_then(switches_of);
        self.wakeups.load(SeqCst) + in_this_wait.map_or(0, |now| now.saturating_sub(began))
    }
}

/// The handler of SIGUSR1. The parent prints when its sleep returns.
extern "C" fn request(_: libc::c_int) {
    IS_REQUESTED.store(true, SeqCst);
}

impl Board {
    /// Makes a mapping that fork does not copy: what one process writes, all processes read. From
    /// now on SIGUSR1 requests the counters. It is blocked, except in the parent's sleep.
    pub fn new() -> Result<&'static Board, Failed> {
        on_signal(Signal::SIGUSR1, request)?;
        SigSet::from(Signal::SIGUSR1).thread_block().context("sigprocmask")?;
        let length = NonZeroUsize::new(size_of::<Board>()).unwrap_or(NonZeroUsize::MIN);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let shared = MapFlags::MAP_SHARED;
        // SAFETY: the kernel chooses the address of the mapping: it overlaps no other memory.
        let page = unsafe { mmap_anonymous(None, length, access, shared) }.context("mmap")?;
        // SAFETY: page-aligned, long enough, zero, never unmapped; all fields are atomics.
        Ok(unsafe { page.cast::<Board>().as_ref() })
    }

    /// Counts a connection, and stores which worker accepted it.
    pub fn accepted(&self, tally: &Tally) {
        tally.connections.fetch_add(1, SeqCst);
        let worker = self.workers.iter().position(|other| std::ptr::eq(other, tally));
        let turn = self.accepts.fetch_add(1, SeqCst) as usize % ORDER;
        if let Some(entry) = self.order.get(turn) {
            entry.store(letter(worker.unwrap_or(MOST_WORKERS)), SeqCst);
        }
    }

    /// The last accepts, oldest first, one letter each.
    fn order(&self) -> String {
        let accepts = self.accepts.load(SeqCst) as usize;
        let turns = accepts.saturating_sub(ORDER)..accepts;
        let entries = turns.filter_map(|turn| self.order.get(turn % ORDER));
        entries.map(|entry| char::from(entry.load(SeqCst))).collect()
    }

    pub fn print_if_requested(&self, args: &Args, pids: impl Iterator<Item = Option<Pid>>) {
        if IS_REQUESTED.swap(false, SeqCst) {
            self.print(args, pids);
        }
    }

    /// Prints the table to stderr, or JSON to stdout.
    pub fn print(&self, args: &Args, pids: impl Iterator<Item = Option<Pid>>) {
        let rows: Vec<[u64; 4]> = self.workers.iter().zip(pids).map(Tally::row).collect();
        let (wait, order) = (format!("{:?}", args.options.way).to_lowercase(), self.order());
        if args.options.json {
            let _ = writeln!(io::stdout(), "{}", json(&wait, &rows, &order));
        } else {
            write_now(table(&wait, &rows, &order).as_bytes());
        }
    }
}

fn letter(worker: usize) -> u8 {
    LETTERS.get(worker).copied().unwrap_or(b'+')
}

fn json(wait: &str, rows: &[[u64; 4]], order: &str) -> serde_json::Value {
    let names = ["pid", "connections", "wakeups", "spurious"];
    let worker = |row: &[u64; 4]| names.into_iter().zip(*row).collect();
    let workers: Vec<HashMap<_, _>> = rows.iter().map(worker).collect();
    serde_json::json!({ "wait": wait, "workers": workers, "order": order })
}

fn table(wait: &str, rows: &[[u64; 4]], order: &str) -> String {
    let sum = |column: fn(&[u64; 4]) -> u64| rows.iter().map(column).sum::<u64>();
    let (connections, wakeups, spurious) = (sum(|r| r[1]), sum(|r| r[2]), sum(|r| r[3]));
    let most = rows.iter().map(|row| row[1]).fold(1, u64::max);
    let mut text = String::from("    connections  wake-ups  spurious\n");
    for (worker, [_, connections, wakeups, spurious]) in rows.iter().enumerate() {
        let (letter, bar) = (char::from(letter(worker)), (connections * 40).div_ceil(most));
        let bar = "#".repeat(bar as usize);
        text += &format!("{letter}   {connections:11} {wakeups:9} {spurious:9}  {bar}\n");
    }
    let average = wakeups as f64 / connections.max(1) as f64;
    text += &format!("all {connections:11} {wakeups:9} {spurious:9}  {wait}: {average:.2}");
    text += " wake-ups per connection\n";
    text + "order " + order.get(order.len().saturating_sub(64)..).unwrap_or_default() + "\n"
}
