//! The calls on one connection: socket, connect, send, recv, close.

use std::io::{ErrorKind, Read};
use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::unistd;
use socket2::{Domain, Socket, Type};

use super::epoll::{BOTH, News, READ};
use super::{Engine, blocking, resend};
use crate::conn::Step;
use crate::failure::Failure;

/// A connect that takes longer is looked at: the first SYN is sent again after a second, sooner where the kernel has
/// been told so, and never within the time that a network needs.
const SLOW_CONNECT: u64 = 200_000_000;
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

impl Engine<'_> {
    /// Opens the next connection of client `i`, and sends its first request, which was to start at `intended`, if the
    /// connection is there at once.
    pub(super) fn open(&mut self, i: usize, intended: Option<u64>) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.begin(now, intended.unwrap_or(now), &self.rules);
        // A ring says by a completion when the connection is there.
        if self.connect(i) && self.ring.is_none() {
            self.connect_begun(i);
        }
    }

    /// Opens the connection of client `i` for requests to come.
    pub(super) fn open_bare(&mut self, i: usize) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.begin_bare(now, &self.rules);
        if self.connect(i) {
            self.register(i, BOTH);
        }
    }

    /// Returns whether a connect is under way; if not, it has failed.
    fn connect(&mut self, i: usize) -> bool {
        let Some(slot) = self.slots.get_mut(i) else { return false };
        self.tally.tried += 1;
        let way = if self.probing { 0 } else { self.way };
        self.way += 1;
        let kind = if self.epoll.is_none() { Type::STREAM } else { Type::STREAM.nonblocking() }.cloexec();
        let connecting = Socket::new_raw(Domain::for_address(self.addr), kind, None).and_then(|socket| {
            if self.epoll.is_none() && self.ring.is_none() {
                blocking::bound(&socket)?;
            }
            if self.nodelay {
                socket.set_tcp_nodelay(true)?;
            }
            let route = &self.crew.route;
            let connecting = match &mut self.ring {
                Some(ring) => route.bind(&socket, way).map(|()| {
                    ring.connect(i, socket.as_raw_fd(), route.target(way, self.addr).into());
                }),
                None if route.is_plain() => socket.connect(&self.peer),
                None => route.connect(&socket, way, self.addr),
            };
            slot.socket = Some(socket);
            self.sockets += 1;
            connecting
        });
        match connecting {
            // A blocking connect() that a signal or its bound ends goes on all the same.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => {
                self.connect_failed(i, &Failure::Connect(error.raw_os_error().unwrap_or_default()));
                false
            }
            _ => true,
        }
    }

    /// On loopback the handshake is over before connect() returns, so send right away; EAGAIN says that it is not.
    fn connect_begun(&mut self, i: usize) {
        let interest = match self.send(i) {
            Sent::NoConnection => return,
            Sent::Broken => return self.receive(i, true),
            Sent::All => READ,
            Sent::NotYet => BOTH,
        };
        // Registering reports what has come before it too, so the answer cannot be missed.
        self.register(i, interest);
    }

    fn is_connecting(&self, i: usize) -> bool {
        self.slots.get(i).is_none_or(|slot| slot.client.is_connecting())
    }

    fn register(&mut self, i: usize, interest: EpollFlags) {
        let Some(Some(socket)) = self.slots.get(i).map(|slot| &slot.socket) else { return };
        let Some(epoll) = &self.epoll else { return };
        if let Err(error) = epoll.add(socket, i, interest) {
            self.broken(i, error.raw_os_error().unwrap_or_default());
        }
    }

    /// Something happened on the connection of the client with the token.
    pub(super) fn on_news(&mut self, news: News) {
        let i = news.token;
        let Some(slot) = self.slots.get(i) else { return };
        if slot.socket.is_none() {
            return;
        }
        if slot.client.is_opening() {
            return self.on_opening(i);
        }
        // Edge-triggered: that the server has closed, or the connection is broken, is said once.
        let over = news.is_over();
        if slot.client.is_ready() {
            // Bytes that nobody asked for stay where they are; they are in front of the next answer, and make it wrong.
            return if over {
                self.closed_idle(i)
            };
        }
        if slot.client.is_sending() {
            match self.send(i) {
                Sent::NoConnection => return,
                // An echo comes back while there is more to send, and nobody goes on who is not read from.
                Sent::NotYet if !news.is_readable() || self.is_connecting(i) => return,
                Sent::Broken => return self.receive(i, true),
                Sent::All | Sent::NotYet => {}
            }
        }
        if news.is_readable() {
            self.receive(i, over);
        }
    }

    /// A connection without a request: established, or failed.
    pub(super) fn on_opening(&mut self, i: usize) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        let Some(socket) = &slot.socket else { return };
        if let Ok(Some(error)) | Err(error) = socket.take_error() {
            return self.connect_failed(i, &Failure::Connect(error.raw_os_error().unwrap_or_default()));
        }
        self.established(i);
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.opened(now, &mut self.tally);
        self.settle(i);
        self.is_free(i);
    }

    /// The server has closed a connection on which no request was under way; the next one needs another.
    pub(super) fn closed_idle(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        slot.client.closed_idle(&self.rules);
        self.drop_socket(i);
    }

    /// Reads on where connections were left for the sake of the others.
    pub(super) fn read_on(&mut self) {
        for i in mem::take(&mut self.unread) {
            self.receive(i, true);
        }
    }

    fn send(&mut self, i: usize) -> Sent {
        if self.ring.is_some() {
            self.ask_to_send(i);
            return Sent::All;
        }
        loop {
            let now = self.now();
            let Some(slot) = self.slots.get_mut(i) else { return Sent::NoConnection };
            let Some(socket) = &slot.socket else { return Sent::NoConnection };
            let (text, whole) = slot.client.text(&self.rules, &mut self.scratch);
            match socket.send_with_flags(text, libc::MSG_NOSIGNAL) {
                Ok(n) => {
                    self.established(i);
                    let Some(slot) = self.slots.get_mut(i) else { return Sent::NoConnection };
                    if slot.client.took(n, whole, now, &mut self.tally) {
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
    pub(super) fn receive(&mut self, i: usize, over: bool) {
        let mut buffer = mem::take(&mut self.buffer);
        self.receive_into(i, over, &mut buffer);
        self.buffer = buffer;
    }

    fn receive_into(&mut self, i: usize, over: bool, buffer: &mut [u8]) {
        for _ in 0..READS {
            let Some(slot) = self.slots.get_mut(i) else { return };
            let Some(socket) = &slot.socket else { return };
            let received = match (&mut &*socket).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock && !slot.client.is_broken() => {
                    return self.settle(i);
                }
                Ok(n) => Ok(buffer.get(..n).unwrap_or_default()),
                Err(error) => Err(error.raw_os_error().unwrap_or_default()),
            };
            let full = received.is_ok_and(|bytes| bytes.len() == buffer.len());
            match self.heard(i, received, over || full) {
                Some(true) => {}
                Some(false) => return self.settle(i),
                None => return,
            }
        }
        self.settle(i);
        self.unread.push(i);
    }

    /// What a recv returned. Returns whether the next one follows at once, or `None` if none does for now.
    pub(super) fn heard(&mut self, i: usize, received: Result<&[u8], i32>, more: bool) -> Option<bool> {
        let now = match self.end {
            // What comes after the end of the run is no result of it.
            Some(end) if self.base.elapsed() >= Duration::from_nanos(end) => return None,
            _ => super::nanos(self.base.elapsed()),
        };
        let slot = self.slots.get_mut(i)?;
        let step = match received {
            Ok([]) => slot.client.eof(now, &self.rules, &mut self.tally),
            Ok(bytes) => slot.client.received(bytes, now, &self.rules, &mut self.tally),
            Err(errno) => {
                self.broken(i, errno);
                return None;
            }
        };
        match step {
            Step::Wait => Some(more),
            Step::Send => Some(self.send_next(i) | more),
            Step::Close => {
                self.close(i);
                None
            }
            Step::Pause => {
                self.settle(i);
                self.is_free(i);
                None
            }
        }
    }

    /// Sends the next request on a kept connection. Returns true where that failed, and the rest is to be read.
    pub(super) fn send_next(&mut self, i: usize) -> bool {
        match self.send(i) {
            Sent::All | Sent::NoConnection => return false,
            Sent::Broken => return true,
            Sent::NotYet => {}
        }
        // The send buffer is full, although the answer to all that went before is here: wait for room.
        let Some(Some(socket)) = self.slots.get(i).map(|slot| &slot.socket) else { return false };
        self.epoll.as_ref().is_some_and(|epoll| epoll.modify(socket, i, BOTH).is_err())
    }

    fn broken(&mut self, i: usize, errno: i32) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        if slot.client.is_connecting() {
            return self.connect_failed(i, &Failure::Connect(errno));
        }
        if !slot.client.is_idle() {
            slot.client.broken(errno, now, &mut self.tally);
        }
        self.close(i);
    }

    /// Closes the connection of client `i` and lets the client go on.
    pub(super) fn close(&mut self, i: usize) {
        self.drop_socket(i);
        self.settle(i);
        self.goes_on(i);
        self.give_up_if_in_vain();
    }

    /// Closes a socket, which also takes it out of epoll.
    pub(super) fn drop_socket(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        let Some(socket) = slot.socket.take() else { return };
        self.sockets -= 1;
        self.tally.open -= u64::from(mem::take(&mut slot.established));
        if self.reset_on_close {
            // Fails on a connection that is reset already, and then there is nothing to do.
            _ = socket.set_linger(Some(Duration::ZERO));
        }
        if let Some(ring) = &mut self.ring {
            return ring.close(i, socket);
        }
        // Not by drop: in a build with debug assertions that asks fcntl first whether the descriptor is open.
        _ = unistd::close(socket);
    }

    /// Tells the ramp about the first answer, or the failure, of a client that has just started.
    pub(super) fn settle(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        if slot.ramping && !slot.client.is_unanswered() {
            slot.ramping = false;
            self.ramp.answered();
        }
    }

    pub(super) fn established(&mut self, i: usize) {
        let Some(slot) = self.slots.get_mut(i) else { return };
        if mem::replace(&mut slot.established, true) {
            return;
        }
        self.tally.open += 1;
        self.tally.peak_open = self.tally.peak_open.max(self.tally.open);
        if mem::take(&mut self.probing) {
            self.crew.found(self.addr);
        }
        self.look_for_resent_syn(i);
    }

    /// Whether a connect was slow because the kernel at the other end dropped the SYN: then its accept queue was full.
    pub(super) fn look_for_resent_syn(&mut self, i: usize) {
        let now = self.now();
        let Some(slot) = self.slots.get(i) else { return };
        if now.saturating_sub(slot.client.began()) < SLOW_CONNECT {
            return;
        }
        if let Some(socket) = &slot.socket
            && resend::retransmitted(socket)
        {
            self.tally.syn_retransmitted += 1;
        }
    }
}
