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
//! This is v1-threads, function by function: a task where v1 has a thread, `.await` where a thread of
//! v1 blocks, a `RefCell` where v1 has a mutex. `rt.rs` is what makes the tasks run.

#![forbid(unsafe_code)]

mod rt;
mod trace;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::process;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Session, Slow};
use clap::Parser;
use common::descriptors::limit_descriptors;
use common::report::{self, Failed};
use common::sock::Backoff;
use lifecycle::Signals;
use rt::{AsyncFd, Executor, Interest, Notify, yield_now};
use socket2::Socket;
use trace::TraceArgs;

/// Chat with async/await, and our own executor
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    trace: TraceArgs,
}

fn main() -> Result<(), Failed> {
    let Args { options, trace } = Args::parse();
    trace::start(&trace)?;
    let signals = Signals::new()?;
    limit_descriptors(u64::MAX)?; // the soft limit is low because of select
    let room = RefCell::new(options.room(Slow::Kick)?);
    let listener = options.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let executor = Executor::new().context("epoll_create1")?;
    let server =
        Server { options, executor, room, clients: RefCell::default(), left: Notify::default() };
    let server: &'static Server = Box::leak(Box::new(server));
    let listener = Rc::new(AsyncFd::new(executor, listener).context("epoll_ctl")?);
    let signals = AsyncFd::new(executor, signals).context("epoll_ctl")?;
    executor.spawn(watch_signals(server, signals, Rc::clone(&listener)));
    report::ready(&listener.io);

    executor.block_on(accept(server, listener)).context("epoll_wait")??;

    server.options.log.cpu_time();
    Ok(())
}

/// What all tasks share. There is one thread: `room` is borrowed between two awaits, never across one.
struct Server {
    options: Options,
    executor: &'static Executor,
    room: RefCell<Room>,
    clients: RefCell<BTreeMap<ClientId, Rc<Client>>>,
    /// A client has left, or the server stops.
    left: Notify,
}

/// What the two tasks of a client share.
struct Client {
    id: ClientId,
    conn: AsyncFd<Socket>,
    /// The client's session has changed, see `Room::next_changed`.
    changed: Notify,
}

async fn accept(server: &'static Server, listener: Rc<AsyncFd<Socket>>) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    for id in 1.. {
        let accepted = listener.async_io(Interest::READABLE, Socket::accept).await;
        // Meanwhile the other connections stay in the backlog.
        while !server.room.borrow().is_accepting() && !server.room.borrow().is_stopping() {
            server.left.notified().await;
        }
        let (conn, peer) = match accepted {
            _ if server.room.borrow().is_stopping() => break,
            Ok(accepted) => accepted,
            Err(e) => {
                let pause = backoff.pause("accept", &e, &server.options.log)?;
                server.executor.sleep_until(Instant::now() + pause).await;
                continue;
            }
        };
        let conn =
            match conn.set_nonblocking(true).and_then(|()| AsyncFd::new(server.executor, conn)) {
                Ok(conn) => conn,
                Err(e) => {
                    server.options.log.repeated("WARN", &format!("epoll_ctl: {e}"));
                    continue;
                }
            };
        let client = Rc::new(Client { id, conn, changed: Notify::default() });
        server.clients.borrow_mut().insert(id, Rc::clone(&client));
        server.room.borrow_mut().connect(id, ip(&peer), Instant::now());
        server.executor.spawn(read(server, Rc::clone(&client)));
        server.executor.spawn(write(server, client));
    }
    let (end, mut sleep) =
        (Instant::now() + server.options.limits.grace(), server.executor.sleep());
    while !server.room.borrow().is_done() && Instant::now() < end {
        sleep.timeout_at(end, server.left.notified()).await;
    }
    Ok(())
}

async fn read(server: &'static Server, client: Rc<Client>) {
    loop {
        let receive = |conn: &Socket| server.receive(&client, conn);
        let received = client.conn.async_io(Interest::READABLE, receive).await;
        if !received.is_ok_and(|n| n > 0) {
            return;
        }
        // The rate limit: the task does not read, and TCP flow control slows the client down.
        while server.room.borrow().session(client.id).is_some_and(Session::is_paused) {
            client.changed.notified().await;
        }
        yield_now().await; // after each read the other tasks run
    }
}

async fn write(server: &'static Server, client: Rc<Client>) {
    let mut sleep = server.executor.sleep();
    loop {
        let now = Instant::now();
        server.room.borrow_mut().tick_one(client.id, now);
        server.wake();
        let mut room = server.room.borrow_mut();
        let Some(session) = room.session_mut(client.id).filter(|session| !session.is_over()) else {
            break;
        };
        let deadline = session.deadline();
        if session.wants_write() {
            drop(room); // the other tasks use the room while this task waits for a slow reader
            let send = |conn: &Socket| server.send(&client, conn);
            sleep.timeout_at(deadline, client.conn.async_io(Interest::WRITABLE, send)).await;
        } else if session.finish(now) {
            let _ = client.conn.io.shutdown(Shutdown::Write);
        } else {
            drop(room);
            sleep.timeout_at(deadline, client.changed.notified()).await;
        }
    }
    server.remove(&client);
}

/// First signal: the final message for all clients, and no new clients. Second signal: exit.
async fn watch_signals(
    server: &'static Server,
    signals: AsyncFd<Signals>,
    listener: Rc<AsyncFd<Socket>>,
) {
    let _ = signals.async_io(Interest::READABLE, Signals::read).await;
    server.room.borrow_mut().shut_down(Instant::now());
    server.wake();
    server.left.notify_all();
    let _ = listener.io.shutdown(Shutdown::Read); // accept fails from now on
    let _ = signals.async_io(Interest::READABLE, Signals::read).await;
    process::exit(0);
}

impl Server {
    fn receive(&self, client: &Client, mut conn: &Socket) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.borrow_mut().received(client.id, &received, &buffer, Instant::now());
        self.wake();
        if received.as_ref().is_ok_and(|n| *n < buffer.len()) {
            client.conn.clear_readable();
        }
        received
    }

    fn send(&self, client: &Client, conn: &Socket) -> io::Result<usize> {
        let mut room = self.room.borrow_mut();
        let Some(session) = room.session_mut(client.id) else { return Ok(0) };
        let sent = conn.send(session.pending());
        session.sent(&sent, Instant::now());
        sent
    }

    /// Wakes the tasks of the clients that have changed, and no other task.
    fn wake(&self) {
        let mut room = self.room.borrow_mut();
        while let Some(id) = room.next_changed() {
            self.clients
                .borrow()
                .get(&id)
                .into_iter()
                .for_each(|client| client.changed.notify_all());
        }
    }

    fn remove(&self, client: &Client) {
        let _ = client.conn.io.shutdown(Shutdown::Both); // ends a read that waits
        self.clients.borrow_mut().remove(&client.id);
        self.room.borrow_mut().remove(client.id, Instant::now());
        self.wake();
        client.changed.notify_all(); // ends a pause of the reader
        self.left.notify_all();
    }
}
