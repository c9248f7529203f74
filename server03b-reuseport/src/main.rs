//! TCP pre-forked event-driven server: an epoll loop in every child, and a listener of its own for each, SO_REUSEPORT.
//!
//! Run: cargo run -p server03b-reuseport
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03a-distribution
//! Next: server04-fdpass
//! Diff base: server03-prefork
//! Overload: refuse (beyond --max-conns of the whole pool `ERR busy` and no more)
//!
//! The pool and its supervisor are server03-prefork's. The loop of each child, server02b-epoll's level-triggered one, is
//! in event_loop.rs; what the children know of one another is in board.rs.

mod board;
mod event_loop;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context;
use board::Place;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{self, Failed, Log};
use nix::poll::ppoll;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are not for clients: the dead ends, the standard streams, the listener, the signals.
const RESERVE: u64 = 32;
/// A dead worker is replaced at once; the second and later ones in the same place after this, doubling ...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ... to this, until one has lived for a while.
const PAUSE_MOST: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails so soon is not unlucky: what it needs is not there. So many of them in `SETTLED` end the server.
const AT_START: Duration = Duration::from_secs(1);
const FAILURES: usize = 5;

/// TCP pre-forked event-driven server: an epoll loop and a listener for every child, SO_REUSEPORT
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    /// Workers, each with a listener and an event loop [default: one for each CPU that it may use]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    #[command(flatten)]
    limits: Limits,
    /// Clients at once, of all workers together [default: 10000, or what the hard limit of descriptors leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_conns: Option<u64>,
    #[command(flatten)]
    log: Log,
}

static STOPS: AtomicU32 = AtomicU32::new(0);

/// A place in the pool.
#[derive(Clone, Copy)]
struct Worker {
    /// None: the place is vacant until `due`.
    pid: Option<Pid>,
    born: Instant,
    due: Instant,
    /// How long the place stays vacant the next time.
    pause: Duration,
    /// What the worker counts, and its successors.
    place: &'static Place,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal(Signal::SIGCHLD, wake)?;
    on_signal(Signal::SIGTERM, stop)?;
    on_signal(Signal::SIGINT, stop)?;
    // In the parent they are taken in ppoll and nowhere else, so none is missed between a look and a sleep.
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]).thread_block().context("sigprocmask")?;
    let max_conns = max_conns(args.max_conns)?;
    // A loop never waits for a client, so a second one on the same CPU has nothing to add but context switches.
    let workers = args.workers.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from);
    let places = board::shared_places(workers).context("mmap")?;

    let placeholder = take_port(&args.listen)?;
    // All of them before the ready line: from then on there is a queue wherever the hash points.
    let mut listeners = places.iter().map(|_| share_port(&placeholder)).collect::<Result<Vec<_>, _>>()?;
    report::ready(&placeholder);
    let (parent, now) = (getpid(), Instant::now());
    let vacant = |place| Worker { pid: None, born: now, due: now, pause: Duration::ZERO, place };
    let mut pool: Vec<Worker> = places.iter().map(vacant).collect();
    let mut failures = Vec::new();
    while STOPS.load(SeqCst) == 0 && failures.len() < FAILURES {
        for worker in pool.iter_mut().filter(|worker| worker.pid.is_none() && worker.due <= Instant::now()) {
            let listener = match listeners.pop().map_or_else(|| share_port(&placeholder), Ok) {
                Ok(listener) => listener,
                Err(failed) => {
                    args.log.repeated("WARN", &format!("{failed:?}"));
                    worker.vacate();
                    continue;
                }
            };
            let crew = event_loop::Crew { places, me: worker.place, max_conns };
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(listener, (placeholder, listeners), crew, parent, &args),
                Ok(ForkResult::Parent { child }) => {
                    (worker.pid, worker.born) = (Some(child), Instant::now());
                    drop(listener); // close: the only copy is the worker's now, and the queue ends with it
                }
                Err(e) => {
                    args.log.repeated("WARN", &format!("fork: {e}"));
                    worker.vacate();
                    listeners.push(listener); // clients may wait in its queue
                }
            }
        }
        let patience = pool.iter().any(|worker| worker.pid.is_none()).then_some(PAUSE_FIRST.into());
        // The parent accepts nobody. It sleeps until a child ends, a vacant place may be due, or a stop is asked for.
        let _ = ppoll(&mut [], patience, Some(SigSet::empty()));
        reap_children(&mut pool, &mut failures, &args.log);
    }

    let gives_up = STOPS.load(SeqCst) == 0;
    listeners.clear(); // close: those whose worker could not be forked
    end_children(&mut pool, &args);
    board::print(places);
    args.log.cpu_time();
    if gives_up {
        return Err(Failed::new(format!("{FAILURES} workers failed at their start within {SETTLED:?}")));
    }
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping ppoll returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// How many clients at once. The soft limit of descriptors is low for the sake of programs that use select, and any
/// process may raise its own to the hard one. The hash promises no worker less than all of them.
fn max_conns(wanted: Option<u64>) -> Result<u64, Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?;
    let most = hard.saturating_sub(RESERVE);
    match wanted.unwrap_or(MAX_CONNS.min(most)) {
        n if (1..=most).contains(&n) => Ok(n),
        n => {
            Err(Failed::new(format!("--max-conns {n}: the hard limit of {hard} descriptors leaves {most} for clients")))
        }
    }
}

/// Binds the port and never listens: it fixes the number where the kernel chooses it, and keeps strangers out, even while
/// no worker lives.
fn take_port(at: &Listen) -> Result<Socket, Failed> {
    // Without SO_REUSEPORT, so that it fails where a server runs already. With it a second server of the same user would
    // get a share of the first one's clients.
    let placeholder = bound(at.addr()?, false)?;
    // Of two servers that start at the same moment both may get here, but only one of them can listen.
    let first = bound(addr_of(&placeholder)?, false)?;
    first.listen(BACKLOG).context("listen: another server starts here")?;
    // Its work with connections in TIME_WAIT is done; from here on it would let in who also has the option.
    placeholder.set_reuse_address(false).context("setsockopt SO_REUSEADDR")?;
    // Now the workers' listeners may come beside it, and those of nobody who asks without SO_REUSEPORT.
    placeholder.set_reuse_port(true).context("setsockopt SO_REUSEPORT")?;
    Ok(placeholder)
}

/// One more listener on the port. Each has a queue of its own, and the kernel chooses one by a hash of the addresses and
/// ports, whether or not anybody has time for it.
fn share_port(placeholder: &Socket) -> Result<Socket, Failed> {
    let listener = bound(addr_of(placeholder)?, true)?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.listen(BACKLOG).context("listen")?;
    Ok(listener)
}

/// A socket at this address. SO_REUSEPORT counts at bind: every socket that is there already must have it too.
fn bound(addr: SocketAddr, reuse_port: bool) -> Result<Socket, Failed> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    socket.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    socket.set_reuse_port(reuse_port).context("setsockopt SO_REUSEPORT")?;
    socket.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    Ok(socket)
}

fn addr_of(socket: &Socket) -> Result<SocketAddr, Failed> {
    let addr = socket.local_addr().context("getsockname")?;
    Ok(addr.as_socket().context("getsockname: no address of the internet")?)
}

impl Worker {
    /// Leaves the place vacant for a while: no time at all the first time, so that a worker that was killed is hardly
    /// missed, and longer each time while its workers keep dying young.
    fn vacate(&mut self) {
        let now = Instant::now();
        if self.pid.take().is_some() && now.duration_since(self.born) >= SETTLED {
            self.pause = Duration::ZERO;
        }
        self.due = now + self.pause;
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MOST);
    }
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: Socket, others: (Socket, Vec<Socket>), crew: event_loop::Crew, parent: Pid, args: &Args) -> ! {
    // A copy of another worker's listener would keep that queue alive after its worker, with nobody to take from it.
    drop(others);
    let _ = set_pdeathsig(Signal::SIGKILL);
    // SIGTERM and SIGINT stay blocked: the loop takes them from a descriptor.
    let _ = SigSet::from(Signal::SIGCHLD).thread_unblock();
    // A panic must not unwind into the parent's loop either.
    let outcome = catch_unwind(AssertUnwindSafe(|| match getppid() == parent {
        true => event_loop::serve_clients(listener, crew, args),
        // A parent that died before the prctl has sent no signal: stop at once.
        false => Ok(()),
    }));
    if let Ok(Err(failed)) = &outcome {
        args.log.repeated("Error:", &format!("{failed:?}; this worker ends"));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit((!matches!(outcome, Ok(Ok(())))).into()) }
}

/// Reaps the children that have ended and leaves their places vacant. A loop, since signals do not queue: children that
/// end together may send one SIGCHLD. WNOHANG, since others live on.
fn reap_children(pool: &mut [Worker], failures: &mut Vec<Instant>, log: &Log) {
    while let Some((pid, status)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|s| Some((s.pid()?, s))) {
        // Exit 0 follows a SIGTERM, and SIGKILL comes from outside: neither is the worker's own failure.
        let told = matches!(status, WaitStatus::Exited(_, 0));
        let failed = !told && !matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        for worker in pool.iter_mut().filter(|worker| worker.pid == Some(pid)) {
            if failed && worker.born.elapsed() < AT_START {
                failures.push(Instant::now());
            }
            if !told {
                log.warn(&format!("worker {pid} ended: {status:?}"));
            }
            worker.place.release_all();
            worker.vacate();
        }
    }
    failures.retain(|failure| failure.elapsed() < SETTLED);
}

/// Asks every child to finish, and kills those that have not when the grace is over or a second signal comes. Each closes
/// its own listener, and new clients are refused when the last one has.
fn end_children(pool: &mut [Worker], args: &Args) {
    // A pid in the pool is a child of ours and not reaped, so it is no stranger.
    let tell = |pool: &[Worker], signal| {
        for pid in pool.iter().filter_map(|worker| worker.pid) {
            let _ = kill(pid, signal);
        }
    };
    tell(pool, Signal::SIGTERM);
    let end = Instant::now() + Duration::from_millis(args.limits.grace);
    while pool.iter().any(|worker| worker.pid.is_some()) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || STOPS.load(SeqCst) > 1 {
            tell(pool, Signal::SIGKILL);
        }
        let _ = ppoll(&mut [], Some(left.max(Duration::from_millis(10)).into()), Some(SigSet::empty()));
        reap_children(pool, &mut Vec::new(), &args.log);
    }
}

/// In the parent only: a child has both signals blocked, and reads them.
extern "C" fn stop(_: libc::c_int) {
    STOPS.fetch_add(1, SeqCst);
}

/// SIGCHLD: with a handler it interrupts ppoll, and without one it would be ignored.
extern "C" fn wake(_: libc::c_int) {}
