//! What must hold after every test, whatever the test was about.
//!
//! A suite that cannot fail proves nothing: `tests/selftest.rs` runs this oracle against servers that are broken on
//! purpose, and each one has to be caught.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::procs;
use crate::server::{Server, TIMEOUT};

/// Anonymous memory may grow by this much over a whole test: allocator slack, not a leak per client.
const MEMORY_SLACK: u64 = 1 << 20;
/// An idle server may use this share of one CPU.
const IDLE_CPU: f64 = 0.05;
const IDLE_SAMPLE: Duration = Duration::from_millis(300);

/// How the oracle asks a server for its service. A fault is said in words.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// One client that comes, is served and leaves: when it returns, the server has closed the connection.
    pub visit: fn(&Server) -> Result<(), String>,
    /// Fresh clients, there at once, are all served.
    pub crowd: fn(&Server) -> Result<(), String>,
    /// Anonymous memory may grow by this much over a whole test.
    pub slack: u64,
}

/// The service of the byte servers.
const BYTES: Service = Service { visit: one_byte, crowd: not_serving, slack: MEMORY_SLACK };

/// A server at rest, before anybody abuses it.
#[derive(Debug)]
pub struct Baseline {
    rest: Rest,
    memory: u64,
    service: Service,
}

/// What two looks at a server at rest must agree on. Numbers that change when a worker is replaced are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rest {
    processes: usize,
    threads: i64,
    /// For each process, what its descriptors point at, without socket and pipe numbers.
    descriptors: Vec<Vec<String>>,
}

impl Baseline {
    /// Serves one client of the byte service and waits until the server has come to rest.
    pub fn of(server: &Server) -> Baseline {
        Baseline::of_service(server, BYTES)
    }

    /// Serves one client and waits until the server has come to rest.
    pub fn of_service(server: &Server, service: Service) -> Baseline {
        (service.visit)(server).unwrap_or_else(|e| panic!("{e}"));
        let (start, deadline) = (Instant::now(), Instant::now() + TIMEOUT);
        let mut before = Rest::of(server);
        loop {
            thread::sleep(Duration::from_millis(20));
            let now = Rest::of(server);
            // On a busy machine a forked child may not yet have closed its copies, or be a zombie still.
            let sleeps = server.family().iter().all(|proc| proc.state == 'S');
            if now == before && (sleeps || start.elapsed() > TIMEOUT / 4) {
                return Baseline { rest: now, memory: memory(server), service };
            }
            assert!(Instant::now() < deadline, "the server never comes to rest: {before:?}, {now:?}");
            before = now;
        }
    }
}

impl Rest {
    fn of(server: &Server) -> Rest {
        let family = server.family();
        let kind = |target: &String| match target.split_once(':') {
            Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
            _ => target.clone(),
        };
        let mut descriptors: Vec<Vec<String>> = family
            .iter()
            .map(|proc| {
                let mut kinds: Vec<String> = procs::descriptors(proc.pid).values().map(kind).collect();
                kinds.sort();
                kinds
            })
            .collect();
        descriptors.sort();
        Rest { processes: family.len(), threads: family.iter().map(|p| p.threads).sum(), descriptors }
    }
}

/// Checks a server that has just been abused. An empty list is health.
pub fn faults(server: &mut Server, base: &Baseline) -> Vec<String> {
    let mut faults = Vec::new();
    // At rest first: where places are few, the abused ones must be free before fresh clients can have them.
    match not_at_rest(server, base).and_then(|()| (base.service.crowd)(server)) {
        Ok(()) => faults.extend(not_at_rest(server, base).err()),
        Err(fault) => faults.push(fault),
    }
    // Asked last: a server on its way out is still there for its last client, and for a moment after that.
    if let Some(status) = server.exited() {
        return vec![format!("the server ended: {}, {}", crate::describe(status), server.log())];
    }
    faults.extend(server.family().iter().flat_map(|proc| inheritable(proc.pid)));
    faults.extend(busy_when_idle(server).err());
    let memory = memory(server);
    if memory > base.memory + base.service.slack {
        faults.push(format!("memory grew from {} to {memory} bytes", base.memory));
    }
    faults.extend(ugly_log(&server.log()));
    faults
}

fn one_byte(server: &Server) -> Result<(), String> {
    let mut peer = server.connect();
    peer.ask(1);
    // Until the server has closed it: on a busy machine it would otherwise be taken for a part of the rest.
    peer.half_close();
    peer.read_to_end();
    Ok(())
}

/// Four fresh clients, connected at once, get exact bytes.
fn not_serving(server: &Server) -> Result<(), String> {
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(crate::Peer::try_connect(server.addr).map_err(|e| format!("a fresh client cannot connect: {e}"))?);
    }
    for (peer, n) in peers.drain(..).zip([1, 26, 3000, 40_000]) {
        let mut peer = peer;
        peer.try_ask(n).map_err(|e| format!("a fresh client is not served: {e}"))?;
    }
    Ok(())
}

/// Processes, threads and descriptors are back to what they were, and nobody is a zombie.
fn not_at_rest(server: &mut Server, base: &Baseline) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if server.exited().is_some() {
            return Err("the server ended".to_owned());
        }
        let zombies = server.family().iter().filter(|proc| proc.state == 'Z').count();
        let now = Rest::of(server);
        if now == base.rest && zombies == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(difference(&base.rest, &now, zombies));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn difference(base: &Rest, now: &Rest, zombies: usize) -> String {
    let mut parts = Vec::new();
    if zombies > 0 {
        parts.push(format!("{zombies} zombies"));
    }
    if now.processes != base.processes {
        parts.push(format!("processes {} -> {}", base.processes, now.processes));
    }
    if now.threads != base.threads {
        parts.push(format!("threads {} -> {}", base.threads, now.threads));
    }
    if now.descriptors != base.descriptors {
        let count = |all: &[Vec<String>]| {
            let mut kinds = BTreeMap::new();
            all.iter().flatten().for_each(|kind| *kinds.entry(kind.clone()).or_insert(0) += 1);
            kinds
        };
        parts.push(format!("descriptors {:?} -> {:?}", count(&base.descriptors), count(&now.descriptors)));
    }
    format!("not back at rest: {}", parts.join(", "))
}

/// Descriptors above 2 that an execve would hand on.
fn inheritable(pid: i32) -> Vec<String> {
    let open = procs::descriptors(pid);
    let open = open.iter().filter(|(fd, _)| **fd > 2 && procs::is_cloexec(pid, **fd) == Some(false));
    open.map(|(fd, target)| format!("descriptor {fd} ({target}) of process {pid} has no close-on-exec")).collect()
}

fn busy_when_idle(server: &Server) -> Result<(), String> {
    let cpu = || server.family().iter().map(|proc| procs::cpu_ns(proc.pid)).sum::<u64>();
    let (start, before) = (Instant::now(), cpu());
    thread::sleep(IDLE_SAMPLE);
    let share = cpu().saturating_sub(before) as f64 / start.elapsed().as_nanos() as f64;
    if share > IDLE_CPU {
        return Err(format!("uses {:.0} % of a CPU with nothing to do", share * 100.0));
    }
    Ok(())
}

fn ugly_log(log: &str) -> Vec<String> {
    let ugly =
        |line: &&str| ["ALERT", "panicked", "stack backtrace", "RUST_BACKTRACE"].iter().any(|word| line.contains(word));
    log.lines().filter(ugly).map(|line| format!("in the log: {line}")).collect()
}

/// Anonymous memory of the whole family, in bytes.
pub fn memory(server: &Server) -> u64 {
    server.family().iter().map(|proc| procs::anonymous_bytes(proc.pid)).sum()
}

/// Checks, stops and checks the stop; panics with everything that was wrong.
pub fn finish(mut server: Server, base: &Baseline) {
    let faults = faults(&mut server, base);
    assert!(faults.is_empty(), "{}", faults.join("; "));
    server.stop().unwrap_or_else(|fault| panic!("{fault}"));
    let ugly = ugly_log(&server.log());
    assert!(ugly.is_empty(), "{ugly:?}");
}
