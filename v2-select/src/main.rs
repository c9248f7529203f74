//! Chat on one thread: all clients are waited for in select, whose sets are made anew for each round.
//!
//! Run: cargo run -p v2-select
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v1-threads
//! Next: v3-broadcast
//! Diff base: v1-threads
//! Overload: refuse (beyond --max-conns, `! server-full`)
//! Slow reader: drop (what does not fit in --outbox is not sent, and counted: `* you missed 12 lines`)

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use common::report::Failed;
use common::sock::{Backoff, is_transient};
use common::descriptors::limit_descriptors;
use lifecycle::Signals;
use nix::errno::Errno;
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::Socket;

struct Server {
    options: Options,
    listener: Socket,
    backoff: Backoff,
    room: Room,
    clients: BTreeMap<ClientId, Socket>,
    last_id: ClientId,
}

fn main() -> Result<(), Failed> {
    let mut options = Options::parse("v2-select", "Chat: one thread with select");
    options.limits.max_conns = options.limits.max_conns.min(FD_SETSIZE as u32 - 64); // the rest is for other descriptors
    // accept says EMFILE before it gives a number that a set has no bit for. (In C, FD_SET writes behind the set then.)
    limit_descriptors(FD_SETSIZE as u64)?;
    let signals = Signals::new()?;
    let room = options.room(Slow::Drop)?;
    let listener = options.listen()?;
    // A client may leave between select and accept: accept would then sleep, and the room with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let (backoff, clients) = (Backoff::default(), BTreeMap::new());
    let mut server = Server { options, listener, backoff, room, clients, last_id: 0 };

    while !server.room.is_done() {
        // select overwrites its sets with what is ready: they are made anew.
        let (mut readable, mut writable) = server.interest();
        readable.insert(signals.as_fd());
        let deadline = server.room.deadline().into_iter().chain(server.backoff.until()).min();
        // Until then, rounded up: waking a moment before would be a round for nothing.
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).as_micros() as i64 + 1);
        match select(None, &mut readable, &mut writable, None, left.map(TimeVal::microseconds).as_mut()) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue, // the sets say nothing now
            Err(e) => return Err(Failed::new(format!("select: {e}"))),
        }
        // Not who is ready is returned, but a set of bits: each has to be looked at.
        let (stop, incoming) = (readable.contains(signals.as_fd()), readable.contains(server.listener.as_fd()));
        let looked_at =
            |(id, conn): (&ClientId, &Socket)| (*id, readable.contains(conn.as_fd()), writable.contains(conn.as_fd()));
        let ready: Vec<(ClientId, bool, bool)> = server.clients.iter().map(looked_at).collect();
        let now = Instant::now();
        if stop && signals.read().is_ok() {
            let _ = server.listener.shutdown(Shutdown::Read); // new clients are refused
            server.room.shut_down(now); // last words for all; a second signal ends it at once
        }
        for (id, may_read, may_write) in ready {
            if may_read {
                server.read(id, now);
            }
            if may_write {
                server.write(id, now);
            }
        }
        if incoming {
            server.accept(now)?;
        }
        server.backoff.expire(now);
        server.room.tick(now);
        // Each client that something was said to is written to once, for all the lines of this round.
        while let Some(id) = server.room.next_changed() {
            server.write(id, now);
        }
    }
    server.options.log.cpu_time();
    Ok(())
}

impl Server {
    /// Whom to wait for. Who says too much is not read from, and TCP makes it wait: that is the rate limit. *Write* only
    /// while something waits, since an idle socket is always writable, and select would never sleep.
    fn interest(&self) -> (FdSet<'_>, FdSet<'_>) {
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        if self.room.has_place() && self.backoff.until().is_none() {
            readable.insert(self.listener.as_fd());
        }
        for (conn, session) in self.clients.iter().filter_map(|(id, conn)| Some((conn, self.room.session(*id)?))) {
            if session.wants_read() {
                readable.insert(conn.as_fd());
            }
            if session.wants_write() {
                writable.insert(conn.as_fd());
            }
        }
        (readable, writable)
    }

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

    /// One read, so that nobody holds the loop for long. 0 bytes are the end of file: who ignores it spins
    /// (naive-spin.rs).
    fn read(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get_mut(&id) else { return };
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.received(id, &received, &buffer, now);
    }

    /// Sends what waits, as far as the kernel's buffer has room.
    fn write(&mut self, id: ClientId, now: Instant) {
        let (Some(conn), Some(session)) = (self.clients.get(&id), self.room.session_mut(id)) else { return };
        while session.wants_write() {
            match conn.send(session.pending()) {
                Ok(n) => session.sent(n, now),
                Err(e) if is_transient(&e) => break,
                Err(_) => session.abort(),
            }
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
