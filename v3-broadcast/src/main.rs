//! Chat as a real room needs it: a bounded queue per client, written out while it holds something; who does not read
//! goes. Waits with select, poll or epoll.
//!
//! Run: cargo run -p v3-broadcast
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v2-select
//! Next: v4-async
//! Diff base: v2-select
//! Overload: refuse (beyond --max-conns, `! server-full`)
//! Slow reader: kick (beyond --outbox, or after --write-timeout without progress; --slow shows what else there is)

mod epoll;
mod poll;
mod poller;
mod select;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use clap::Parser;
use common::report::Failed;
use common::sock::{Backoff, is_transient};
use lifecycle::Signals;
use poller::{Interest, Kind, Poller, Ready};
use socket2::Socket;

/// Tokens of the two descriptors that are no clients; those begin with 1.
const LISTENER: u64 = 0;
const SIGNALS: u64 = u64::MAX;

/// Chat: a bounded queue per client, and select, poll or epoll
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// Whom to ask who is ready
    #[arg(long, value_enum, default_value_t = Kind::Epoll)]
    poller: Kind,
    /// What happens to a reader that is slower than the room
    #[arg(long, value_enum, default_value_t)]
    slow: Slow,
}

struct Server {
    options: Options,
    poller: Poller,
    listener: Socket,
    backoff: Backoff,
    room: Room,
    clients: BTreeMap<ClientId, Socket>,
    last_id: ClientId,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = Signals::new()?;
    let mut server = Server::new(args)?;
    server.poller.set(signals.as_fd(), SIGNALS, Interest::READ).context("watch the signals")?;

    let mut ready = Vec::new();
    while !server.room.is_done() {
        server.watch_listener().context("watch the listener")?;
        let deadline = server.room.deadline().into_iter().chain(server.backoff.until()).min();
        server.poller.wait(deadline, &mut ready).context("wait")?;
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
        // Each client that something was said to is written to once, for all the lines of this round.
        while let Some(id) = server.room.next_changed() {
            server.write(id, now);
        }
    }
    server.options.log.cpu_time();
    Ok(())
}

impl Server {
    fn new(args: Args) -> Result<Server, Failed> {
        let Args { mut options, poller, slow } = args;
        let poller = Poller::new(poller, &mut options.limits).context("poller")?;
        let room = options.room(slow)?;
        let listener = options.listen()?;
        // A client may leave between select and accept: accept would then sleep, and the room with it.
        listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        let (backoff, clients) = (Backoff::default(), BTreeMap::new());
        Ok(Server { options, poller, listener, backoff, room, clients, last_id: 0 })
    }

    /// Watches the listener while another client may come in. Otherwise the kernel's backlog holds them.
    fn watch_listener(&mut self) -> io::Result<()> {
        let may_accept = self.room.has_place() && self.backoff.until().is_none();
        let interest = if may_accept { Interest::READ } else { Interest::NONE };
        self.poller.set(self.listener.as_fd(), LISTENER, interest)
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

    /// First signal: last words for all, and nobody new. Second signal: the end.
    fn stop(&mut self, signals: &Signals, now: Instant) {
        let _ = signals.read();
        let _ = self.listener.shutdown(Shutdown::Read);
        self.room.shut_down(now);
    }

    /// One read, so that nobody holds the loop for long.
    fn read(&mut self, id: ClientId, now: Instant) {
        let (Some(conn), Some(session)) = (self.clients.get_mut(&id), self.room.session_mut(id)) else { return };
        if !session.wants_read() {
            return session.abort(); // not asked for: the connection is broken
        }
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.received(id, &received, &buffer, now);
    }

    /// Sends what waits, without asking first: the kernel's buffer nearly always has room. Then tells the poller what
    /// this client needs: *write* only while something waits, since an idle socket is always writable.
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
        let interest = Interest { read: session.wants_read(), write: session.wants_write() };
        if let Err(e) = self.poller.set(conn.as_fd(), id, if session.is_over() { Interest::NONE } else { interest }) {
            self.options.log.repeated("WARN", &format!("watch a client: {e}"));
            session.abort();
        }
        if session.is_over() {
            self.clients.remove(&id); // close
            self.room.remove(id, now);
        }
    }
}
