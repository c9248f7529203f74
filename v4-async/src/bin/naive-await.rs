//! The bug beside its cure: whoever says something awaits each receiver in turn. No queue, no writer task, and with one
//! reader that has stopped reading the room stands still: its sender waits for ever, and then the next sender.
//!
//! Run: cargo run -p v4-async --bin naive-await
//! Cure: the outbox and the writer task of src/main.rs

#![forbid(unsafe_code)]

#[path = "../rt.rs"]
#[allow(dead_code)]
mod rt;
#[path = "../trace.rs"]
#[allow(dead_code)]
mod trace;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use clap::Parser;
use common::report::Failed;
use rt::{AsyncFd, Executor};
use socket2::Socket;

/// The chat that awaits each receiver: a bug, to be looked at
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
}

struct Server {
    room: RefCell<Room>,
    clients: RefCell<BTreeMap<ClientId, Rc<AsyncFd<Socket>>>>,
    last_id: Cell<ClientId>,
}

fn main() -> Result<(), Failed> {
    let Args { options } = Args::parse();
    let executor = Executor::new().context("epoll_create1")?;
    let room = RefCell::new(options.room(Slow::Grow)?);
    let server: &'static Server =
        Box::leak(Box::new(Server { room, clients: RefCell::default(), last_id: Cell::new(0) }));
    let listener = options.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let listener = AsyncFd::new(executor, listener).context("epoll_ctl")?;
    executor
        .block_on(async move {
            while let Ok((conn, peer)) = listener.when_ready(Socket::accept).await {
                if let Ok(conn) = conn.set_nonblocking(true).and_then(|()| AsyncFd::new(executor, conn)) {
                    let id = server.last_id.get() + 1;
                    server.last_id.set(id);
                    server.room.borrow_mut().connect(id, ip(&peer), Instant::now());
                    executor.spawn(client(server, id, Rc::new(conn)));
                }
            }
        })
        .context("epoll_wait")?;
    Ok(())
}

async fn client(server: &'static Server, id: ClientId, conn: Rc<AsyncFd<Socket>>) {
    server.clients.borrow_mut().insert(id, Rc::clone(&conn));
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = conn.when_ready(|mut conn| conn.read(&mut buffer)).await {
        server.room.borrow_mut().receive(id, buffer.get(..n).unwrap_or_default(), Instant::now());
        server.deliver().await;
    }
    server.clients.borrow_mut().remove(&id);
    server.room.borrow_mut().remove(id, Instant::now());
    server.deliver().await;
}

impl Server {
    /// The bug: what is said goes to one receiver, and when that one has taken it to the next.
    async fn deliver(&self) {
        loop {
            let Some(id) = self.room.borrow_mut().next_changed() else { return };
            let Some(conn) = self.clients.borrow().get(&id).cloned() else { continue };
            let Some(bytes) = self.room.borrow().session(id).map(|session| session.pending().to_vec()) else {
                continue;
            };
            if let Some(session) = self.room.borrow_mut().session_mut(id) {
                session.sent(bytes.len(), Instant::now());
            }
            let _ = write_all(&conn, &bytes).await;
        }
    }
}

async fn write_all(conn: &AsyncFd<Socket>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = conn.when_ready(|conn| conn.send(bytes)).await?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}
