//! Chat with async/await: one thread, a reader and a writer task per client, and our own executor.
//!
//! Run: cargo run -p v4-async
//! Try: cargo run -p chat -- --nick alice
//! Prev: v3-broadcast
//! Next: none
//! Diff base: v1-threads
//! Overload: refuse (beyond --max-conns a client gets `! server-full`)
//! Slow reader: kick (when --outbox is full, or after --write-timeout without progress)
//!
//! This is v1-threads, function by function: a task where v1 has a thread, `.await` where a thread
//! of v1 blocks, a `RefCell` where v1 has a mutex. `rt.rs` is what makes the tasks run.

#![forbid(unsafe_code)]

mod rt;
mod trace;

use std::cell::RefCell;
use std::io::{self, Read};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Session, Slow, Step};
use common::descriptors::limit_descriptors;
use common::report::{self, Failed};
use common::sock::Backoff;
use lifecycle::Signals;
use mio::Interest;
use rt::{AsyncFd, Executor, Notify, yield_now};
use socket2::Socket;

fn main() -> Result<(), Failed> {
    let options = trace::start()?; // with --trace and --slow-motion
    let signals = Signals::new()?;
    limit_descriptors(u64::MAX)?; // the soft limit is low because of select
    let room = RefCell::new(options.room(Slow::Kick)?);
    let rt = Executor::new().context("epoll_create1")?;
    let listener = AsyncFd::new(rt, options.listen()?).context("epoll_ctl")?;
    let listener: &'static _ = Box::leak(Box::new(listener));
    let signals = AsyncFd::new(rt, signals).context("epoll_ctl")?;
    let server = Server { options, rt, room, left: Notify::default() };
    // It lives as long as the process, and so may each task.
    let server: &'static _ = Box::leak(Box::new(server));
    rt.spawn(server.watch_signals(signals, listener));
    report::ready(&listener.io);
    rt.block_on(server.accept(listener)).context("epoll_wait")?
}

impl Server {
    async fn accept(&'static self, listener: &AsyncFd<Socket>) -> Result<(), Failed> {
        let mut backoff = Backoff::default();
        for id in 1.. {
            let accepted = listener.async_io(Interest::READABLE, Socket::accept).await;
            // While the room is full, the other connections stay in the backlog.
            while !self.room.borrow().is_accepting() && !self.room.borrow().is_stopping() {
                self.left.notified().await;
            }
            // Adds the socket to epoll. If that fails, only this client is disconnected.
            let register = |(conn, peer)| Ok((AsyncFd::new(self.rt, conn)?, peer));
            let (conn, peer) = match accepted.and_then(register) {
                _ if self.room.borrow().is_stopping() => break,
                Ok(accepted) => accepted,
                // Out of descriptors or memory: accept would fail again at once, so pause.
                Err(e) => {
                    let pause = backoff.pause("accept", &e, &self.options.log)?;
                    // A client that leaves gives a descriptor back, and ends the pause.
                    self.rt
                        .timeout_at(&mut None, Instant::now() + pause, self.left.notified())
                        .await;
                    continue;
                }
            };
            let changed = self.room.borrow_mut().connect(id, ip(&peer), Instant::now());
            // Two tasks, so that a client that does not read can still be read from.
            let client = Rc::new(Client { id, conn, changed });
            self.rt.spawn(self.read(Rc::clone(&client)));
            self.rt.spawn(self.write(client));
        }
        // The shutdown timeout. The end of block_on drops all tasks.
        let end = Instant::now() + self.options.limits.grace();
        while !self.room.borrow().is_done() && Instant::now() < end {
            self.rt.timeout_at(&mut None, end, self.left.notified()).await;
        }
        self.options.log.cpu_time();
        Ok(())
    }

    /// A client's first task. It awaits the client's bytes, and never a receiver.
    async fn read(&self, client: Rc<Client>) {
        let receive = |conn: &Socket| self.receive(&client, conn);
        while let Ok(1..) = client.conn.async_io(Interest::READABLE, receive).await {
            // The rate limit: the task does not read, and TCP flow control slows the client down.
            while self.room.borrow().session(client.id).is_some_and(Session::is_paused) {
                client.changed.notified().await;
            }
            yield_now().await; // after each read the other tasks run
        }
    }

    /// The call that `read` awaits. The buffer is on the stack, and not in the task, where it would
    /// cost 4 KiB for each idle client. 0 bytes mean the end of file. A client that has closed its
    /// sending half leaves the room.
    fn receive(&self, client: &Client, mut conn: &Socket) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.borrow_mut().received(client.id, &received, &buffer, Instant::now());
        wake(&mut self.room.borrow_mut());
        client.conn.short_read(received.as_ref().is_ok_and(|n| *n < buffer.len()));
        received
    }

    /// A client's second task. It sends what waits for the client, and ends the connection.
    async fn write(&self, client: Rc<Client>) {
        let send =
            |conn: &Socket| self.room.borrow_mut().send_with(client.id, |bytes| conn.send(bytes));
        // The deadline of an idle client stays the same, so its entry in the timer stays too.
        let mut timer = None;
        loop {
            // The room is borrowed between two awaits, and never during one.
            let step = self.room.borrow_mut().next_step(client.id, Instant::now());
            match step {
                Step::Wake => wake(&mut self.room.borrow_mut()),
                Step::Write(until) => {
                    let sent = client.conn.async_io(Interest::WRITABLE, send);
                    self.rt.timeout_at(&mut timer, until, sent).await;
                }
                Step::Finish => _ = client.conn.io.shutdown(Shutdown::Write),
                Step::Wait(until) => {
                    self.rt.timeout_at(&mut timer, until, client.changed.notified()).await;
                }
                Step::Over => break,
            }
        }
        self.remove(&client);
    }

    fn remove(&self, client: &Client) {
        let _ = client.conn.io.shutdown(Shutdown::Both); // ends a read that waits
        self.room.borrow_mut().remove(client.id, Instant::now());
        wake(&mut self.room.borrow_mut());
        client.changed.notify_all(); // ends a pause of the reader
        self.left.notify_all();
    }

    /// First signal: the final message for all clients, and no new clients. Second signal: exit.
    async fn watch_signals(&self, signals: AsyncFd<Signals>, listener: &AsyncFd<Socket>) {
        let _ = signals.async_io(Interest::READABLE, Signals::read).await;
        self.room.borrow_mut().shut_down(Instant::now());
        wake(&mut self.room.borrow_mut());
        self.left.notify_all();
        let _ = listener.io.shutdown(Shutdown::Read); // accept fails from now on
        let _ = signals.async_io(Interest::READABLE, Signals::read).await;
        std::process::exit(0);
    }
}

/// Wakes the tasks of the clients that have changed, and no other task. A woken task runs when the
/// calling task reaches its next await, so the borrow of the room has ended by then.
fn wake(room: &mut Room<Rc<Notify>>) {
    room.take_changed().iter().for_each(|changed| changed.notify_all());
}

/// What all tasks share. There is one thread, so a `RefCell` is enough.
struct Server {
    options: Options,
    rt: &'static Executor,
    room: RefCell<Room<Rc<Notify>>>,
    /// A client has left, or the server stops.
    left: Notify,
}

/// What the two tasks of a client share. The last owner closes the socket.
struct Client {
    id: ClientId,
    conn: AsyncFd<Socket>,
    /// The room has something for the client, or for its reader.
    changed: Rc<Notify>,
}
