//! select: the sets are copied in and out at each call, and have 1024 bits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::poller::{Interest, Multiplexer, Ready};

#[derive(Default)]
pub struct Select {
    watched: BTreeMap<RawFd, (u64, Interest)>,
}

impl Select {
    /// A set has one bit for each descriptor number below FD_SETSIZE, and FD_SET of a larger number
    /// writes past its end. With this RLIMIT_NOFILE the kernel hands out no larger number.
    pub fn new() -> io::Result<Select> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(FD_SETSIZE as u64), hard)?;
        Ok(Select::default())
    }
}

impl Multiplexer for Select {
    fn change(
        &mut self,
        fd: BorrowedFd,
        token: u64,
        _: Interest,
        interest: Interest,
    ) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        if interest == Interest::NONE {
            self.watched.remove(&fd);
        } else {
            self.watched.insert(fd, (token, interest));
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut timeout = timeout.map(|left| TimeVal::microseconds(left.as_micros() as i64 + 1));
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        for (fd, (_, interest)) in &self.watched {
            let fd = borrow(*fd);
            if interest.read {
                readable.insert(fd);
            }
            if interest.write {
                writable.insert(fd);
            }
        }
        match select(None, &mut readable, &mut writable, None, timeout.as_mut()) {
            Ok(_) => {}
            // After an error the sets are unspecified.
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        // select reports how many descriptors are ready, but not which: test every bit.
        for (fd, (token, _)) in &self.watched {
            let (fd, read) = (borrow(*fd), readable.contains(borrow(*fd)));
            if read || writable.contains(fd) {
                ready.push(Ready { token: *token, read });
            }
        }
        Ok(())
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: a descriptor is removed here before it is closed (`Poller::set`).
    unsafe { BorrowedFd::borrow_raw(fd) }
}
