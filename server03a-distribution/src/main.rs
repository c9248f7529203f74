//! TCP pre-forked server, the instrument: who gets a connection, and who is woken for nothing.
//!
//! Run: cargo run -p server03a-distribution -- --wait epoll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03-prefork
//! Next: server03b-reuseport
//! Diff base: server03-prefork
//! Overload: queue (in the listener's backlog, until a worker is done with its client)

mod tally;

use std::fs::File;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::cli::{Limits, Listen, Pool};
use common::report::{Failed, Log};
use common::service::serve;
use common::sock::{Backoff, listen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use socket2::Socket;
use tally::{Board, Tally, switches};

const BACKLOG: i32 = 1024;
/// A dead worker is replaced at once; the second and later ones in the same place after this, doubling ...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ... to this, until one has lived for a while.
const PAUSE_MOST: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails so soon is not unlucky: what it needs is not there. So many of them in `SETTLED` end the server.
const AT_START: Duration = Duration::from_secs(1);
const FAILURES: usize = 5;

/// TCP pre-forked server, the instrument: who gets a connection, and who is woken for nothing
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    /// How a worker waits for a connection
    #[arg(long, value_enum, default_value_t = Wait::Accept, value_name = "HOW")]
    wait: Wait,
    /// Edge-triggered: with epoll, exclusive and shared
    #[arg(long)]
    edge: bool,
    /// Work on each connection for so long, asleep, before serving it
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    busy: u64,
    /// On SIGUSR1 and at the end print one line of JSON to stdout instead of the table to stderr
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Wait {
    /// Blocked in accept
    Accept,
    /// In select, then accept
    Select,
    /// In poll, then accept
    Poll,
    /// In epoll_wait on an epoll of its own, then accept
    Epoll,
    /// The same, registered with EPOLLEXCLUSIVE
    Exclusive,
    /// In epoll_wait on one epoll that all share
    Shared,
    /// In flock, then blocked in accept: one at a time
    Flock,
}

/// The descriptor a child is serving from, while it has a client.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
/// A child's own copy of the listener.
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// A child's epoll, where it has one.
static EPOLL: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// A place in the pool.
#[derive(Clone, Copy)]
struct Worker {
    /// None: the place is vacant until `due`.
    pid: Option<Pid>,
    born: Instant,
    due: Instant,
    /// How long the place stays vacant the next time.
    pause: Duration,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal(Signal::SIGCHLD, wake)?;
    on_signal(Signal::SIGTERM, stop)?;
    on_signal(Signal::SIGINT, stop)?;
    on_signal(Signal::SIGUSR1, report)?;
    // In the parent they are taken in ppoll and nowhere else, so none is missed between a look and a sleep.
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1])
        .thread_block()
        .context("sigprocmask")?;

    let listener = listen(&args.listen, BACKLOG)?;
    // Before the first fork: the mapping, the epoll and the lock file are the family's.
    let board = Board::new().context("mmap")?;
    let shared = Shared::new(args.wait, &listener, args.edge)?;
    let (parent, now) = (getpid(), Instant::now());
    let mut pool = vec![Worker { pid: None, born: now, due: now, pause: Duration::ZERO }; args.pool.workers.into()];
    let mut failures = Vec::new();
    while STOPS.load(SeqCst) == 0 && failures.len() < FAILURES {
        let vacant = |worker: &Worker| worker.pid.is_none() && worker.due <= Instant::now();
        for (worker, tally) in pool.iter_mut().zip(&board.workers).filter(|(worker, _)| vacant(worker)) {
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(&listener, &shared, (board, tally), parent, &args),
                Ok(ForkResult::Parent { child }) => (worker.pid, worker.born) = (Some(child), Instant::now()),
                Err(e) => {
                    args.log.repeated("WARN", &format!("fork: {e}"));
                    worker.vacate();
                }
            }
        }
        let patience = pool.iter().any(|worker| worker.pid.is_none()).then_some(PAUSE_FIRST.into());
        // The parent accepts nobody. It sleeps until a child ends, a vacant place may be due, or a stop is asked for.
        let _ = ppoll(&mut [], patience, Some(SigSet::empty()));
        reap_children(&mut pool, &mut failures, &args.log);
        if REPORTS.swap(0, SeqCst) > 0 {
            board.print(&args, pool.iter().map(|worker| worker.pid));
        }
    }

    let gives_up = STOPS.load(SeqCst) == 0;
    end_children(&mut pool, &listener, &args);
    board.print(&args, pool.iter().map(|worker| worker.pid));
    args.log.cpu_time();
    if gives_up {
        return Err(Failed::new(format!("{FAILURES} workers failed at their start within {SETTLED:?}")));
    }
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
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

/// What the children inherit to wait with, besides the listener.
struct Shared {
    epoll: Option<Epoll>,
    lock: Option<OwnedFd>,
}

impl Shared {
    fn new(wait: Wait, listener: &Socket, edge: bool) -> Result<Shared, Failed> {
        // Whoever is told that a connection is there may find that another one was quicker: accept must not sleep then.
        listener.set_nonblocking(!matches!(wait, Wait::Accept | Wait::Flock)).context("fcntl O_NONBLOCK")?;
        Ok(Shared {
            epoll: if wait == Wait::Shared { Some(watch(listener, edge, EpollFlags::empty())?) } else { None },
            lock: if wait == Wait::Flock {
                Some(memfd_create("lock", MFdFlags::MFD_CLOEXEC).context("memfd")?)
            } else {
                None
            },
        })
    }
}

/// An epoll that watches the listener.
fn watch(listener: &Socket, edge: bool, more: EpollFlags) -> Result<Epoll, Failed> {
    let edge = if edge { EpollFlags::EPOLLET } else { EpollFlags::empty() };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | edge | more, 0)).context("epoll_ctl")?;
    Ok(epoll)
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: &Socket, shared: &Shared, (board, tally): (&Board, &Tally), parent: Pid, args: &Args) -> ! {
    LISTENER.store(listener.as_raw_fd(), SeqCst);
    let waiter = Waiter::new(listener, shared, args);
    let _ = set_pdeathsig(Signal::SIGKILL);
    // Unblocked only now: a SIGTERM before the store would have found nothing to close.
    let _ = SigSet::all().thread_unblock();
    // A parent that died before the prctl has sent no signal: stop at once.
    STOPS.fetch_add((getppid() != parent).into(), SeqCst);
    // A panic must not unwind into the parent's loop either.
    let outcome = catch_unwind(AssertUnwindSafe(|| match &waiter {
        Ok(waiter) => serve_clients(listener, waiter, (board, tally), args),
        Err(failed) => Err(Failed::new(format!("{failed:?}"))),
    }));
    if let Ok(Err(failed)) = &outcome {
        args.log.repeated("Error:", &format!("{failed:?}; this worker ends"));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit((!matches!(outcome, Ok(Ok(())))).into()) }
}

/// What one child waits with.
enum Waiter {
    Accept,
    Select,
    Poll,
    Epoll(Epoll),
    Flock(File),
}

impl Waiter {
    fn new(listener: &Socket, shared: &Shared, args: &Args) -> Result<Waiter, Failed> {
        let waiter = match (args.wait, shared) {
            (Wait::Select, _) => Waiter::Select,
            (Wait::Poll, _) => Waiter::Poll,
            (Wait::Epoll, _) => Waiter::Epoll(watch(listener, args.edge, EpollFlags::empty())?),
            (Wait::Exclusive, _) => Waiter::Epoll(watch(listener, args.edge, EpollFlags::EPOLLEXCLUSIVE)?),
            (_, Shared { epoll: Some(Epoll(epoll)), .. }) => Waiter::Epoll(Epoll(epoll.try_clone().context("dup")?)),
            // Opened anew: flock locks belong to the open file description, and an inherited one is everybody's.
            (_, Shared { lock: Some(lock), .. }) => {
                Waiter::Flock(File::open(format!("/proc/self/fd/{}", lock.as_raw_fd())).context("open lock")?)
            }
            _ => Waiter::Accept,
        };
        if let Waiter::Epoll(Epoll(epoll)) = &waiter {
            EPOLL.store(epoll.as_raw_fd(), SeqCst);
        }
        Ok(waiter)
    }

    /// Sleeps until a connection may be there.
    fn wait(&self, listener: &Socket) -> nix::Result<()> {
        match self {
            Waiter::Accept => Ok(()),
            Waiter::Select => {
                let mut readable = FdSet::new();
                readable.insert(listener.as_fd());
                select(None, &mut readable, None, None, None).map(drop)
            }
            Waiter::Poll => poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).map(drop),
            Waiter::Epoll(epoll) => epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE).map(drop),
            Waiter::Flock(lock) => flock(lock, libc::LOCK_EX),
        }
    }

    /// EPOLL_CTL_MOD looks anew: if connections are still queued, that is an edge, and a sleeper is woken. An exclusive
    /// entry cannot be modified (EINVAL), and need not be: every worker has its own edges.
    fn rearm(&self, listener: &Socket) {
        if let Waiter::Epoll(epoll) = self {
            let _ = epoll.modify(listener, &mut EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0));
        }
    }
}

/// The kernel gives the lock back when its holder dies, however it dies.
fn flock(lock: &File, operation: libc::c_int) -> nix::Result<()> {
    // SAFETY: acts on an open descriptor; no memory is passed.
    Errno::result(unsafe { libc::flock(lock.as_raw_fd(), operation) }).map(drop)
}

/// The iterative server's loop, in every worker. How it sleeps decides who else is woken.
fn serve_clients(
    listener: &Socket,
    waiter: &Waiter,
    (board, tally): (&Board, &Tally),
    args: &Args,
) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    // Edge-triggered: an edge may stand for several connections, so there may be more until accept says EAGAIN. And a
    // worker that now has a client must not be the only one that knows.
    let mut more = false;
    while STOPS.load(SeqCst) == 0 {
        let before = switches();
        tally.sleeps(before);
        let waited = if more { Ok(()) } else { waiter.wait(listener) };
        let accepted = waited.map_err(io::Error::from).and_then(|()| listener.accept());
        if let Waiter::Flock(lock) = waiter {
            let _ = flock(lock, libc::LOCK_UN);
        }
        tally.woken(switches() - before, STOPS.load(SeqCst) > 0);
        let looked_on = mem::replace(&mut more, args.edge);
        if more {
            waiter.rearm(listener);
        }
        let (mut conn, peer) = match accepted {
            Ok(accepted) => accepted,
            // The handler has closed the listener and the epoll: EINTR if the wait was asleep, EBADF if it had not begun.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // Woken for nothing: another worker was quicker.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                tally.wasted.fetch_add((!looked_on).into(), SeqCst);
                more = false;
                continue;
            }
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        STOP_FD.store(conn.as_raw_fd(), SeqCst);
        // A stop before the store did not find this client: what it has sent by now is still answered.
        if STOPS.load(SeqCst) > 0 {
            let _ = conn.shutdown(Shutdown::Read);
        }
        board.accepted(tally);
        thread::sleep(Duration::from_millis(args.busy));
        args.log.client(&peer, &serve(&mut conn, &args.limits));
        STOP_FD.store(-1, SeqCst);
        drop(conn); // close: the client sees the end of the stream
    }
    Ok(())
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
            worker.vacate();
        }
    }
    failures.retain(|failure| failure.elapsed() < SETTLED);
}

/// Asks every child to finish, and kills those that have not when the grace is over or a second signal comes.
fn end_children(pool: &mut [Worker], listener: &Socket, args: &Args) {
    // A pid in the pool is a child of ours and not reaped, so it is no stranger.
    let tell = |pool: &[Worker], signal| {
        for pid in pool.iter().filter_map(|worker| worker.pid) {
            let _ = kill(pid, signal);
        }
    };
    tell(pool, Signal::SIGTERM);
    // From here on clients are refused: shutdown acts on the socket that all share, where close gives up one's own copy.
    // After the signals, so that a worker whose accept it ends knows why.
    let _ = listener.shutdown(Shutdown::Read);
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

/// In a child: gives up its copies of the listener and the epoll and ends its client's reading; what was received is still answered.
/// The others' copies stay open, so a stop of one worker is no stop of the pool. In the parent the numbers are -1,
/// and only the count counts.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: close is async-signal-safe; the swap makes sure that this number is closed once.
    unsafe { libc::close(LISTENER.swap(-1, SeqCst)) };
    // SAFETY: as above. An epoll would go on watching the socket, which the others keep open.
    unsafe { libc::close(EPOLL.swap(-1, SeqCst)) };
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// SIGCHLD: with a handler it interrupts ppoll, and without one it would be ignored.
extern "C" fn wake(_: libc::c_int) {}

/// SIGUSR1: the parent's loop prints when it is awake.
extern "C" fn report(_: libc::c_int) {
    REPORTS.fetch_add(1, SeqCst);
}
