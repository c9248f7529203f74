//! The calls on one connection: socket, connect, send, recv, close.

use std::io::{ErrorKind, Read};
use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::unistd;
use socket2::{Domain, Socket, Type};

use super::Engine;
use crate::conn::Step;
use crate::failure::Failure;

/// An answer may fill the buffer so often before the other connections get their turn.
const READS: usize = 16;

/// What came of a send.
enum Sent {
    /// The kernel has the whole request.
    All,
    /// It takes no more now.
    NotYet,
    /// The connection is broken, but what the server said before may still be read.
    Broken,
    /// The connection was never established; it is closed by now.
    NoConnection,
}

impl Engine {
    /// Opens the next connection of client `i`, and sends its first request if the connection is there at once.
    pub(super) fn open(&mut self, i: usize) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.begin(now, &self.rules);
        self.tally.tried += 1;
        let kind = Type::STREAM.nonblocking().cloexec();
        let connecting = Socket::new_raw(Domain::for_address(self.addr), kind, None).and_then(|socket| {
            let connecting = socket.connect(&self.peer);
            slot.socket = Some(socket);
            self.sockets += 1;
            connecting
        });
        match connecting {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                self.connect_failed(i, &Failure::Connect(error.raw_os_error().unwrap_or_default()));
            }
            _ => self.connect_begun(i),
        }
    }

    /// On loopback the handshake is over before connect() returns, so send right away; EAGAIN says that it is not.
    fn connect_begun(&mut self, i: usize) {
        let interest = match self.send(i) {
            Sent::NoConnection => return,
            Sent::Broken => return self.receive(i, true),
            Sent::All => Interest::READABLE,
            Sent::NotYet => Interest::READABLE | Interest::WRITABLE,
        };
        // Registering reports what has come before it too, so the answer cannot be missed.
        let Some(Some(socket)) = self.slots.get(i).map(|slot| &slot.socket) else { return };
        let registered = self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(i), interest);
        if let Err(error) = registered {
            self.broken(i, error.raw_os_error().unwrap_or_default());
        }
    }

    /// Something happened on the connection of the client with the event's token.
    pub(super) fn on_event(&mut self, event: &Event) {
        let Token(i) = event.token();
        let Some(slot) = self.slots.get(i) else { return };
        if slot.socket.is_none() {
            return;
        }
        // Edge-triggered: that the server has closed, or the connection is broken, is said once.
        let over = event.is_read_closed() || event.is_error();
        if slot.client.is_sending() {
            match self.send(i) {
                Sent::NoConnection | Sent::NotYet => return,
                Sent::Broken => return self.receive(i, true),
                Sent::All => {}
            }
        }
        if event.is_readable() || over {
            self.receive(i, over);
        }
    }

    /// Reads on where connections were left for the sake of the others.
    pub(super) fn read_on(&mut self) {
        for i in mem::take(&mut self.unread) {
            self.receive(i, true);
        }
    }

    fn send(&mut self, i: usize) -> Sent {
        loop {
            let now = self.now();
            let Some(slot) = self.slots.get_mut(i) else { return Sent::NoConnection };
            let Some(socket) = &slot.socket else { return Sent::NoConnection };
            let text = self.request.get(slot.client.taken()..).unwrap_or_default();
            match socket.send_with_flags(text, libc::MSG_NOSIGNAL) {
                Ok(n) => {
                    self.established(i);
                    let Some(slot) = self.slots.get_mut(i) else { return Sent::NoConnection };
                    if slot.client.took(n, self.request.len(), now, &mut self.tally) {
                        return Sent::All;
                    }
                }
                Err(error) => match error.raw_os_error().unwrap_or_default() {
                    libc::EINTR => {}
                    libc::EAGAIN | libc::ENOTCONN => return Sent::NotYet,
                    // Connects are refused, resets come later: this one was established.
                    errno if errno == libc::EPIPE || errno == libc::ECONNRESET || !slot.client.is_connecting() => {
                        slot.client.send_failed(errno, now, &mut self.tally);
                        self.established(i);
                        return Sent::Broken;
                    }
                    errno => {
                        self.connect_failed(i, &Failure::Connect(errno));
                        return Sent::NoConnection;
                    }
                },
            }
        }
    }

    /// Receives until the kernel has no more. A recv that does not fill the buffer has taken everything, and news
    /// behind it come with a new edge; only where the end has been announced already (`over`) it has to be fetched.
    fn receive(&mut self, i: usize, over: bool) {
        for _ in 0..READS {
            let Some(slot) = self.slots.get_mut(i) else { return };
            let Some(socket) = &slot.socket else { return };
            let received = (&mut &*socket).read(&mut self.buffer);
            let now = match self.end {
                // What comes after the end of the run is no result of it.
                Some(end) if self.base.elapsed() >= Duration::from_nanos(end) => return,
                _ => super::nanos(self.base.elapsed()),
            };
            let mut more = over;
            let step = match received {
                Ok(0) => slot.client.eof(now, &self.rules, &mut self.tally),
                Ok(n) => {
                    more |= n == self.buffer.len();
                    let bytes = self.buffer.get(..n).unwrap_or_default();
                    slot.client.received(bytes, now, &self.rules, &mut self.tally)
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock if !slot.client.is_broken() => return self.settle(i),
                    _ => return self.broken(i, error.raw_os_error().unwrap_or_default()),
                },
            };
            match step {
                Step::Close => return self.close(i),
                Step::Wait => {}
                Step::Send => more |= self.send_next(i),
            }
            if !more {
                return self.settle(i);
            }
        }
        self.settle(i);
        self.unread.push(i);
    }

    /// Sends the next request on a kept connection. Returns true where that failed, and the rest is to be read.
    fn send_next(&mut self, i: usize) -> bool {
        match self.send(i) {
            Sent::All | Sent::NoConnection => return false,
            Sent::Broken => return true,
            Sent::NotYet => {}
        }
        // The send buffer is full, although the answer to all that went before is here: wait for room.
        let Some(Some(socket)) = self.slots.get(i).map(|slot| &slot.socket) else { return false };
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().reregister(&mut SourceFd(&socket.as_raw_fd()), Token(i), both).is_err()
    }

    fn broken(&mut self, i: usize, errno: i32) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        if slot.client.is_connecting() {
            return self.connect_failed(i, &Failure::Connect(errno));
        }
        if !slot.client.is_idle() {
            slot.client.broken(errno, now, &self.rules, &mut self.tally);
        }
        self.close(i);
    }

    /// Closes the connection of client `i`, which also takes it out of epoll, and lets the client go on.
    pub(super) fn close(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        if let Some(socket) = slot.socket.take() {
            self.sockets -= 1;
            self.open -= u64::from(mem::take(&mut slot.established));
            if self.reset_on_close {
                // Fails on a connection that is reset already, and then there is nothing to do.
                _ = socket.set_linger(Some(Duration::ZERO));
            }
            // Not by drop: in a build with debug assertions that asks fcntl first whether the descriptor is open.
            _ = unistd::close(socket);
        }
        if slot.client.has_work() {
            self.ready.push(i);
        }
        self.settle(i);
        self.give_up_if_in_vain();
    }

    /// Tells the ramp about the first answer, or the failure, of a client that has just started.
    fn settle(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        if slot.ramping && !slot.client.is_unanswered() {
            slot.ramping = false;
            self.ramp.answered();
        }
    }

    fn established(&mut self, i: usize) {
        self.probing = false;
        let Some(slot) = self.slots.get_mut(i) else { return };
        if !mem::replace(&mut slot.established, true) {
            self.open += 1;
            self.peak_open = self.peak_open.max(self.open);
        }
    }
}
