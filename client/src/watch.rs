//! The server under load: started and stopped, and what its processes use.
//!
//! CPU time is exact but for the tick in which the kernel tells that of ended children (10 ms per process that has
//! such children): it is the clock of each living process and `cutime + cstime`, which the kernel adds up as children
//! are waited for. Memory, processes and threads are looked at 20 times a second, so what lives shorter may be missed.
//! Context switches are exact for a server that was started here, from its rusage; else they are sampled too.

mod server;
mod tree;

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail};
use client::Report;
use client::limits::Cpu;
use client::report::ServerUse;
use nix::sys::resource::{UsageWho, getrusage};

pub use server::Server;
use tree::{Tree, Usage};

/// Between two looks at the processes.
const EVERY: Duration = Duration::from_millis(50);

/// Looks at a tree of processes in a thread of its own.
pub struct Watch {
    pid: i32,
    done: Sender<()>,
    thread: JoinHandle<(Tree, Cpu)>,
    start: Usage,
    switches: (u64, u64),
}

impl Watch {
    /// Begins with the process `pid`.
    pub fn start(pid: i32) -> anyhow::Result<Self> {
        let mut tree = Tree::new(pid);
        tree.look();
        let start = tree.usage();
        if start.processes == 0 {
            bail!("server process {pid}: no such process");
        }
        let (done, told) = mpsc::channel();
        let look = move || {
            while told.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                tree.look();
            }
            tree.look();
            (tree, Cpu::of_thread())
        };
        let thread = thread::Builder::new().name("watch".into()).spawn(look).context("start a thread")?;
        Ok(Watch { pid, done, thread, start, switches: child_switches() })
    }

    /// Ends it and puts what was used into the report, without what the watching itself has cost this process.
    pub fn finish(self, report: &mut Report) -> Watched {
        let watched = Watched { start: self.start, switches: self.switches };
        let Some((used, own)) = self.end() else { return watched };
        report.cpu.user_ns = report.cpu.user_ns.saturating_sub(own.user_ns);
        report.cpu.system_ns = report.cpu.system_ns.saturating_sub(own.system_ns);
        report.server = Some(used);
        report.judge();
        watched
    }

    /// Ends it: what was used, and what the watching itself has cost this process.
    pub fn end(self) -> Option<(ServerUse, Cpu)> {
        _ = self.done.send(());
        let (tree, own) = self.thread.join().ok()?;
        let (start, end) = (self.start, tree.usage());
        let used = ServerUse {
            pid: self.pid,
            cpu: end.cpu_since(&start),
            voluntary_switches: end.voluntary.saturating_sub(start.voluntary),
            involuntary_switches: end.involuntary.saturating_sub(start.involuntary),
            peak_rss_bytes: tree.peak_rss,
            peak_processes: tree.peak_processes,
            peak_threads: tree.peak_threads,
        };
        Some((used, own))
    }
}

/// What is known of a server whose watching is over.
pub struct Watched {
    start: Usage,
    switches: (u64, u64),
}

impl Watched {
    /// After the server was waited for: its rusage counts the switches of children that came and went between two
    /// looks, and those of its end.
    pub fn correct(&self, server: &mut ServerUse) {
        let (voluntary, involuntary) = child_switches();
        let since = |now: u64, before: u64, start: u64| now.saturating_sub(before).saturating_sub(start);
        let voluntary = since(voluntary, self.switches.0, self.start.voluntary);
        let involuntary = since(involuntary, self.switches.1, self.start.involuntary);
        server.voluntary_switches = server.voluntary_switches.max(voluntary);
        server.involuntary_switches = server.involuntary_switches.max(involuntary);
    }
}

/// Context switches of the children this process has waited for, and of theirs.
fn child_switches() -> (u64, u64) {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return (0, 0) };
    let count = |n: i64| u64::try_from(n).unwrap_or_default();
    (count(usage.voluntary_context_switches()), count(usage.involuntary_context_switches()))
}
