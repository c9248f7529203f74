//! One interface for the kernel's three calls that report which descriptors are ready.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use chat::Limits;
use clap::ValueEnum;
use nix::sys::select::FD_SETSIZE;

use crate::epoll::Epoll;
use crate::poll::Poll;
use crate::select::Select;

/// Clients that a set of select can hold, besides this program's other descriptors.
const SELECT_MOST: u32 = FD_SETSIZE as u32 - 64;

/// The three calls, for the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Kind {
    Select,
    Poll,
    Epoll,
}

/// The events that the server waits for on a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    /// The descriptor is not watched. Otherwise a reset would be reported again and again.
    pub const NONE: Interest = Interest { read: false, write: false };
    pub const READ: Interest = Interest { read: true, write: false };
}

/// A descriptor that is ready, named by its token.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    /// A read does not block: it returns bytes, the end of file, or an error.
    pub read: bool,
}

/// One of select, poll and epoll, level-triggered.
pub trait Multiplexer {
    /// Changes the events that the server waits for on `fd`.
    fn change(
        &mut self,
        fd: BorrowedFd,
        token: u64,
        from: Interest,
        to: Interest,
    ) -> io::Result<()>;
    /// Sleeps until a descriptor is ready, or until the timeout is over.
    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// One of the three, and the interest in each descriptor: only changes are passed on.
pub struct Poller {
    multiplexer: Box<dyn Multiplexer>,
    interests: HashMap<u64, Interest>,
}

impl Poller {
    /// With select there are at most as many clients as a set has bits.
    pub fn new(kind: Kind, limits: &mut Limits) -> io::Result<Poller> {
        let multiplexer: Box<dyn Multiplexer> = match kind {
            Kind::Select => {
                limits.max_conns = limits.max_conns.min(SELECT_MOST);
                Box::new(Select::new()?)
            }
            Kind::Poll => Box::new(Poll::default()),
            Kind::Epoll => Box::new(Epoll::new()?),
        };
        Ok(Poller { multiplexer, interests: HashMap::new() })
    }

    /// Sets the interest in `fd`. Set it to [`Interest::NONE`] before you close `fd`.
    pub fn set(&mut self, fd: BorrowedFd, token: u64, interest: Interest) -> io::Result<()> {
        let before = self.interests.get(&token).copied().unwrap_or(Interest::NONE);
        if before != interest {
            self.multiplexer.change(fd, token, before, interest)?;
            self.interests.insert(token, interest);
        }
        if interest == Interest::NONE {
            self.interests.remove(&token);
        }
        Ok(())
    }

    /// Sleeps until a descriptor is ready, or until the deadline.
    pub fn wait(&mut self, deadline: Option<Instant>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.multiplexer.wait(timeout, ready)
    }
}

/// Milliseconds for poll and epoll_wait, rounded up: a loop that wakes just before its deadline has
/// nothing to do.
pub fn milliseconds(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |left| i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
}
