//! epoll: the interest list is in the kernel, and only ready descriptors are returned.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as List, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::poller::{Interest, Multiplexer, Ready, milliseconds};

/// Ready descriptors that one call returns at most. The next call returns the others.
const EVENTS: usize = 256;

pub struct Epoll {
    list: List,
    events: Vec<EpollEvent>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        let list = List::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Epoll { list, events: vec![EpollEvent::empty(); EVENTS] })
    }
}

impl Multiplexer for Epoll {
    fn change(
        &mut self,
        fd: BorrowedFd,
        token: u64,
        from: Interest,
        to: Interest,
    ) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, to.read);
        flags.set(EpollFlags::EPOLLOUT, to.write);
        let mut event = EpollEvent::new(flags, token);
        match (from, to) {
            (Interest::NONE, _) => self.list.add(fd, event)?,
            // EPOLLHUP and EPOLLERR are always reported, so an unwatched descriptor is deleted.
            (_, Interest::NONE) => self.list.delete(fd)?,
            _ => self.list.modify(fd, &mut event)?,
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = EpollTimeout::try_from(milliseconds(timeout)).unwrap_or(EpollTimeout::NONE);
        let count = match self.list.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for event in self.events.iter().take(count) {
            ready.push(Ready { token: event.data(), read: event.events() != EpollFlags::EPOLLOUT });
        }
        Ok(())
    }
}
