//! TCP pre-forked server: a pool of child processes, all blocked in accept on one listener.
//!
//! Run: cargo run -p server03-prefork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02c-mio
//! Next: server03a-distribution
//! Diff base: server01-fork
//! Overload: queue (in the listener's backlog, until a worker is done with its client)

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen, Pool};
use common::report::{Failed, Log};
use common::service::serve;
use common::sock::{Backoff, listen};
use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use socket2::Socket;

const BACKLOG: i32 = 1024;
/// A dead worker is replaced at once; the second and later ones in the same place after this, doubling ...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ... to this, until one has lived for a while.
const PAUSE_MOST: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails so soon is not unlucky: what it needs is not there. So many of them in `SETTLED` end the server.
const AT_START: Duration = Duration::from_secs(1);
const FAILURES: usize = 5;

/// TCP pre-forked server: a pool of child processes, all blocked in accept
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// The descriptor a child is serving from, while it has a client.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
/// A child's own copy of the listener.
static LISTENER: AtomicI32 = AtomicI32::new(-1);
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
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal(Signal::SIGCHLD, wake)?;
    on_signal(Signal::SIGTERM, stop)?;
    on_signal(Signal::SIGINT, stop)?;
    // In the parent they are taken in ppoll and nowhere else, so none is missed between a look and a sleep.
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]).thread_block().context("sigprocmask")?;

    let listener = listen(&args.listen, BACKLOG)?;
    let (parent, now) = (getpid(), Instant::now());
    let mut pool = vec![Worker { pid: None, born: now, due: now, pause: Duration::ZERO }; args.pool.workers.into()];
    let mut failures = Vec::new();
    while STOPS.load(SeqCst) == 0 && failures.len() < FAILURES {
        for worker in pool.iter_mut().filter(|worker| worker.pid.is_none() && worker.due <= Instant::now()) {
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(&listener, parent, &args),
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
    }

    let gives_up = STOPS.load(SeqCst) == 0;
    end_children(&mut pool, &listener, &args);
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

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: &Socket, parent: Pid, args: &Args) -> ! {
    LISTENER.store(listener.as_raw_fd(), SeqCst);
    let _ = set_pdeathsig(Signal::SIGKILL);
    // Unblocked only now: a SIGTERM before the store would have found nothing to close.
    let _ = SigSet::all().thread_unblock();
    // A parent that died before the prctl has sent no signal: stop at once.
    STOPS.fetch_add((getppid() != parent).into(), SeqCst);
    // A panic must not unwind into the parent's loop either.
    let outcome = catch_unwind(AssertUnwindSafe(|| serve_clients(listener, args)));
    if let Ok(Err(failed)) = &outcome {
        args.log.repeated("Error:", &format!("{failed:?}; this worker ends"));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit((!matches!(outcome, Ok(Ok(())))).into()) }
}

/// The iterative server's loop, in every worker. All of them sleep in accept; a connection wakes one.
fn serve_clients(listener: &Socket, args: &Args) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    while STOPS.load(SeqCst) == 0 {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has closed the listener: EINTR if accept was asleep, EBADF if it had not begun.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
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

/// In a child: gives up its copy of the listener and ends its client's reading; what was received is still answered.
/// The others' copies stay open, so a stop of one worker is no stop of the pool. In the parent both numbers are -1,
/// and only the count counts.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: close is async-signal-safe; the swap makes sure that this number is closed once.
    unsafe { libc::close(LISTENER.swap(-1, SeqCst)) };
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// SIGCHLD: with a handler it interrupts ppoll, and without one it would be ignored.
extern "C" fn wake(_: libc::c_int) {}
