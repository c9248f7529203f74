//! Chat with threads: a reader and a writer thread per client, and the room behind a mutex.
//!
//! Run: cargo run -p v1-threads
//! Try: cargo run -p chat -- --nick alice
//! Prev: v0-processes
//! Next: v2-select
//! Diff base: none
//! Overload: refuse (beyond --max-conns a client gets `! server-full`)
//! Slow reader: kick (when --outbox is full, or after --write-timeout without progress)
//!
//! v4-async is this program, function by function: a task where v1 has a thread, `.await` where a
//! thread of v1 blocks, a `RefCell` where v1 has a mutex.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::process;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Session, Slow};
use common::report::{self, Failed};
use common::sock::{Backoff, is_transient};
use lifecycle::Signals;
use parking_lot::{Condvar, Mutex, MutexGuard};
use socket2::Socket;

fn main() -> Result<(), Failed> {
    let options = Options::parse("v1-threads", "Chat: a reader and a writer thread per client");
    let signals = Signals::new()?;
    let room = Mutex::new(options.room(Slow::Kick)?);
    let listener = Arc::new(options.listen()?);
    let server = Server { options, room, clients: Mutex::default(), left: Condvar::new() };
    let server: &'static Server = Box::leak(Box::new(server));
    let stopped = Arc::clone(&listener);
    spawn(move || server.watch_signals(&signals, &stopped)).context("clone")?;
    report::ready(&listener);

    server.accept(&listener)?;

    server.options.log.cpu_time();
    Ok(())
}

/// What all threads share. No thread waits for a client while it holds the lock of `room`.
struct Server {
    options: Options,
    room: Mutex<Room>,
    clients: Mutex<BTreeMap<ClientId, Arc<Client>>>,
    /// A client has left, or the server stops.
    left: Condvar,
}

/// What the two threads of a client share.
struct Client {
    id: ClientId,
    conn: Socket,
    /// The client's session has changed, see `Room::next_changed`.
    changed: Condvar,
}

/// Bytes of address space for each stack. A thread uses memory only for the pages that it touches.
/// glibc keeps up to 40 MiB of stacks of ended threads, and the last 16 KiB of each stay in memory:
/// fewer large stacks than small ones fit into 40 MiB.
const STACK: usize = 1024 * 1024;

/// `thread::spawn` panics if the kernel cannot create a thread; `Builder::spawn` returns an error.
fn spawn(thread: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().stack_size(STACK).spawn(thread).map(drop)
}

impl Server {
    fn accept(&'static self, listener: &Socket) -> Result<(), Failed> {
        let mut backoff = Backoff::default();
        for id in 1.. {
            let accepted = listener.accept();
            let mut room = self.room.lock();
            // Meanwhile the other connections stay in the backlog.
            while !room.is_accepting() && !room.is_stopping() {
                self.left.wait(&mut room);
            }
            let (conn, peer) = match accepted {
                _ if room.is_stopping() => break,
                Ok(accepted) => accepted,
                Err(e) => {
                    drop(room);
                    backoff.sleep("accept", &e, &self.options.log)?;
                    continue;
                }
            };
            let client = Arc::new(Client { id, conn, changed: Condvar::new() });
            self.clients.lock().insert(id, Arc::clone(&client));
            room.connect(id, ip(&peer), Instant::now());
            drop(room);
            let (reader, writer) = (Arc::clone(&client), Arc::clone(&client));
            let read = spawn(move || self.read(&reader));
            if let Err(e) = read.and_then(|()| spawn(move || self.write(&writer))) {
                self.options.log.repeated("WARN", &format!("clone: {e}"));
                self.remove(&client);
            }
        }
        let end = Instant::now() + self.options.limits.grace();
        let mut room = self.room.lock();
        while !room.is_done() && Instant::now() < end {
            self.left.wait_until(&mut room, end);
        }
        Ok(())
    }

    fn read(&self, client: &Client) {
        let mut buffer = [0; 4096];
        loop {
            let received = (&client.conn).read(&mut buffer);
            let mut room = self.room.lock();
            room.received(client.id, &received, &buffer, Instant::now());
            self.wake(&mut room);
            if !received.map_or_else(|e| is_transient(&e), |n| n > 0) {
                return;
            }
            // The rate limit: the thread does not read, and TCP flow control slows the client down.
            while room.session(client.id).is_some_and(Session::is_paused) {
                client.changed.wait(&mut room);
            }
        }
    }

    fn write(&self, client: &Client) {
        let _ = client.conn.set_write_timeout(Some(self.options.limits.write_timeout()));
        let mut room = self.room.lock();
        loop {
            let now = Instant::now();
            room.tick_one(client.id, now);
            self.wake(&mut room);
            let session = room.session_mut(client.id);
            let Some(session) = session.filter(|session| !session.is_over()) else { break };
            let deadline = session.deadline();
            if session.wants_write() {
                let bytes = session.pending().to_vec();
                // The other threads use the room while this thread waits for a slow reader.
                let sent = MutexGuard::unlocked(&mut room, || client.conn.send(&bytes));
                let session = room.session_mut(client.id);
                session.into_iter().for_each(|session| _ = session.sent(&sent, Instant::now()));
            } else if session.finish(now) {
                let _ = client.conn.shutdown(Shutdown::Write);
            } else {
                client.changed.wait_until(&mut room, deadline);
            }
        }
        drop(room);
        self.remove(client);
    }

    /// First signal: the final message for all clients, and no new clients. Second signal: exit.
    fn watch_signals(&self, signals: &Signals, listener: &Socket) {
        let _ = signals.wait();
        let mut room = self.room.lock();
        room.shut_down(Instant::now());
        self.wake(&mut room);
        drop(room);
        self.left.notify_all();
        let _ = listener.shutdown(Shutdown::Read); // accept fails from now on
        let _ = signals.wait();
        process::exit(0);
    }

    /// Wakes the threads of the clients that have changed, and no other thread. The lock is given
    /// back first: a thread that wakes up needs it.
    fn wake(&self, room: &mut MutexGuard<Room>) {
        let mut changed = Vec::new();
        while let Some(id) = room.next_changed() {
            changed.push(id);
        }
        if !changed.is_empty() {
            MutexGuard::unlocked(room, || {
                let clients = self.clients.lock();
                changed.iter().filter_map(|id| clients.get(id)).for_each(|client| {
                    client.changed.notify_all();
                });
            });
        }
    }

    fn remove(&self, client: &Client) {
        let _ = client.conn.shutdown(Shutdown::Both); // ends a read that waits
        self.clients.lock().remove(&client.id);
        let mut room = self.room.lock();
        room.remove(client.id, Instant::now());
        self.wake(&mut room);
        drop(room);
        client.changed.notify_all(); // ends a pause of the reader
        self.left.notify_all();
    }
}
