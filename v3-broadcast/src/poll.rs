//! poll: an array of any length, which the kernel copies and scans at each call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

use crate::poller::{Interest, Multiplexer, Ready, milliseconds};

#[derive(Default)]
pub struct Poll {
    /// The array for poll(2), and the token of each entry.
    fds: Vec<libc::pollfd>,
    tokens: Vec<u64>,
}

impl Multiplexer for Poll {
    fn change(
        &mut self,
        fd: BorrowedFd,
        token: u64,
        _: Interest,
        interest: Interest,
    ) -> io::Result<()> {
        let (fd, index) =
            (fd.as_raw_fd(), self.fds.iter().position(|entry| entry.fd == fd.as_raw_fd()));
        let mut events = 0;
        if interest.read {
            events |= libc::POLLIN;
        }
        if interest.write {
            events |= libc::POLLOUT;
        }
        if let Some(index) = index {
            self.fds.swap_remove(index);
            self.tokens.swap_remove(index);
        }
        if interest != Interest::NONE {
            self.fds.push(libc::pollfd { fd, events, revents: 0 });
            self.tokens.push(token);
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let length = self.fds.len() as libc::nfds_t;
        // SAFETY: the array has `length` entries, and outlives the call.
        let count = unsafe { libc::poll(self.fds.as_mut_ptr(), length, milliseconds(timeout)) };
        match Errno::result(count) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        for (entry, token) in
            self.fds.iter().zip(&self.tokens).filter(|(entry, _)| entry.revents != 0)
        {
            // POLLHUP and POLLERR are always reported. A read returns the error.
            ready.push(Ready { token: *token, read: entry.revents & !libc::POLLOUT != 0 });
        }
        Ok(())
    }
}
