//! Chat on one thread: select waits for all clients, with sets that are built again each time.
//!
//! Run: cargo run -p v2-select
//! Try: cargo run -p chat -- --nick alice
//! Prev: v1-threads
//! Next: v3-broadcast
//! Diff base: none
//! Overload: refuse (beyond --max-conns a client gets `! server-full`)
//! Slow reader: drop (lines that do not fit into --outbox are counted: `* you missed 12 lines`)

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use common::descriptors::limit_descriptors;
use common::report::{self, Failed};
use common::sock::Backoff;
use lifecycle::Signals;
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::Socket;

fn main() -> Result<(), Failed> {
    let mut options = Options::parse("v2-select", "Chat: one thread with select");
    options.limits.max_conns = options.limits.max_conns.min(FD_SETSIZE as u32 - RESERVE);
    // A set has one bit for each descriptor number below FD_SETSIZE, and FD_SET of a larger number
    // writes past its end. With this RLIMIT_NOFILE the kernel hands out no larger number.
    limit_descriptors(FD_SETSIZE as u64)?;
    let signals = Signals::new()?;
    let room = options.room(Slow::Drop)?;
    let listener = options.listen()?;
    // A client may disconnect before accept: accept must not block the other clients.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let (backoff, clients) = (Backoff::default(), BTreeMap::new());
    let mut server = Server { options, listener, backoff, room, clients, last_id: 0 };
    report::ready(&server.listener);

    while !server.room.is_done() {
        // The first timeout of a client, or the end of a pause of accept.
        let deadline = server.room.deadline().into_iter().chain(server.backoff.until()).min();
        // Rounded up: a loop that wakes just before its deadline has nothing to do.
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).as_micros() + 1);
        let mut timeout = left.map(|left| TimeVal::microseconds(left as i64));
        // select overwrites the sets with its result, so each iteration builds them again.
        let (mut readable, mut writable) = server.interest();
        readable.insert(signals.as_fd());
        if let Err(e) = select(None, &mut readable, &mut writable, None, timeout.as_mut()) {
            // Goes on after EINTR and ENOMEM. After an error the sets are unspecified.
            server.backoff.sleep("select", &e.into(), &server.options.log)?;
            continue;
        }
        // select reports how many descriptors are ready, but not which: test every bit.
        let stop = readable.contains(signals.as_fd());
        let incoming = readable.contains(server.listener.as_fd());
        let (to_read, to_write) = (server.ready(&readable), server.ready(&writable));
        // One time for the whole iteration: all its deadlines are compared with the same `now`.
        let now = Instant::now();
        if stop {
            // First signal: the final message, and no new clients. Second signal: the end.
            let _ = signals.read();
            let _ = server.listener.shutdown(Shutdown::Read);
            server.room.shut_down(now);
        }
        to_read.into_iter().for_each(|id| server.read(id, now));
        to_write.into_iter().for_each(|id| server.write(id, now));
        if incoming {
            server.accept(now)?;
        }
        // What is due: the end of the pause, and the timeouts of all clients.
        server.backoff.expire(now);
        server.room.tick(now);
        // One send for each client with new lines, however many lines it has.
        while let Some(id) = server.room.next_changed() {
            server.write(id, now);
        }
    }
    server.options.log.cpu_time();
    Ok(())
}

/// Descriptors that are left for other purposes, and for clients that are being disconnected.
const RESERVE: u32 = 64;

struct Server {
    options: Options,
    listener: Socket,
    backoff: Backoff,
    room: Room,
    clients: BTreeMap<ClientId, Socket>,
    last_id: ClientId,
}

impl Server {
    /// The descriptors to wait for. A client that exceeds its rate is not read from, and TCP flow
    /// control slows it down. An idle socket is always writable: with its bit in the second set,
    /// select would never sleep. So the bit is set only while bytes wait to be sent.
    fn interest(&self) -> (FdSet<'_>, FdSet<'_>) {
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        if self.room.is_accepting() && self.backoff.until().is_none() {
            readable.insert(self.listener.as_fd());
        }
        for (id, conn) in &self.clients {
            let Some(session) = self.room.session(*id) else { continue };
            if session.wants_read() {
                readable.insert(conn.as_fd());
            }
            if session.wants_write() {
                writable.insert(conn.as_fd());
            }
        }
        (readable, writable)
    }

    /// The clients whose bit select has left in the set.
    fn ready(&self, set: &FdSet) -> Vec<ClientId> {
        let is_ready = |(_, conn): &(&ClientId, &Socket)| set.contains(conn.as_fd());
        self.clients.iter().filter(is_ready).map(|(id, _)| *id).collect()
    }

    /// Accepts one connection. The next one is accepted in the next iteration: the listener stays
    /// readable while its backlog holds connections.
    fn accept(&mut self, now: Instant) -> Result<(), Failed> {
        let (conn, peer) = match self.listener.accept() {
            Ok(accepted) => accepted,
            Err(_) if self.room.is_stopping() => return Ok(()),
            Err(e) => return self.backoff.pause("accept", &e, &self.options.log).map(drop),
        };
        conn.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        self.last_id += 1;
        self.clients.insert(self.last_id, conn);
        self.room.connect(self.last_id, ip(&peer), now);
        Ok(())
    }

    /// One read, so that no client delays the others for long. 0 bytes mean the end of file. A loop
    /// that ignores it spins (naive-spin.rs).
    fn read(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get_mut(&id) else { return };
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.received(id, &received, &buffer, now);
    }

    /// Sends what waits, until the kernel's buffer is full. Then select reports when the socket is
    /// writable again. After the final message a FIN ends the connection; the socket is closed only
    /// when the client has closed too, because a close with unread bytes would send a RST.
    fn write(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get(&id) else { return };
        let Some(session) = self.room.session_mut(id) else { return };
        let mut has_space = true;
        while has_space && session.wants_write() {
            has_space = session.sent(&conn.send(session.pending()), now);
        }
        if session.finish(now) {
            let _ = conn.shutdown(Shutdown::Write);
        }
        if session.is_over() {
            self.clients.remove(&id); // close
            self.room.remove(id, now);
        }
    }
}
