//! Chat on one thread, with a queue per client that select, poll or epoll empties.
//!
//! Run: cargo run -p v3-broadcast
//! Try: cargo run -p chat -- --nick alice
//! Prev: v2-select
//! Next: v4-async
//! Diff base: v2-select
//! Overload: refuse (beyond --max-conns a client gets `! server-full`)
//! Slow reader: kick (when --outbox is full, or after --write-timeout; see --slow)

mod epoll;
mod poll;
mod poller;
mod select;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use clap::Parser;
use common::report::{self, Failed};
use common::sock::Backoff;
use lifecycle::Signals;
use poller::{Interest, Kind, Poller, Ready};
use socket2::Socket;

/// Chat: a bounded queue per client, and select, poll or epoll
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// The call that waits for ready descriptors
    #[arg(long, value_enum, default_value_t = Kind::Epoll)]
    poller: Kind,
    /// What happens to a reader that is slower than the room
    #[arg(long, value_enum, default_value_t)]
    slow: Slow,
}

fn main() -> Result<(), Failed> {
    let Args { mut options, poller, slow } = Args::parse();
    let signals = Signals::new()?;
    let mut poller = Poller::new(poller, &mut options.limits).context("poller")?;
    poller.set(signals.as_fd(), SIGNALS, Interest::READ).context("watch the signals")?;
    let room = options.room(slow)?;
    let listener = options.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let (backoff, clients) = (Backoff::default(), BTreeMap::new());
    let mut server = Server { options, poller, listener, backoff, room, clients, last_id: 0 };
    server.watch_listener();
    let mut ready = Vec::new();
    report::ready(&server.listener);

    while !server.room.is_done() {
        // The first timeout of a client, or the end of a pause of accept.
        let deadline = server.room.deadline().into_iter().chain(server.backoff.until()).min();
        let waited = server.poller.wait(deadline, &mut ready);
        // Goes on after EINTR and ENOMEM, with nothing ready.
        waited.or_else(|e| server.backoff.sleep("wait", &e, &server.options.log))?;
        // One time for the whole iteration: all its deadlines are compared with the same `now`.
        let now = Instant::now();
        for Ready { token, read } in ready.drain(..) {
            // The kernel reports the token that was given together with the descriptor.
            match token {
                LISTENER => server.accept(now)?,
                SIGNALS => server.stop(&signals, now),
                id => {
                    // One read for each ready client. A client with more bytes stays ready, and is
                    // served again in the next iteration: no client delays the others for long.
                    if read {
                        server.read(id, now);
                    }
                    server.write(id, now);
                }
            }
        }
        // What is due: the end of the pause, and the timeouts of all clients.
        server.backoff.expire(now);
        server.room.tick(now);
        // One send for each client with new lines, however many lines it has.
        while let Some(id) = server.room.next_changed() {
            server.write(id, now);
        }
        server.watch_listener();
    }
    server.options.log.cpu_time();
    Ok(())
}

/// The tokens of the two descriptors that are not clients. Clients are numbered from 1.
const LISTENER: u64 = 0;
const SIGNALS: u64 = u64::MAX;

struct Server {
    options: Options,
    poller: Poller,
    listener: Socket,
    backoff: Backoff,
    room: Room,
    clients: BTreeMap<ClientId, Socket>,
    last_id: ClientId,
}

impl Server {
    /// Watches the listener while the server accepts. Otherwise connections stay in the backlog.
    fn watch_listener(&mut self) {
        // While accept is paused the listener stays readable: if watched, the loop would spin.
        let is_accepting = self.room.is_accepting() && self.backoff.until().is_none();
        let interest = Interest { read: is_accepting, write: false };
        if let Err(e) = self.poller.set(self.listener.as_fd(), LISTENER, interest) {
            // Tried again after the pause.
            let _ = self.backoff.pause("watch the listener", &e, &self.options.log);
        }
    }

    /// First signal: the final message for all clients, and no new clients. Second signal: the end.
    fn stop(&mut self, signals: &Signals, now: Instant) {
        let _ = signals.read();
        let _ = self.listener.shutdown(Shutdown::Read);
        self.room.shut_down(now);
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

    /// Reads once. poll and epoll also report errors that were not asked for: a client that is not
    /// to be read from is then disconnected, because the event would be reported again and again.
    fn read(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get_mut(&id) else { return };
        let Some(session) = self.room.session_mut(id) else { return };
        if !session.wants_read() {
            return session.fail();
        }
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.received(id, &received, &buffer, now);
    }

    /// Sends what waits, without asking first: the kernel's buffer nearly always has space. Then
    /// updates the interest. An idle socket is always writable, so the server waits for *writable*
    /// only while bytes wait to be sent. The poller passes only changes on to the kernel, so a
    /// delivery that the kernel takes at once needs no call besides send. A client that exceeds its
    /// rate is not read from, and TCP flow control slows it down. An error here ends the session of
    /// the receiver, and not the session of the client that sent the line.
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
        let interest = Interest { read: session.wants_read(), write: session.wants_write() };
        if let Err(e) = self.poller.set(conn.as_fd(), id, interest) {
            self.options.log.repeated("WARN", &format!("watch client {id}: {e}"));
            session.fail();
        }
        if session.is_over() {
            self.clients.remove(&id); // close
            self.room.remove(id, now);
        }
    }
}
