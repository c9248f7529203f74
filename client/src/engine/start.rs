//! Start and end of a run: its threads, and what they have counted put together.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::unistd::Pid;

use super::crew::{self, Crew, Lookout, Mark};
use super::{Engine, Observer, mob, resolve, ring};
use crate::failure::CouldNotRun;
use crate::limits::{self, Cpu};
use crate::machine::Machine;
use crate::misbehave::Fates;
use crate::plan::{EngineKind, MOST_THREADS, Plan};
use crate::random::Random;
use crate::report::{Ended, Report, Requests, Steady};
use crate::source::Route;
use crate::stats::Tally;

/// Between two looks whether to stop.
const GLANCE: Duration = Duration::from_millis(10);

/// What became of one thread.
struct Part {
    tally: Tally,
    ended: Ended,
    ended_at: u64,
    addr: SocketAddr,
    cpu: Cpu,
}

/// Does what the plan says, and returns when it is done, at the latest when every timeout has passed.
///
/// # Errors
/// [`CouldNotRun`] if nothing could be tried: a plan with a zero in it, no address, too few descriptors, or a first
/// connection that fails at every address. Whatever goes wrong later is in the report.
pub fn run(plan: &Plan, observer: &mut dyn Observer) -> Result<Report, CouldNotRun> {
    plan.check()?;
    if plan.engine == EngineKind::Fork {
        return Err(CouldNotRun::BadPlan("the engine fork begins before the first thread: only client itself can"));
    }
    let abusers = plan.misbehave.map_or(0, |misbehave| misbehave.clients);
    // A ring has closes waiting, and their descriptors are not free yet.
    let closing = if plan.engine == EngineKind::Uring { ring::CLOSES } else { 0 };
    let own = plan.threads.saturating_add(plan.threads.max(1).saturating_mul(closing));
    limits::make_room(plan.slots().saturating_add(own).saturating_add(abusers))?;
    let (addrs, more) = resolve::targets(&plan.host, plan.port)?;
    let Some(first) = addrs.first() else { return Err(system("getaddrinfo", "no address")) };
    let route = Route::new(plan, *first, more)?;
    wait_for_start(plan, observer)?;
    let (cpu, machine) = (Cpu::now(), limits::machine_cpu());
    let here = addrs.first().is_some_and(|addr| is_here(addr.ip()));
    let crew = Crew::new(plan, threads(plan, &addrs), route);
    let (parts, fates) = beside_abusers(plan, &crew, || match crew.threads {
        1 if plan.pin.is_empty() => Ok(vec![alone(plan, &crew, addrs, observer)?]),
        _ => together(plan, &crew, &addrs, observer),
    })?;
    let mut report = merge(plan, &crew, parts)?;
    report.abusers = fates;
    report.steered = crew.steered(0);
    report.steered.retain(|steer| u128::from(steer.at_ns) < report.elapsed.as_nanos());
    if !report.steered.is_empty() {
        report.judge_rate();
    }
    let end = Cpu::now();
    report.cpu = end.less(cpu);
    report.steady = crew.mark.get().and_then(|mark| steady(&report, mark, crew.start()?, end));
    let machine = limits::machine_cpu().zip(machine).filter(|_| here);
    report.honesty.others_cpu_percent = machine.map(|(now, before)| {
        let others = now.saturating_sub(before).saturating_sub(report.cpu.total());
        percent(others, report.elapsed)
    });
    report.judge();
    report.peak_memory = limits::peak_memory();
    report.machine = Some(Machine::here(report.elapsed));
    Ok(report)
}

/// Waits for the wall-clock time of the plan, so that several machines start at once.
fn wait_for_start(plan: &Plan, observer: &dyn Observer) -> Result<(), CouldNotRun> {
    let Some(at) = plan.start_at_ns else { return Ok(()) };
    let at = UNIX_EPOCH + Duration::from_nanos(at);
    let mut left = match at.duration_since(SystemTime::now()) {
        Ok(left) => left,
        Err(_) => return Err(CouldNotRun::BadPlan("the time to start at is over")),
    };
    while !left.is_zero() && !observer.stop() {
        thread::sleep(left.min(GLANCE));
        left = at.duration_since(SystemTime::now()).unwrap_or_default();
    }
    Ok(())
}

/// As many as asked for, but none without a connection; by default one beside a server on this machine, so that it
/// has the other cores, and one per core elsewhere.
fn threads(plan: &Plan, addrs: &[SocketAddr]) -> u32 {
    let cores = || thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let wanted = match plan.threads {
        _ if plan.engine == EngineKind::Threads => plan.slots(),
        0 if addrs.first().is_none_or(|addr| is_here(addr.ip())) => 1,
        0 => cores(),
        n => n,
    };
    wanted.min(plan.slots()).clamp(1, MOST_THREADS)
}

/// Whether an address is one of this machine: then a socket can be bound to it.
fn is_here(addr: IpAddr) -> bool {
    addr.is_loopback() || UdpSocket::bind((addr, 0)).is_ok()
}

/// The part of `all` that thread `thread` has.
pub fn share(all: u32, thread: usize, threads: u32) -> u32 {
    let bound = |thread: u64| u64::from(all) * thread / u64::from(threads.max(1));
    u32::try_from(bound(thread as u64 + 1) - bound(thread as u64)).unwrap_or_default()
}

/// What client `i` of a thread draws sizes from: its own numbers, so that the others do not change them.
pub fn sizes_of(plan: &Plan, thread: usize, i: usize) -> Random {
    let number = ((thread as u64) << 32) | i as u64;
    Random::new(Random::new(plan.seed ^ Random::new(number).bits()).bits())
}

/// Does the run while others misbehave, if the plan says so: what came of it, and of them.
fn beside_abusers(
    plan: &Plan,
    crew: &Crew,
    run: impl FnOnce() -> Result<Vec<Part>, CouldNotRun>,
) -> Result<(Vec<Part>, Option<Fates>), CouldNotRun> {
    let Some(misbehave) = &plan.misbehave else { return Ok((run()?, None)) };
    thread::scope(|scope| {
        let mob = thread::Builder::new().name("mob".into()).spawn_scoped(scope, || mob::run(plan, misbehave, crew));
        let mob = mob.map_err(|source| CouldNotRun::System { call: "pthread_create", source })?;
        let parts = run();
        // The mob waits for the first good connection, which may never have been made.
        crew.failed();
        crew.stop();
        let fates = mob.join().map_err(|_| system("pthread_join", "a thread of this client panicked"))?;
        Ok((parts?, Some(fates)))
    })
}

/// The whole run in the calling thread.
fn alone(plan: &Plan, crew: &Crew, addrs: Vec<SocketAddr>, observer: &mut dyn Observer) -> Result<Part, CouldNotRun> {
    let slack = prctl::get_timerslack();
    set_timer_slack(1);
    let mut lookout = Lookout::new(plan);
    let part = work(plan, crew, 0, addrs, Some((&mut lookout, &mut *observer)));
    lookout.look(crew, observer);
    if let Ok(slack) = slack {
        set_timer_slack(slack.try_into().unwrap_or_default());
    }
    part
}

/// A timeout of the kernel is otherwise up to 50 us late, for the sake of others that it could be handled with.
fn set_timer_slack(nanos: u64) {
    _ = prctl::set_timerslack(nanos);
}

/// The run in threads of its own, and the calling thread looks on.
fn together(
    plan: &Plan,
    crew: &Crew,
    addrs: &[SocketAddr],
    observer: &mut dyn Observer,
) -> Result<Vec<Part>, CouldNotRun> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for number in 0..crew.threads as usize {
            let started = thread::Builder::new().name(format!("load {number}")).spawn_scoped(scope, move || {
                set_timer_slack(1);
                pin(plan, number)?;
                work(plan, crew, number, addrs.to_vec(), None)
            });
            match started {
                Ok(thread) => running.push(thread),
                Err(source) => {
                    crew.failed();
                    crew.stop();
                    return Err(CouldNotRun::System { call: "pthread_create", source });
                }
            }
        }
        let mut lookout = Lookout::new(plan);
        // Each thread looks whether the rate is another one once in a tick.
        lookout.lead = 2 * super::nanos(crew::TICK);
        let mut next = 0;
        while !running.iter().all(|thread| thread.is_finished()) {
            if observer.stop() {
                crew.stop();
            }
            if crew.now() >= next {
                lookout.look(crew, observer);
                next = crew.now() + super::nanos(crew.tick);
            }
            thread::sleep(GLANCE);
        }
        let parts = running.into_iter().map(|thread| match thread.join() {
            Ok(part) => part,
            Err(_) => Err(system("pthread_join", "a thread of this client panicked")),
        });
        let parts: Result<_, _> = parts.collect();
        lookout.look(crew, observer);
        parts
    })
}

fn pin(plan: &Plan, number: usize) -> Result<(), CouldNotRun> {
    let Some(cpu) = plan.pin.iter().cycle().nth(number % plan.pin.len().max(1)) else { return Ok(()) };
    let mut set = CpuSet::new();
    let pinned = set.set(*cpu as usize).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| CouldNotRun::System { call: "sched_setaffinity", source: errno.into() })
}

/// One thread's part of the run.
fn work(
    plan: &Plan,
    crew: &Crew,
    number: usize,
    addrs: Vec<SocketAddr>,
    alone: Option<(&mut Lookout, &mut dyn Observer)>,
) -> Result<Part, CouldNotRun> {
    let cpu = Cpu::of_thread();
    let ran = Engine::new(plan, crew, number, addrs).and_then(|mut engine| {
        let ended = engine.run(alone)?;
        let (tally, ended_at, addr) = engine.finish();
        Ok(Part { tally, ended, ended_at, addr, cpu: Cpu::of_thread_since(cpu) })
    });
    if number == 0 {
        // The others wait for the first connection: by now it was made, or never will be.
        crew.failed();
    }
    if ran.is_err() {
        // They would go on without this thread's share.
        crew.failed();
        crew.stop();
    }
    ran
}

fn merge(plan: &Plan, crew: &Crew, parts: Vec<Part>) -> Result<Report, CouldNotRun> {
    let start = crew.start().unwrap_or_default();
    let busiest = parts.iter().map(|part| part.cpu.total()).max().unwrap_or_default();
    let ended_at = parts.iter().map(|part| part.ended_at).max().unwrap_or_default();
    let ended = parts.iter().map(|part| part.ended).max_by_key(|ended| match ended {
        Ended::Finished => 0,
        Ended::Duration => 1,
        Ended::TimedOut(_) => 2,
        Ended::ConnectsFailed(_) => 3,
        Ended::Interrupted => 4,
    });
    let mut parts = parts.into_iter();
    let (Some(first), Some(ended)) = (parts.next(), ended) else { return Err(system("run", "no thread")) };
    let mut tally = first.tally;
    parts.for_each(|part| tally.absorb(part.tally));
    for row in &mut tally.rows {
        row.first_ns = row.first_ns.saturating_sub(start);
        row.last_ns = row.last_ns.saturating_sub(start);
    }
    let elapsed = Duration::from_nanos(ended_at.saturating_sub(start));
    tally.warm_until = tally.warm_until.saturating_sub(start).min(ended_at.saturating_sub(start));
    let peak = tally.peak_open;
    let mut report = Report::new(plan, first.addr, ended, elapsed, tally, peak);
    report.honesty.client_cpu_percent = percent(busiest, elapsed);
    report.honesty.threads = crew.threads;
    Ok(report)
}

/// What belongs to the time behind the warm-up; `None` if nothing was done in it.
fn steady(report: &Report, mark: &Mark, start: u64, end: Cpu) -> Option<Steady> {
    let Requests { sent, done, .. } = report.requests;
    let (sent, done) = (sent.saturating_sub(mark.counts.sent), done.saturating_sub(mark.counts.done));
    let from_ns = mark.at.saturating_sub(start);
    (sent > 0 && done > 0).then(|| Steady { from_ns, sent, done, cpu: end.less(mark.cpu) })
}

fn percent(part: Duration, of: Duration) -> f64 {
    100.0 * part.as_secs_f64() / of.as_secs_f64().max(1e-9)
}

pub fn system(call: &'static str, why: &str) -> CouldNotRun {
    CouldNotRun::System { call, source: io::Error::other(why.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_fair_and_whole() {
        for (all, threads) in [(10, 3), (2, 4), (7, 7), (1_000_000, 16)] {
            let shares: Vec<u32> = (0..threads as usize).map(|thread| share(all, thread, threads)).collect();
            assert_eq!(shares.iter().sum::<u32>(), all);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }

    #[test]
    fn loopback_is_here_and_documentation_addresses_are_not() {
        assert!(is_here("127.0.0.1".parse().unwrap()) && is_here("::1".parse().unwrap()));
        assert!(!is_here("192.0.2.1".parse().unwrap()));
    }
}
