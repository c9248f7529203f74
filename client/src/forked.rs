//! `--engine fork`: a process per client, as in the book's client, and what they have counted put together.
//!
//! A child of a process with threads has only the thread that called fork, and every lock as it stood at that moment.
//! So all children are made before the first thread is, and wait at a gate: a pipe, from which each of them reads the
//! port when the run starts. Each runs the load of one client and writes its report to a pipe of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::limits::{self, Cpu};
use client::source::Sources;
use client::{EngineKind, Observer, Plan, Report, Warmup};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2};

use crate::commands::merge;
use crate::commands::once::Quiet;

/// Between two looks whether to stop, in milliseconds.
const GLANCE: u16 = 20;
/// After an interruption a child gets so long for its report.
const END: Duration = Duration::from_secs(5);

/// A child and what it has written so far.
struct Member {
    pid: Pid,
    /// `None` once it has closed its end.
    report: Option<File>,
    text: Vec<u8>,
    /// It has been waited for.
    reaped: bool,
}

/// The children, waiting at the gate. Dropped, it leaves none behind.
pub struct Crowd {
    /// Each child reads a port from it; the end of the file sends it away.
    gate: Option<File>,
    members: Vec<Member>,
}

impl Crowd {
    /// A process for each client of the plan; this one must have a single thread.
    pub fn fork(plan: &Plan, stop: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        limits::make_room(plan.clients)?;
        let (wait_here, gate) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
        let mut crowd = Crowd { gate: Some(File::from(gate)), members: Vec::new() };
        let source = plan.source.clone().or_else(|| Sources::automatic(plan));
        let parent = getpid();
        for number in 0..plan.clients {
            let (theirs, mine) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() }.context("fork")? {
                ForkResult::Child => {
                    // Held here, the gate would never be seen to close.
                    crowd.abandon();
                    drop(theirs);
                    child(parent, wait_here, mine, &share(plan, number, source.clone()), Arc::clone(stop))
                }
                ForkResult::Parent { child: pid } => crowd.members.push(Member {
                    pid,
                    report: Some(File::from(theirs)),
                    text: Vec::new(),
                    reaped: false,
                }),
            }
        }
        Ok(crowd)
    }

    /// In a child: the brothers are not its own to end.
    fn abandon(&mut self) {
        self.gate = None;
        self.members.clear();
    }

    /// Opens the gate, waits until every child has ended, and adds their reports. `lost` tells whether one is missing.
    pub fn run(mut self, plan: &Plan, observer: &mut dyn Observer, lost: &mut bool) -> anyhow::Result<Report> {
        let (cpu, machine) = (Cpu::now(), limits::machine_cpu());
        let ports = plan.port.to_ne_bytes().repeat(self.members.len());
        // All in one write: the pipe holds them, and each child takes two bytes of it in one read.
        match self.gate.take().map(|mut gate| gate.write_all(&ports)) {
            // Nobody is left to read it.
            Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Some(opened) => opened.context("open the gate")?,
            None => {}
        }
        self.read_all(observer)?;
        let (cpu, machine) = (Cpu::since(cpu), limits::machine_cpu().zip(machine));
        let (reports, mut errors) = self.collect()?;
        *lost = !errors.is_empty();
        if reports.is_empty() {
            // All of one cause, mostly: said once.
            errors.sort();
            errors.dedup();
            let Some(last) = errors.pop() else { bail!("no client process has made a report") };
            tell(&errors);
            bail!("{last}");
        }
        tell(&errors);
        let mut sum = add(plan, reports, cpu)?;
        // What each child calls others are mostly its brothers.
        let here = sum.honesty.others_cpu_percent.is_some();
        sum.honesty.others_cpu_percent = machine.filter(|_| here).map(|(now, before)| {
            let others = now.saturating_sub(before).saturating_sub(sum.cpu.total());
            100.0 * others.as_secs_f64() / sum.elapsed.as_secs_f64().max(1e-9)
        });
        sum.judge();
        Ok(sum)
    }

    /// Reads what the children write, whichever is first, until all have closed their ends.
    fn read_all(&mut self, observer: &dyn Observer) -> anyhow::Result<()> {
        let mut stopped: Option<Instant> = None;
        let mut buffer = vec![0; 1 << 16];
        while self.members.iter().any(|member| member.report.is_some()) {
            if observer.stop() && stopped.is_none() {
                stopped = Some(Instant::now());
                self.signal(Signal::SIGINT);
            }
            if stopped.is_some_and(|at| at.elapsed() > END) {
                self.signal(Signal::SIGKILL);
            }
            for place in self.ready()? {
                if let Some(member) = self.members.get_mut(place) {
                    member.read(&mut buffer);
                }
            }
        }
        Ok(())
    }

    /// Which of the pipes have something to read, or their end.
    fn ready(&self) -> anyhow::Result<Vec<usize>> {
        let open = || self.members.iter().enumerate().filter_map(|(i, member)| Some((i, member.report.as_ref()?)));
        let mut fds: Vec<PollFd> = open().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::from(GLANCE)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno).context("poll"),
        }
        let news = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(open().zip(&fds).filter(|(_, fd)| news(fd)).map(|((i, _), _)| i).collect())
    }

    fn signal(&self, signal: Signal) {
        for member in self.members.iter().filter(|member| member.report.is_some()) {
            // Not waited for yet, so the pid is still its own.
            _ = kill(member.pid, signal);
        }
    }

    /// Waits for the children; their reports, and a line for each that has made none.
    fn collect(&mut self) -> anyhow::Result<(Vec<Report>, Vec<String>)> {
        let (mut reports, mut errors) = (Vec::new(), Vec::new());
        for member in &mut self.members {
            let status = member.wait();
            let pid = member.pid;
            match status.context("waitpid")? {
                WaitStatus::Signaled(_, signal, _) => errors.push(format!(
                    "client process {pid} was killed by signal {}: its part of the counts is lost",
                    signal as i32
                )),
                WaitStatus::Exited(_, 0) => {
                    let report = client::json::read(&mut member.text.as_slice());
                    reports.push(report.with_context(|| format!("the report of client process {pid}"))?);
                }
                _ => errors.push(String::from_utf8_lossy(&member.text).trim_end().to_owned()),
            }
        }
        Ok((reports, errors))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.gate = None;
        for member in &mut self.members {
            // The end of a server that did not start may have waited for it: then the pid is perhaps another's by now.
            let there = || waitpid(member.pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive);
            if !member.reaped && there() {
                _ = kill(member.pid, Signal::SIGKILL);
                _ = member.wait();
            }
        }
    }
}

impl Member {
    fn read(&mut self, buffer: &mut [u8]) {
        let Some(pipe) = &mut self.report else { return };
        match pipe.read(buffer) {
            Ok(n) if n > 0 => self.text.extend(buffer.iter().take(n)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.report = None,
        }
    }

    fn wait(&mut self) -> nix::Result<WaitStatus> {
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                status => {
                    self.reaped = true;
                    return status;
                }
            }
        }
    }
}

/// The reports of the children as the one of the plan; `own` is what this process has used beside them.
fn add(plan: &Plan, reports: Vec<Report>, own: Cpu) -> anyhow::Result<Report> {
    // Each is a process of its own; pages that they share are counted in each.
    let memory = reports.iter().map(|report| report.peak_memory).sum();
    let (mut sum, _) = merge::together(reports)?;
    sum.plan = plan.clone();
    sum.peak_memory = memory;
    sum.cpu.user_ns += own.user_ns;
    sum.cpu.system_ns += own.system_ns;
    // Of all clients, also of those that have made no report.
    let (requests, links) = (&mut sum.requests, &mut sum.connections);
    requests.planned = plan.requests();
    requests.not_sent = requests.planned.map(|planned| planned.saturating_sub(requests.sent));
    links.planned = plan.connections();
    links.not_tried = links.planned.map(|planned| planned.saturating_sub(links.tried));
    sum.judge_rate();
    Ok(sum)
}

fn tell(errors: &[String]) {
    for line in errors {
        _ = writeln!(io::stderr(), "client: {line}");
    }
}

/// What client `number` does of the plan, in blocking calls and its only thread.
fn share(plan: &Plan, number: u32, source: Option<Sources>) -> Plan {
    let warmup = match plan.warmup {
        Warmup::Requests(n) => Warmup::Requests(n.div_ceil(u64::from(plan.clients.max(1)))),
        other => other,
    };
    let seed = plan.seed.wrapping_add(number.into());
    Plan { clients: 1, engine: EngineKind::Threads, seed, warmup, source, ..plan.clone() }
}

/// The whole life of a child. It leaves by _exit: what the parent has buffered is the parent's to write.
fn child(parent: Pid, gate: OwnedFd, report: OwnedFd, plan: &Plan, stop: Arc<AtomicBool>) -> ! {
    let mut out = Vec::new();
    let status = match at_gate(parent, gate) {
        Some(port) => work(&Plan { port, ..plan.clone() }, stop, &mut out),
        None => 0,
    };
    let written = File::from(report).write_all(&out);
    let status = if written.is_err() { 1 } else { status };
    // SAFETY: it ends the process, and takes no memory.
    unsafe { libc::_exit(status) }
}

/// The port, when the run starts; `None` where there is to be no run.
fn at_gate(parent: Pid, gate: OwnedFd) -> Option<u16> {
    set_pdeathsig(Signal::SIGKILL).ok()?;
    // It may have died before the line above.
    if getppid() != parent {
        return None;
    }
    let mut port = [0; 2];
    File::from(gate).read_exact(&mut port).ok()?;
    Some(u16::from_ne_bytes(port))
}

/// The load of one client; its report, or the line that says why there is none.
fn work(plan: &Plan, stop: Arc<AtomicBool>, out: &mut Vec<u8>) -> i32 {
    let done = client::run(plan, &mut Quiet(stop)).map_err(anyhow::Error::from);
    match done.and_then(|report| Ok(client::json::write(&report, &mut *out)?)) {
        Ok(()) => 0,
        Err(error) => {
            *out = format!("{error:#}\n").into_bytes();
            1
        }
    }
}
