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
use client::limits::Cpu;
use client::report::ServerUse;
use client::{Observer, Progress, Report};
use nix::sys::resource::{UsageWho, getrusage};

pub use server::Server;
use tree::{Tree, Usage};

/// Between two looks at the processes.
const EVERY: Duration = Duration::from_millis(50);

/// What the watching thread is told.
enum Tell {
    /// The warm-up is over.
    Warm,
    /// So is the run.
    Over,
}

/// What it has seen, and the CPU time that it used for that itself.
struct Seen {
    tree: Tree,
    own: Cpu,
    /// Both at the end of the warm-up.
    warm: Option<(Usage, Cpu)>,
}

/// Looks at a tree of processes in a thread of its own.
pub struct Watch {
    pid: i32,
    tell: Sender<Tell>,
    thread: JoinHandle<Seen>,
    start: Usage,
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
        let (tell, told) = mpsc::channel();
        let look = move || {
            let mut warm = None;
            loop {
                let news = told.recv_timeout(EVERY);
                tree.look();
                match news {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(Tell::Warm) => warm = Some((tree.usage(), Cpu::of_thread())),
                    Ok(Tell::Over) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            Seen { tree, own: Cpu::of_thread(), warm }
        };
        let thread = thread::Builder::new().name("watch".into()).spawn(look).context("start a thread")?;
        Ok(Watch { pid, tell, thread, start })
    }

    /// An observer that notices the end of the warm-up for this watch, and is otherwise `inner`.
    pub fn beside<'a>(&self, inner: &'a mut dyn Observer) -> Beside<'a> {
        Beside { inner, tell: Some(self.tell.clone()) }
    }

    /// Ends it and puts what was used into the report, without what the watching itself has cost this process.
    pub fn finish(self, report: &mut Report) -> Watched {
        // The server is not waited for yet: what was before are processes of this client.
        let watched = Watched { start: self.start, switches: child_switches() };
        let Some((mut used, seen)) = self.over() else { return watched };
        report.cpu = report.cpu.less(seen.own);
        if let Some((steady, (usage, before))) = report.steady.as_mut().zip(seen.warm) {
            steady.cpu = steady.cpu.less(seen.own.less(before));
            used.steady_cpu = Some(seen.tree.usage().cpu_since(&usage));
        }
        report.server = Some(used);
        report.judge();
        watched
    }

    /// Ends it: what was used, and what the watching itself has cost this process.
    pub fn end(self) -> Option<(ServerUse, Cpu)> {
        self.over().map(|(used, seen)| (used, seen.own))
    }

    fn over(self) -> Option<(ServerUse, Seen)> {
        _ = self.tell.send(Tell::Over);
        let seen = self.thread.join().ok()?;
        let (start, end) = (self.start, seen.tree.usage());
        let used = ServerUse {
            pid: self.pid,
            cpu: end.cpu_since(&start),
            steady_cpu: None,
            voluntary_switches: end.voluntary.saturating_sub(start.voluntary),
            involuntary_switches: end.involuntary.saturating_sub(start.involuntary),
            peak_rss_bytes: seen.tree.peak_rss,
            peak_processes: seen.tree.peak_processes,
            peak_threads: seen.tree.peak_threads,
        };
        Some((used, seen))
    }
}

/// See [`Watch::beside`].
pub struct Beside<'a> {
    inner: &'a mut dyn Observer,
    /// `None` once told.
    tell: Option<Sender<Tell>>,
}

impl Observer for Beside<'_> {
    fn progress(&mut self, now: &Progress) {
        if now.is_warm
            && let Some(tell) = self.tell.take()
        {
            _ = tell.send(Tell::Warm);
        }
        self.inner.progress(now);
    }

    fn rate(&self) -> Option<f64> {
        self.inner.rate()
    }

    fn stop(&self) -> bool {
        self.inner.stop()
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
