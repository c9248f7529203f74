//! The clients of an event loop: the table, the limit, the timeouts. They are the same for select, poll, epoll, mio
//! and io_uring.
//!
//! Each iteration of a loop does four things:
//!
//! 1. It asks [`Clients`] which descriptors to watch ([`iter`](Clients::iter), [`accepting`](Clients::accepting)) and how
//!    long it may sleep ([`timeout_ms`](Clients::timeout_ms)).
//! 2. It waits with its own call.
//! 3. It serves the ready clients with its own read and write ([`serve`](Clients::serve)), and then the clients whose
//!    timeout has passed ([`expired`](Clients::expired)) in the same way.
//! 4. It accepts with its own accept ([`insert`](Clients::insert)), and takes signals ([`stop`](Clients::stop)).

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::report::Failed;
use common::service::{Conn, Next, Rejection};
use common::sock::Backoff;
use slab::Slab;
use socket2::{SockAddr, SockRef};

use crate::{Server, Signals};

/// The key of the signals. No client has this key.
pub const SIGNALS: usize = usize::MAX;
/// The key of the listener. No client has this key.
pub const LISTENER: usize = usize::MAX - 1;
/// The deadlines of all clients are checked at most once in this interval: a check after each event would cost as
/// much as poll.
const INTERVAL: Duration = Duration::from_millis(250);

/// What an event loop watches a client for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The next request.
    Read,
    /// Room in the send buffer, because a part of an answer is pending.
    Write,
}

/// One client: the connection and the state of its session.
pub struct Client<S> {
    /// The connection, non-blocking.
    pub conn: S,
    /// The session: what it has received, and what it has to send.
    pub service: Conn,
    peer: Option<SockAddr>,
    is_rejected: bool,
    is_blocked: bool,
}

impl<S> Client<S> {
    /// True if the last step did not end with EAGAIN: with edge triggering the client must be served again, because
    /// the kernel does not report it again.
    pub fn is_unfinished(&self) -> bool {
        !self.is_blocked
    }

    /// What to watch the client for. Never for both: while an answer is pending the loop does not read the next
    /// request, and an idle connection is always writable.
    pub fn interest(&self) -> Interest {
        if self.service.next() == Next::Write { Interest::Write } else { Interest::Read }
    }
}

/// The clients of one event loop. A small number, the key, names a client.
pub struct Clients<'a, S> {
    table: Slab<Client<S>>,
    max_conns: usize,
    server: &'a Server,
    /// How many of the clients are rejected connections.
    rejected: usize,
    backoff: Backoff,
    /// The end of the shutdown timeout, after the first signal.
    stop_at: Option<Instant>,
    /// No client has an earlier deadline.
    next_deadline: Option<Instant>,
    checked_at: Instant,
}

impl<'a, S: Write + AsFd> Clients<'a, S> {
    /// An empty table for `max_conns` clients at once.
    pub fn new(max_conns: usize, server: &'a Server) -> Self {
        Clients {
            table: Slab::new(),
            max_conns,
            server,
            rejected: 0,
            backoff: Backoff::default(),
            stop_at: None,
            next_deadline: None,
            checked_at: Instant::now(),
        }
    }

    /// True if the listener has to be watched: accept is not paused, and no signal has arrived. Otherwise new
    /// clients stay in the backlog. Over the limit of clients the loop still accepts, and rejects the client.
    pub fn accepting(&self) -> bool {
        self.backoff.until().is_none() && self.stop_at.is_none()
    }

    /// Logs a failed accept. If the process is out of descriptors or memory, it also pauses accept: the client
    /// stays in the backlog and the listener stays readable, so the loop would spin.
    ///
    /// # Errors
    /// The listener can no longer be used.
    pub fn accept_failed(&mut self, error: &io::Error) -> Result<(), Failed> {
        self.backoff.pause("accept", error, &self.server.log).map(drop)
    }

    /// All clients with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Client<S>)> {
        self.table.iter()
    }

    /// The client with this key, if it has not been closed.
    pub fn get(&self, key: usize) -> Option<&Client<S>> {
        self.table.get(key)
    }

    /// Serves the client with this key by one step: the example's own read and write. Closes the client if its
    /// session is over or the step has failed. EAGAIN and EINTR are no failures.
    pub fn serve(&mut self, key: usize, now: Instant, step: impl FnOnce(&mut Client<S>, Instant) -> io::Result<()>) {
        let Some(client) = self.table.get_mut(key) else { return };
        let mut outcome = step(client, now);
        client.is_blocked = matches!(&outcome, Err(e) if e.kind() == ErrorKind::WouldBlock);
        if client.is_blocked || matches!(&outcome, Err(e) if e.kind() == ErrorKind::Interrupted) {
            outcome = Ok(());
        }
        if client.service.next() == Next::ShutdownWrite {
            // The error line is sent. close with unread bytes would send a RST, and the client could lose the line.
            // So send a FIN, and read on until end of file.
            let _ = SockRef::from(&client.conn).shutdown(Shutdown::Write);
            client.service.write_shut_down(now);
        }
        match outcome.is_err() || client.service.next() == Next::Close {
            true => self.close(key, outcome),
            false => self.next_deadline = self.next_deadline.into_iter().chain([client.service.deadline()]).min(),
        }
    }

    fn close(&mut self, key: usize, outcome: io::Result<()>) {
        let client = self.table.remove(key); // the end of this function closes the descriptor
        self.rejected -= usize::from(client.is_rejected);
        self.backoff.end(); // a descriptor is free: the next accept may succeed
        let outcome = outcome.and_then(|()| client.service.result());
        client.peer.inspect(|peer| self.server.log.client(peer, &outcome));
    }

    /// How long the loop may sleep, in milliseconds: until the next deadline. None: without a limit.
    pub fn timeout_ms(&self) -> Option<u16> {
        let now = Instant::now();
        let check = self.next_deadline.map(|at| at.max(self.checked_at + INTERVAL));
        let first = check.into_iter().chain(self.backoff.until()).chain(self.stop_at).min()?;
        // Rounded up: a loop that wakes just before the deadline has nothing to do.
        Some(u16::try_from(first.saturating_duration_since(now).as_millis() + 1).unwrap_or(u16::MAX))
    }

    /// What the loop does once an iteration because time has passed: it ends a pause of accept, closes all clients
    /// when the shutdown timeout has passed, and returns the clients whose deadline has passed. Serve them as if
    /// they were ready.
    pub fn expired(&mut self, now: Instant) -> Vec<usize> {
        self.backoff.expire(now);
        if self.stop_at.is_some_and(|end| now >= end) {
            self.table.clear();
            self.rejected = 0;
        }
        if self.next_deadline.is_none_or(|at| now < at.max(self.checked_at + INTERVAL)) {
            return Vec::new();
        }
        let mut late = Vec::new();
        for (key, client) in self.table.iter_mut().filter(|(_, client)| client.service.deadline() <= now) {
            client.service.expire(now);
            late.push(key);
        }
        self.checked_at = now;
        self.next_deadline = self.table.iter().map(|(_, client)| client.service.deadline()).min();
        late
    }

    /// Takes the signals that are pending. The first one ends accepting and reading; what has been received is
    /// answered within the shutdown timeout. The second one ends the timeout.
    pub fn stop(&mut self, signals: &Signals, listener: &impl AsFd, now: Instant) {
        while signals.read().is_ok() {
            let timeout = Duration::from_millis(self.server.limits.grace);
            self.stop_at = Some(self.stop_at.map_or(now + timeout, |_| now));
            // The listener stops listening: from now on the kernel refuses new connections with a RST.
            let _ = SockRef::from(listener).shutdown(Shutdown::Read);
            for (_, client) in &self.table {
                let _ = SockRef::from(&client.conn).shutdown(Shutdown::Read);
            }
        }
    }

    /// True if a signal has arrived and all clients have been closed.
    pub fn is_done(&self) -> bool {
        self.stop_at.is_some() && self.table.is_empty()
    }

    /// The key of the next client.
    pub fn next_key(&self) -> usize {
        self.table.vacant_key()
    }

    /// How many clients are served: all but the rejected connections.
    pub fn served(&self) -> usize {
        self.table.len() - self.rejected
    }

    /// Adds an accepted connection. Over the limit the client is rejected with `ERR busy`.
    pub fn insert(&mut self, conn: S, peer: Option<SockAddr>, now: Instant) {
        match self.served() < self.max_conns {
            true => self.add(conn, peer, Conn::new(&self.server.limits, now), now),
            false => self.reject(conn, peer, now),
        }
    }

    /// Adds a connection that is rejected: sends `ERR busy`, and keeps the connection until the client has closed it.
    pub fn reject(&mut self, mut conn: S, peer: Option<SockAddr>, now: Instant) {
        let mut service = Conn::rejected(Rejection::Busy, &self.server.limits, now);
        if let Ok(n) = conn.write(service.pending()) {
            service.consume(n, now); // the whole line: the send buffer of a new connection is empty
        }
        self.rejected += 1;
        self.add(conn, peer, service, now);
    }

    fn add(&mut self, conn: S, peer: Option<SockAddr>, service: Conn, now: Instant) {
        if self.stop_at.is_some() {
            let _ = SockRef::from(&conn).shutdown(Shutdown::Read); // accepted just before the signal
        }
        let is_rejected = service.next() != Next::Read;
        let key = self.table.insert(Client { conn, service, peer, is_rejected, is_blocked: false });
        self.serve(key, now, |_, _| Ok(()));
    }
}
