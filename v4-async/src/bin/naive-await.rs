//! The bug: one task sends each line, and awaits one receiver after the other. A receiver that does
//! not read fills its socket, the task waits for it, and no member gets any line any more.
//! v4-async has a queue and a writer task for each client.
//!
//! Run: cargo run -p v4-async --bin naive-await

#![forbid(unsafe_code)]

#[path = "../rt.rs"]
#[allow(dead_code)]
mod rt;
#[path = "../trace.rs"]
#[allow(dead_code)]
mod trace;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::rc::Rc;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::{self, Failed};
use common::sock::listen;
use mio::Interest;
use rt::{AsyncFd, Executor, Notify};
use socket2::Socket;

/// A chat with a bug: it awaits one receiver after the other
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let executor = Executor::new().context("epoll_create1")?;
    let room: &'static Room = Box::leak(Box::default());
    executor.spawn(broadcast(room));
    executor.block_on(accept(executor, room, args.listen)).context("epoll_wait")?
}

#[derive(Default)]
struct Room {
    clients: RefCell<BTreeMap<u64, Rc<AsyncFd<Socket>>>>,
    /// The lines that no client has been sent yet, and their senders.
    lines: RefCell<VecDeque<(u64, Vec<u8>)>>,
    changed: Notify,
}

async fn accept(rt: &'static Executor, room: &'static Room, at: Listen) -> Result<(), Failed> {
    let listener = AsyncFd::new(rt, listen(&at, 128)?).context("epoll_ctl")?;
    report::ready(&listener.io);
    for id in 1.. {
        let accepted = listener.async_io(Interest::READABLE, Socket::accept).await;
        let (conn, _) = accepted.context("accept")?;
        let conn = Rc::new(AsyncFd::new(rt, conn).context("epoll_ctl")?);
        room.clients.borrow_mut().insert(id, Rc::clone(&conn));
        rt.spawn(read(room, id, conn));
    }
    Ok(())
}

async fn read(room: &'static Room, id: u64, conn: Rc<AsyncFd<Socket>>) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) =
        conn.async_io(Interest::READABLE, |mut conn| conn.read(&mut buffer)).await
    {
        let bytes = buffer.get(..n).unwrap_or_default().to_vec();
        room.lines.borrow_mut().push_back((id, bytes));
        room.changed.notify_all();
    }
    room.clients.borrow_mut().remove(&id);
}

async fn broadcast(room: &'static Room) {
    loop {
        let Some((sender, line)) = room.lines.borrow_mut().pop_front() else {
            room.changed.notified().await;
            continue;
        };
        let receivers: Vec<_> = room.clients.borrow().clone().into_iter().collect();
        for (_, conn) in receivers.iter().filter(|(id, _)| *id != sender) {
            // The wrong await: until this receiver has space, all the others wait too.
            let _ = write_all(conn, &line).await;
        }
    }
}

async fn write_all(conn: &AsyncFd<Socket>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = conn.async_io(Interest::WRITABLE, |conn| conn.send(bytes)).await?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}
