//! Chat on one thread, with a queue per client that select, poll or epoll empties.
//!
//! Run: cargo run -p v3-broadcast
//! Try: cargo run -p chat -- --nick alice
//! Prev: v2-select
//! Next: v4-async
//! Diff base: v2-select
//! Overload: refuse (beyond --max-conns a client gets `! server-full`)
//! Slow reader: kick (when --outbox is full, or after --write-timeout without progress; see --slow)

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
    let args = Args::parse();
    let signals = Signals::new()?;
    let mut server = Server::new(args)?;
    server.poller.set(signals.as_fd(), SIGNALS, Interest::READ).context("watch the signals")?;
    server.watch_listener();
    report::ready(&server.listener);

    let mut ready = Vec::new();
    while !server.room.is_done() {
        let deadline = server.room.deadline().into_iter().chain(server.backoff.until()).min();
        if let Err(e) = server.poller.wait(deadline, &mut ready) {
            server.backoff.sleep("wait", &e, &server.options.log)?; // EINTR or ENOMEM: call it again
        }
        let now = Instant::now();
        for Ready { token, read } in ready.drain(..) {
            match token {
                LISTENER => server.accept(now)?,
                SIGNALS => server.stop(&signals, now),
                id => {
                    if read {
                        server.read(id, now);
                    }
                    server.write(id, now);
                }
            }
        }
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
    fn new(args: Args) -> Result<Server, Failed> {
        let Args { mut options, poller, slow } = args;
        let poller = Poller::new(poller, &mut options.limits).context("poller")?;
        let room = options.room(slow)?;
        let listener = options.listen()?;
        // A client may disconnect before accept: accept must not block the other clients.
        listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        let (backoff, clients) = (Backoff::default(), BTreeMap::new());
        Ok(Server { options, poller, listener, backoff, room, clients, last_id: 0 })
    }

    /// Watches the listener while the server accepts. Otherwise connections stay in the backlog.
    fn watch_listener(&mut self) {
        let is_accepting = self.room.is_accepting() && self.backoff.until().is_none();
        let interest = if is_accepting { Interest::READ } else { Interest::NONE };
        if let Err(e) = self.poller.set(self.listener.as_fd(), LISTENER, interest) {
            let _ = self.backoff.pause("watch the listener", &e, &self.options.log); // tried again after the pause
        }
    }

    /// First signal: the final message for all clients, and no new clients. Second signal: the end.
    fn stop(&mut self, signals: &Signals, now: Instant) {
        if signals.read().is_ok() {
            let _ = self.listener.shutdown(Shutdown::Read);
            self.room.shut_down(now);
        }
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

    /// One read, so that no client delays the others for long.
    fn read(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get_mut(&id) else { return };
        let Some(session) = self.room.session_mut(id) else { return };
        if !session.wants_read() {
            return session.fail(); // poll and epoll also report an error that was not asked for
        }
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.received(id, &received, &buffer, now);
    }

    /// Sends what waits, without asking first: the kernel's buffer nearly always has space. Then
    /// updates the interest. An idle socket is always writable, so interest in *writable* exists
    /// only while bytes wait to be sent.
    fn write(&mut self, id: ClientId, now: Instant) {
        let Some(conn) = self.clients.get(&id) else { return };
        let Some(session) = self.room.session_mut(id) else { return };
        while session.wants_write() {
            let sent = conn.send(session.pending());
            if !session.sent(&sent, now) {
                break;
            }
        }
        if session.finish(now) {
            let _ = conn.shutdown(Shutdown::Write);
        }
        let mut interest = Interest { read: session.wants_read(), write: session.wants_write() };
        if session.is_over() {
            interest = Interest::NONE;
        }
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
