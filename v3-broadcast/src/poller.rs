//! Who is ready? Three of the kernel's answers behind one question.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

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

/// One of select, poll and epoll, level-triggered. A descriptor is set to [`Interest::NONE`] before it is closed.
pub trait Poller {
    /// Watches `fd` for this from now on.
    fn set(&mut self, fd: BorrowedFd, token: u64, interest: Interest) -> io::Result<()>;
    /// Sleeps until something is ready, or the time is over; a signal ends it with nothing ready.
    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// Milliseconds for poll and epoll_wait, rounded up: waking a moment before a deadline would be a round for nothing.
pub fn milliseconds(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |left| i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
}
