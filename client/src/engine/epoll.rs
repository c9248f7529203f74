//! The interest list and the wait, to the nanosecond: `epoll_wait` counts its timeout in milliseconds, which is the
//! length of several requests, so this waits by `epoll_pwait2`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Instance, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What a connection is watched for, always edge-triggered: the kernel says once that it has changed.
pub const READ: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);
/// The same, and room to send.
pub const BOTH: EpollFlags = READ.union(EpollFlags::EPOLLOUT);

/// Bytes of the kernel's signal mask. No mask is passed, and the kernel looks at neither.
const MASK_SIZE: usize = 8;

/// One news of one connection.
#[derive(Clone, Copy, Debug)]
pub struct News {
    /// The client it belongs to.
    pub token: usize,
    flags: EpollFlags,
}

impl News {
    /// For the one connection of a thread whose calls block: see what comes.
    pub fn readable() -> Self {
        News { token: 0, flags: EpollFlags::EPOLLIN }
    }

    /// Whether there is something to read, if only the end.
    pub fn is_readable(self) -> bool {
        self.flags
            .intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
    }

    /// Whether the server has closed, or the connection is broken.
    pub fn is_over(self) -> bool {
        self.flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
    }
}

/// An epoll instance and room for what it reports.
pub struct Epoll {
    instance: Instance,
    events: Vec<EpollEvent>,
    /// The kernel has `epoll_pwait2`, which came with 5.11.
    precise: bool,
}

impl Epoll {
    /// Takes up to `events` events by one wait.
    pub fn new(events: usize) -> io::Result<Self> {
        let instance = Instance::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Epoll { instance, events: vec![EpollEvent::empty(); events], precise: true })
    }

    /// Watches a connection; what has come before is reported too.
    pub fn add(&self, socket: impl AsFd, token: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.instance.add(socket, EpollEvent::new(flags, token as u64))?)
    }

    /// Watches it for something else; what has come before is reported again.
    pub fn modify(&self, socket: impl AsFd, token: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.instance.modify(socket, &mut EpollEvent::new(flags, token as u64))?)
    }

    /// Waits for news, but not longer than `timeout`; returns how many there are. A signal ends the wait too.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let waited = if self.precise { self.pwait2(timeout) } else { self.wait_ms(timeout) };
        match waited {
            // A sandbox that does not know the call forbids it.
            Err(Errno::ENOSYS | Errno::EPERM) if self.precise => {
                self.precise = false;
                self.wait(timeout)
            }
            Err(Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }

    fn pwait2(&mut self, timeout: Duration) -> Result<usize, Errno> {
        let most = libc::c_int::try_from(self.events.len()).unwrap_or(libc::c_int::MAX);
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(86_400) as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let (epfd, events) = (self.instance.0.as_raw_fd(), self.events.as_mut_ptr());
        let no_mask: *const libc::sigset_t = ptr::null();
        // SAFETY: `events` has room for `most` events, of the kernel's layout; the mask is not looked at when null.
        let n = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, epfd, events, most, &raw const timeout, no_mask, MASK_SIZE)
        };
        Errno::result(n).map(|n| n as usize)
    }

    fn wait_ms(&mut self, timeout: Duration) -> Result<usize, Errno> {
        let ms = timeout.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
        self.instance.wait(&mut self.events, EpollTimeout::from(ms))
    }

    /// The news of the last wait by number.
    pub fn news(&self, number: usize) -> Option<News> {
        let event = self.events.get(number)?;
        Some(News { token: event.data() as usize, flags: event.events() })
    }
}
