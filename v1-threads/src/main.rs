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

use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Session, Slow, Step};
use common::report::{self, Failed};
use common::sock::{Backoff, is_transient};
use lifecycle::Signals;
use parking_lot::{Condvar, Mutex, MutexGuard};
use socket2::Socket;

fn main() -> Result<(), Failed> {
    let options = Options::parse("v1-threads", "Chat: a reader and a writer thread per client");
    // Before the first thread: every thread inherits the signal mask.
    let signals = Signals::new()?;
    let room = Mutex::new(options.room(Slow::Kick)?);
    let listener: &'static Socket = Box::leak(Box::new(options.listen()?));
    // It lives as long as the process, and so may each thread.
    let server: &'static _ = Box::leak(Box::new(Server { options, room, left: Condvar::new() }));
    spawn(move || server.watch_signals(&signals, listener)).context("clone")?;
    report::ready(listener);
    server.accept(listener)
}

impl Server {
    fn accept(&'static self, listener: &Socket) -> Result<(), Failed> {
        let mut backoff = Backoff::default();
        for id in 1.. {
            let accepted = listener.accept();
            let mut room = self.room.lock();
            // While the room is full, the other connections stay in the backlog.
            while !room.is_accepting() && !room.is_stopping() {
                self.left.wait(&mut room);
            }
            let (conn, peer) = match accepted {
                _ if room.is_stopping() => break,
                Ok(accepted) => accepted,
                // Out of descriptors or memory: accept would fail again at once, so pause.
                Err(e) => {
                    drop(room);
                    backoff.sleep("accept", &e, &self.options.log)?;
                    continue;
                }
            };
            let changed = room.connect(id, ip(&peer), Instant::now());
            drop(room);
            let client = Arc::new(Client { id, conn, changed });
            // Two threads, so that a client that does not read can still be read from.
            let (reader, writer) = (Arc::clone(&client), Arc::clone(&client));
            let reader = spawn(move || self.read(&reader));
            if let Err(e) = reader.and_then(|()| spawn(move || self.write(&writer))) {
                self.options.log.repeated("WARN", &format!("clone: {e}"));
                self.remove(&client);
            }
        }
        // The shutdown timeout. The end of main ends the process with all its threads.
        let end = Instant::now() + self.options.limits.grace();
        let mut room = self.room.lock();
        while !room.is_done() && !self.left.wait_until(&mut room, end).timed_out() {}
        self.options.log.cpu_time();
        Ok(())
    }

    /// A client's first thread. It blocks in recv, and never in a lock that a slow client holds.
    fn read(&self, client: &Client) {
        let (mut buffer, mut is_open) = ([0; 4096], true);
        while is_open {
            // 0 bytes mean the end of file. A client that closes its sending half leaves the room.
            let received = (&client.conn).read(&mut buffer);
            is_open = received.as_ref().map_or_else(is_transient, |n| *n > 0);
            let mut room = self.room.lock();
            room.received(client.id, &received, &buffer, Instant::now());
            wake(&mut room);
            // The rate limit: the thread does not read, and TCP flow control slows the client down.
            while room.session(client.id).is_some_and(Session::is_paused) {
                client.changed.wait(&mut room);
            }
        }
    }

    /// A client's second thread. It sends what waits for the client, and ends the connection.
    fn write(&self, client: &Client) {
        let _ = client.conn.set_write_timeout(Some(self.options.limits.write_timeout()));
        let mut room = self.room.lock();
        loop {
            match room.next_step(client.id, Instant::now()) {
                Step::Wake => wake(&mut room),
                Step::Write(_) => {
                    let bytes = room.pending(client.id).to_vec();
                    // The room is unlocked while this thread waits for a slow reader.
                    let sent = MutexGuard::unlocked(&mut room, || client.conn.send(&bytes));
                    room.sent(client.id, &sent, Instant::now());
                }
                Step::Finish => _ = client.conn.shutdown(Shutdown::Write),
                Step::Wait(until) => _ = client.changed.wait_until(&mut room, until),
                Step::Over => break,
            }
        }
        drop(room);
        self.remove(client);
    }

    fn remove(&self, client: &Client) {
        let _ = client.conn.shutdown(Shutdown::Both); // ends a read that waits
        let mut room = self.room.lock();
        room.remove(client.id, Instant::now());
        wake(&mut room);
        client.changed.notify_all(); // ends a pause of the reader
        self.left.notify_all();
    }

    /// First signal: the final message for all clients, and no new clients. Second signal: exit.
    fn watch_signals(&self, signals: &Signals, listener: &Socket) {
        let _ = signals.wait();
        self.room.lock().shut_down(Instant::now());
        wake(&mut self.room.lock());
        self.left.notify_all();
        let _ = listener.shutdown(Shutdown::Read); // accept fails from now on
        let _ = signals.wait();
        std::process::exit(0);
    }
}

/// Wakes the threads of the clients that have changed, and no other thread. The room is unlocked
/// meanwhile: a thread that wakes up needs the lock.
fn wake(room: &mut MutexGuard<Room<Arc<Condvar>>>) {
    let changed = room.take_changed();
    MutexGuard::unlocked(room, || changed.iter().for_each(|changed| _ = changed.notify_all()));
}

/// What all threads share. No thread waits for a client while it holds the lock of the room.
struct Server {
    options: Options,
    room: Mutex<Room<Arc<Condvar>>>,
    /// A client has left, or the server stops.
    left: Condvar,
}

/// What the two threads of a client share. The last owner closes the socket.
struct Client {
    id: ClientId,
    conn: Socket,
    /// The room has something for the client, or for its reader.
    changed: Arc<Condvar>,
}

/// `thread::spawn` panics if the kernel cannot create a thread. `Builder::spawn` returns an error.
/// A stack has 1 MiB of address space; memory is used only for the pages that the thread touches.
/// glibc keeps up to 40 MiB of stacks of ended threads for new threads.
fn spawn(thread: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().stack_size(1 << 20).spawn(thread).map(drop)
}
