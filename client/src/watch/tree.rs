//! A process and all below it, as /proc shows them.

use std::collections::HashMap;
use std::time::Duration;

use client::limits::Cpu;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use procfs::process::{Process, Stat, Task};

/// What a tree has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Living processes.
    pub processes: u64,
    /// Switches because a thread waited, of all threads ever seen.
    pub voluntary: u64,
    /// Switches because the CPU was taken away.
    pub involuntary: u64,
    cpu_ns: u64,
    user_ticks: u64,
    system_ticks: u64,
}

impl Usage {
    /// CPU time between two looks; the ticks say how it divides into user and system.
    pub fn cpu_since(&self, start: &Usage) -> Cpu {
        let all = self.cpu_ns.saturating_sub(start.cpu_ns);
        let user = self.user_ticks.saturating_sub(start.user_ticks);
        let system = self.system_ticks.saturating_sub(start.system_ticks);
        let user_ns = (all as f64 * user as f64 / (user + system).max(1) as f64) as u64;
        Cpu { user_ns, system_ns: all.saturating_sub(user_ns) }
    }
}

/// The tree below one process.
pub struct Tree {
    root: i32,
    tick_ns: u64,
    last: Usage,
    /// Switches of each thread when it was last seen.
    switches: HashMap<i32, (u64, u64)>,
    pub peak_rss: u64,
    pub peak_processes: u64,
    pub peak_threads: u64,
}

impl Tree {
    pub fn new(root: i32) -> Self {
        Tree {
            root,
            tick_ns: 1_000_000_000 / procfs::ticks_per_second().max(1),
            last: Usage::default(),
            switches: HashMap::new(),
            peak_rss: 0,
            peak_processes: 0,
            peak_threads: 0,
        }
    }

    /// What was used when the root was last seen alive.
    pub fn usage(&self) -> Usage {
        self.last
    }

    /// Takes the state of the moment; processes may end while it looks.
    pub fn look(&mut self) {
        let mut now = Usage::default();
        let (mut rss, mut threads) = (0, 0);
        let mut todo = vec![self.root];
        let adopted = Process::myself().map(|me| children(&me)).unwrap_or_default();
        while let Some(pid) = todo.pop() {
            let Ok(process) = Process::new(pid) else { continue };
            let Ok(stat) = process.stat() else { continue };
            if pid == self.root {
                // Orphans of a server that was started here come to this process; its group tells them from others.
                let ours = |pid: &i32| *pid != self.root && group(*pid) == Some(stat.pgrp);
                todo.extend(adopted.iter().copied().filter(ours).filter(|_| stat.pgrp == self.root));
            }
            now.processes += 1;
            threads += u64::try_from(stat.num_threads).unwrap_or_default();
            rss += stat.rss * procfs::page_size();
            self.add_cpu(&mut now, pid, &stat);
            self.see_switches(&process);
            todo.extend(children(&process));
        }
        if now.processes == 0 {
            return;
        }
        for (voluntary, involuntary) in self.switches.values() {
            now.voluntary += voluntary;
            now.involuntary += involuntary;
        }
        self.peak_rss = self.peak_rss.max(rss);
        self.peak_processes = self.peak_processes.max(now.processes);
        self.peak_threads = self.peak_threads.max(threads);
        // A child that ends between the look at its parent and at itself is in neither: time never runs back.
        now.cpu_ns = now.cpu_ns.max(self.last.cpu_ns);
        self.last = now;
    }

    fn add_cpu(&self, now: &mut Usage, pid: i32, stat: &Stat) {
        let reaped = |ticks: i64| u64::try_from(ticks).unwrap_or_default();
        let (user, system) = (reaped(stat.cutime), reaped(stat.cstime));
        now.user_ticks += stat.utime + user;
        now.system_ticks += stat.stime + system;
        let own = clock(pid).unwrap_or((stat.utime + stat.stime) * self.tick_ns);
        now.cpu_ns += own + (user + system) * self.tick_ns;
    }

    fn see_switches(&mut self, process: &Process) {
        let Ok(tasks) = process.tasks() else { return };
        for task in tasks.flatten() {
            if let Some(switches) = switches(&task) {
                self.switches.insert(task.tid, switches);
            }
        }
    }
}

/// The CPU clock of a process: all its threads, to the nanosecond.
fn clock(pid: i32) -> Option<u64> {
    let time = clock_getcpuclockid(Pid::from_raw(pid)).ok()?.now().ok()?;
    u64::try_from(Duration::from(time).as_nanos()).ok()
}

fn switches(task: &Task) -> Option<(u64, u64)> {
    let status = task.status().ok()?;
    Some((status.voluntary_ctxt_switches?, status.nonvoluntary_ctxt_switches?))
}

fn group(pid: i32) -> Option<i32> {
    Process::new(pid).and_then(|process| process.stat()).ok().map(|stat| stat.pgrp)
}

/// The children of all threads of a process.
pub fn children(process: &Process) -> Vec<i32> {
    let Ok(tasks) = process.tasks() else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| task.children().ok());
    lists.flatten().filter_map(|pid| i32::try_from(pid).ok()).collect()
}
