//! Seven ways for the workers of a pool to wait for a connection, one function each. A worker that
//! waits in select, poll or epoll_wait learns that a connection is there; another worker may accept
//! it first, so the listener is non-blocking, and accept then returns EAGAIN.

use std::fs::File;
use std::io::{self, ErrorKind::WouldBlock};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Context;
use common::report::Failed;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::select::{FdSet, select};
use socket2::{SockAddr, Socket};

use crate::options::{Options, Way};

type Accepted = io::Result<(Socket, SockAddr)>;

/// What a worker waits with.
pub enum Waiter {
    Accept,
    Select,
    Poll,
    Epoll(Epoll, Edge),
    Flock(OwnedFd),
}

/// Edge-triggered: one event can stand for several connections. Some(true): accept has to be called
/// until it returns EAGAIN, because epoll_wait does not report them again. None: level-triggered.
type Edge = Option<bool>;

impl Waiter {
    /// The parent calls this before the first fork: all workers share the lock, or the epoll
    /// instance.
    pub fn in_parent(options: Options, listener: &Socket) -> Result<Waiter, Failed> {
        let blocks_in_accept = matches!(options.way, Way::Accept | Way::Flock);
        listener.set_nonblocking(!blocks_in_accept).context("fcntl O_NONBLOCK")?;
        let lock_file = || memfd_create("lock", MFdFlags::MFD_CLOEXEC).context("memfd_create");
        Ok(match options.way {
            Way::Select => Waiter::Select,
            Way::Poll => Waiter::Poll,
            Way::Shared => Waiter::epoll(options, listener)?,
            Way::Flock => Waiter::Flock(lock_file()?),
            Way::Accept | Way::Epoll | Way::Exclusive => Waiter::Accept,
        })
    }

    /// A worker calls this after fork: it makes its own epoll instance, or opens the lock file
    /// again, because a lock of flock(2) belongs to the open file description, which fork shares.
    pub fn in_child(self, options: Options, listener: &Socket) -> Result<Waiter, Failed> {
        match (options.way, self) {
            (Way::Epoll | Way::Exclusive, _) => Waiter::epoll(options, listener),
            (_, Waiter::Flock(lock)) => {
                let lock = File::open(format!("/proc/self/fd/{}", lock.as_raw_fd()));
                Ok(Waiter::Flock(lock.context("open")?.into()))
            }
            (_, waiter) => Ok(waiter),
        }
    }

    /// An epoll instance that watches the listener.
    fn epoll(options: Options, listener: &Socket) -> Result<Waiter, Failed> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLET, options.edge);
        flags.set(EpollFlags::EPOLLEXCLUSIVE, options.way == Way::Exclusive);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        epoll.add(listener, EpollEvent::new(flags, 0)).context("epoll_ctl")?;
        Ok(Waiter::Epoll(epoll, options.edge.then_some(false)))
    }

    /// Waits for a connection, and accepts it. WouldBlock: another worker has accepted it.
    pub fn accept(&mut self, listener: &Socket) -> Accepted {
        match self {
            Waiter::Accept => listener.accept(),
            Waiter::Select => select_then_accept(listener),
            Waiter::Poll => poll_then_accept(listener),
            Waiter::Epoll(epoll, None) => epoll_then_accept(epoll, listener),
            Waiter::Epoll(epoll, Some(has_more)) => edge_then_accept(epoll, listener, has_more),
            Waiter::Flock(lock) => lock_then_accept(lock, listener),
        }
    }
}

fn select_then_accept(listener: &Socket) -> Accepted {
    let mut readable = FdSet::new();
    readable.insert(listener.as_fd());
    select(None, &mut readable, None, None, None)?;
    listener.accept()
}

fn poll_then_accept(listener: &Socket) -> Accepted {
    poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    listener.accept()
}

fn epoll_then_accept(epoll: &Epoll, listener: &Socket) -> Accepted {
    epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)?;
    listener.accept()
}

/// While this worker serves its client, another one has to accept the other connections.
/// EPOLL_CTL_MOD checks the listener again: if connections are queued, it wakes the next worker. An
/// exclusive entry cannot be modified (EINVAL); there each worker has its own events.
fn edge_then_accept(epoll: &Epoll, listener: &Socket, has_more: &mut bool) -> Accepted {
    let mut accepted = if *has_more { listener.accept() } else { Err(WouldBlock.into()) };
    if matches!(&accepted, Err(e) if e.kind() == WouldBlock) {
        *has_more = false;
        accepted = epoll_then_accept(epoll, listener);
    }
    if accepted.is_ok() {
        *has_more = true;
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        let _ = epoll.modify(listener, &mut event);
    }
    accepted
}

/// Only the worker that holds the lock is in accept. The kernel releases the lock of a dead worker.
fn lock_then_accept(lock: &OwnedFd, listener: &Socket) -> Accepted {
    // SAFETY: acts on an open descriptor; no memory is passed.
    Errno::result(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) })?;
    let accepted = listener.accept();
    // SAFETY: as above.
    unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_UN) };
    accepted
}
