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
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::cli::Pool;
use common::report::Failed;
use lifecycle::{Server, Supervisor, begin_child, end_child, on_signal, shutdown};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use socket2::Socket;
use tally::{Board, Tally, switches};

/// TCP pre-forked server, the instrument: who gets a connection, and who is woken for nothing
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
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

/// How many times SIGUSR1 has arrived.
static REPORTS: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let mut pool = Supervisor::new(args.pool.workers, &args.server)?;
    // Like the signals of the supervisor, it is taken in `sleep` only.
    on_signal(Signal::SIGUSR1, report)?;
    SigSet::from(Signal::SIGUSR1).thread_block().context("sigprocmask")?;
    let listener = args.server.listen()?;
    // Before the first fork: the workers share the mapping, the epoll and the lock file.
    let board = Board::new().context("mmap")?;
    let shared = Shared::new(args.wait, &listener, args.edge)?;

    while pool.is_running() {
        while pool.needs_worker() {
            let Some(tally) = pool.of_empty_slots(&board.workers).next() else { break };
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(&listener, &shared, (board, tally), &args),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        pool.ready(&listener);
        // The parent accepts no client. It sleeps until a worker ends and has to be replaced.
        pool.sleep(&mut []);
        if REPORTS.swap(0, SeqCst) > 0 {
            board.print(&args, pool.workers());
        }
    }

    // First the signals: a worker whose accept the next call ends must know why.
    pool.terminate();
    // Ends every accept, and refuses new clients: shutdown acts on the socket that all the processes share.
    let _ = listener.shutdown(Shutdown::Read);
    let outcome = pool.wait();
    board.print(&args, (0..args.pool.workers).map(|_| None));
    args.server.log.cpu_time();
    outcome
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
fn child(listener: &Socket, shared: &Shared, (board, tally): (&Board, &Tally), args: &Args) -> ! {
    begin_child();
    let waiter = Waiter::new(listener, shared, args);
    end_child(waiter.and_then(|waiter| serve_clients(listener, &waiter, (board, tally), args)), &args.server.log)
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
        Ok(match (args.wait, shared) {
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
        })
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
    // Edge-triggered: an edge may stand for several connections, so there may be more until accept says EAGAIN. And a
    // worker that now has a client must not be the only one that knows.
    let mut more = false;
    while !shutdown::requested() {
        let before = switches();
        tally.sleeps(before);
        let waited = if more { Ok(()) } else { waiter.wait(listener) };
        let accepted = waited.map_err(io::Error::from).and_then(|()| listener.accept());
        if let Waiter::Flock(lock) = waiter {
            let _ = flock(lock, libc::LOCK_UN);
        }
        tally.woken(switches() - before, shutdown::requested());
        let looked_on = mem::replace(&mut more, args.edge);
        if more {
            waiter.rearm(listener);
        }
        let (mut conn, peer) = match accepted {
            Ok(accepted) => accepted,
            // EINTR if this worker got the signal while it slept, EINVAL if the parent has shut the listener down.
            Err(_) if shutdown::requested() => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // Woken for nothing: another worker was quicker.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                tally.wasted.fetch_add((!looked_on).into(), SeqCst);
                more = false;
                continue;
            }
            Err(e) => {
                args.server.accept_failed(&e)?;
                continue;
            }
        };
        board.accepted(tally);
        thread::sleep(Duration::from_millis(args.busy));
        args.server.serve(&mut conn, &peer);
        drop(conn); // close: the client sees the end of the stream
    }
    Ok(())
}

/// SIGUSR1: the parent's loop prints when it is awake.
extern "C" fn report(_: libc::c_int) {
    REPORTS.fetch_add(1, SeqCst);
}
