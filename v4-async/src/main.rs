//! Chat on async/await: one thread, a reader task and a writer task per client, and an executor that can be read.
//!
//! Run: cargo run -p v4-async
//! Try: cargo run -p chat -- --nick alice
//! Prev: v3-broadcast
//! Next: none
//! Diff base: v1-threads
//! Overload: refuse (beyond --max-conns `! server-full`)
//! Slow reader: kick (`! slow-reader` when --outbox is full or nothing moves)

#![forbid(unsafe_code)]

mod rt;
mod trace;

use std::cell::RefCell;
use std::io::{self, Read};
use std::net::Shutdown;
use std::process;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use clap::Parser;
use common::report::Failed;
use common::sock::Backoff;
use common::descriptors::limit_descriptors;
use lifecycle::Signals;
use rt::{AsyncFd, Executor, Notify, yield_now};
use socket2::Socket;
use trace::TraceArgs;

/// Chat on async/await, with an executor of its own
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    trace: TraceArgs,
}

/// What all tasks share. One thread: `room` is borrowed between two awaits, never across one.
struct Server {
    options: Options,
    executor: &'static Executor,
    room: RefCell<Room>,
    /// Something has happened in the room. Nearly always it is for all, so all are woken, and each one looks.
    changed: Notify,
}

fn main() -> Result<(), Failed> {
    let Args { options, trace } = Args::parse();
    trace::start(&trace)?;
    let signals = Signals::new()?;
    limit_descriptors(u64::MAX)?; // the soft limit is low for the sake of select
    let room = RefCell::new(options.room(Slow::Kick)?);
    let listener = options.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let executor = Executor::new().context("epoll_create1")?;
    let server: &'static Server = Box::leak(Box::new(Server { options, executor, room, changed: Notify::default() }));
    let listener: &'static _ = Box::leak(Box::new(AsyncFd::new(executor, listener).context("epoll_ctl")?));
    let signals = AsyncFd::new(executor, signals).context("epoll_ctl")?;

    executor.spawn(watch_signals(server, signals, listener));
    executor.block_on(accept(server, listener)).context("epoll_wait")??;

    server.options.log.cpu_time();
    Ok(())
}

/// Two tasks for each client; after the stop, the grace for their last words.
async fn accept(server: &'static Server, listener: &AsyncFd<Socket>) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    for id in 1.. {
        let accepted = listener.when_ready(Socket::accept).await;
        while !server.room.borrow().has_place() && !server.room.borrow().is_stopping() {
            server.changed.notified().await; // meanwhile the kernel's backlog holds the others
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
        conn.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        let conn = Rc::new(AsyncFd::new(server.executor, conn).context("epoll_ctl")?);
        server.room.borrow_mut().connect(id, ip(&peer), Instant::now());
        server.executor.spawn(read(server, id, Rc::clone(&conn)));
        server.executor.spawn(write(server, id, conn));
    }
    let end = Instant::now() + server.options.limits.grace();
    while !server.room.borrow().is_done() && Instant::now() < end {
        server.executor.timeout_at(end, server.changed.notified()).await;
    }
    Ok(())
}

async fn read(server: &'static Server, id: ClientId, conn: Rc<AsyncFd<Socket>>) {
    while let Ok(1..) = conn.when_ready(|conn| server.receive(id, conn)).await {
        // The rate limit: who says too much is not read from, and TCP makes it wait.
        while server.room.borrow().session(id).is_some_and(|session| session.is_held()) {
            server.changed.notified().await;
        }
        yield_now().await; // one read, and then the others' turn
    }
}

async fn write(server: &'static Server, id: ClientId, conn: Rc<AsyncFd<Socket>>) {
    while let Some((wants_write, deadline)) = server.next_step(id, &conn.io) {
        if wants_write {
            server.executor.timeout_at(deadline, conn.when_ready(|conn| server.send(id, conn))).await;
        } else {
            server.executor.timeout_at(deadline, server.changed.notified()).await;
        }
    }
    let _ = conn.io.shutdown(Shutdown::Both); // ends a read that waits
    server.room.borrow_mut().remove(id, Instant::now());
    server.wake();
}

/// First signal: last words for all, and nobody new. Second signal: now.
async fn watch_signals(server: &'static Server, signals: AsyncFd<Signals>, listener: &AsyncFd<Socket>) {
    let _ = signals.when_ready(Signals::read).await;
    server.room.borrow_mut().shut_down(Instant::now());
    server.changed.notify_all();
    let _ = listener.io.shutdown(Shutdown::Read); // accept fails from now on
    let _ = signals.when_ready(Signals::read).await;
    process::exit(0);
}

impl Server {
    fn receive(&self, id: ClientId, mut conn: &Socket) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let received = conn.read(&mut buffer);
        self.room.borrow_mut().received(id, &received, &buffer, Instant::now());
        self.wake();
        received
    }

    fn send(&self, id: ClientId, conn: &Socket) -> io::Result<usize> {
        let mut room = self.room.borrow_mut();
        let sent = conn.send(room.session(id).map(|session| session.pending()).unwrap_or_default());
        room.sent(id, &sent, Instant::now());
        sent
    }

    /// Whether the client is to be written to, and when to look again; None at the end.
    fn next_step(&self, id: ClientId, conn: &Socket) -> Option<(bool, Instant)> {
        let now = Instant::now();
        self.room.borrow_mut().tick_one(id, now);
        self.wake();
        let mut room = self.room.borrow_mut();
        let session = room.session_mut(id)?;
        if session.finish(now) {
            let _ = conn.shutdown(Shutdown::Write);
        }
        (!session.is_over()).then(|| (session.wants_write(), session.deadline()))
    }

    fn wake(&self) {
        if self.room.borrow_mut().take_changed() {
            self.changed.notify_all();
        }
    }
}
