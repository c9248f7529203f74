//! epoll: the interest list lives in the kernel, and only who is ready comes back.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as List, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::poller::{Interest, Poller, Ready, milliseconds};

/// Most clients reported at once; the others are next.
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

impl Poller for Epoll {
    fn set(&mut self, fd: BorrowedFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, interest.read);
        flags.set(EpollFlags::EPOLLOUT, interest.write);
        let mut event = EpollEvent::new(flags, token);
        // EPOLLHUP and EPOLLERR are reported whatever is asked for: who is not to be watched has to leave the list.
        if interest == Interest::NONE {
            return match self.list.delete(fd) {
                Ok(()) | Err(Errno::ENOENT) => Ok(()),
                Err(e) => Err(e.into()),
            };
        }
        match self.list.modify(fd, &mut event) {
            Err(Errno::ENOENT) => Ok(self.list.add(fd, event)?),
            outcome => Ok(outcome?),
        }
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
