//! Who is ready? Three of the kernel's answers behind one question.

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

/// What a set of select holds, less this program's own descriptors, and some to spare.
const SELECT_MOST: u32 = FD_SETSIZE as u32 - 64;

/// The three of them, for the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Kind {
    Select,
    Poll,
    Epoll,
}

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    /// Not watched at all: not even for a reset, which could not be acted on and would be reported for ever.
    pub const NONE: Interest = Interest { read: false, write: false };
    pub const READ: Interest = Interest { read: true, write: false };
}

/// A descriptor that is ready, by its token.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    /// It can be read without waiting: bytes, the end of file, or an error.
    pub read: bool,
}

/// One of select, poll and epoll, level-triggered.
pub trait Multiplexer {
    /// Watches `fd` for something else from now on.
    fn change(
        &mut self,
        fd: BorrowedFd,
        token: u64,
        from: Interest,
        to: Interest,
    ) -> io::Result<()>;
    /// Sleeps until something is ready, or the time is over; a signal ends it with nothing ready.
    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// One of the three, and what it has been told: it is told only what changes.
pub struct Poller {
    multiplexer: Box<dyn Multiplexer>,
    told: HashMap<u64, Interest>,
}

impl Poller {
    /// With select no more clients are let in than a set has bits for.
    pub fn new(kind: Kind, limits: &mut Limits) -> io::Result<Poller> {
        let multiplexer: Box<dyn Multiplexer> = match kind {
            Kind::Select => {
                limits.max_conns = limits.max_conns.min(SELECT_MOST);
                Box::new(Select::new()?)
            }
            Kind::Poll => Box::new(Poll::default()),
            Kind::Epoll => Box::new(Epoll::new()?),
        };
        Ok(Poller { multiplexer, told: HashMap::new() })
    }

    /// Watches `fd` for this from now on. A descriptor is set to [`Interest::NONE`] before it is closed.
    pub fn set(&mut self, fd: BorrowedFd, token: u64, interest: Interest) -> io::Result<()> {
        let before = self.told.get(&token).copied().unwrap_or(Interest::NONE);
        if before != interest {
            self.multiplexer.change(fd, token, before, interest)?;
            self.told.insert(token, interest);
        }
        if interest == Interest::NONE {
            self.told.remove(&token);
        }
        Ok(())
    }

    /// Sleeps until something is ready, or the deadline has come.
    pub fn wait(&mut self, deadline: Option<Instant>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.multiplexer.wait(timeout, ready)
    }
}

/// Milliseconds for poll and epoll_wait, rounded up: waking a moment before a deadline would be a round for nothing.
pub fn milliseconds(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |left| i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
}
