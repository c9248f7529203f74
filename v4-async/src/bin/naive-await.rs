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
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use chat::{ConnId, Event, Hub, Input, Limits, Next, Then, Why};
use clap::Parser;
use common::cli::Listen;
use common::report::Failed;
use common::sock::listen;
use rt::{Runtime, Sock};
use socket2::Socket;
use trace::{Trace, TraceArgs};

/// The chat that awaits each receiver: a bug, to be looked at
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    trace: TraceArgs,
}

struct Room {
    limits: Limits,
    rt: Rc<Runtime>,
    hub: RefCell<Hub>,
    socks: RefCell<BTreeMap<ConnId, Rc<Sock<Socket>>>>,
    number: Cell<ConnId>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let rt = Runtime::new(Trace::new(&args.trace)?).context("epoll_create1")?;
    let hub = RefCell::new(Hub::new(&args.limits, Instant::now(), SystemTime::now()));
    let (socks, number) = (RefCell::default(), Cell::new(0));
    let room = Rc::new(Room { limits: args.limits, rt: Rc::clone(&rt), hub, socks, number });
    let listener = listen(&args.listen, 1024)?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let listener = Sock::new(&rt, listener).context("epoll_ctl")?;
    rt.run(async move {
        while let Ok((conn, _)) = listener.input(Socket::accept).await {
            if let Ok(sock) = conn.set_nonblocking(true).and_then(|()| Sock::new(&room.rt, conn)) {
                room.number.set(room.number.get() + 1);
                room.rt.spawn(client(Rc::clone(&room), room.number.get(), Rc::new(sock)));
            }
        }
    })
    .context("epoll_wait")?;
    Ok(())
}

async fn client(room: Rc<Room>, id: ConnId, sock: Rc<Sock<Socket>>) {
    room.socks.borrow_mut().insert(id, Rc::clone(&sock));
    let mut input = Input::new(&room.limits, Instant::now());
    room.tell(id, Event::Connected(IpAddr::V4(Ipv4Addr::LOCALHOST))).await;
    let mut block = [0; 1024];
    while room.socks.borrow().contains_key(&id) {
        match input.next(Instant::now()) {
            Next::Tell(event) => room.tell(id, event).await,
            Next::Wait(until) => room.rt.sleep_until(until).await,
            Next::Read => match sock.input(|mut conn| conn.read(&mut block)).await {
                Ok(n @ 1..) => input.feed(block.get(..n).unwrap_or_default()),
                _ => break,
            },
        }
    }
    room.tell(id, Event::Gone(Why::Closed)).await;
    room.socks.borrow_mut().remove(&id);
}

impl Room {
    /// The bug: what is said goes to one receiver, and when that one has taken it to the next.
    async fn tell(&self, id: ConnId, event: Event) {
        let outs = self.hub.borrow_mut().handle(id, event, Instant::now());
        for out in outs {
            let receivers: Vec<ConnId> = self.hub.borrow().receivers(out.to).collect();
            for to in receivers {
                let Some(sock) = self.socks.borrow().get(&to).map(Rc::clone) else { continue };
                if write_all(&sock, &out.bytes).await.is_err() || out.then == Then::Close {
                    let _ = sock.io.shutdown(Shutdown::Both);
                    self.socks.borrow_mut().remove(&to);
                }
            }
        }
    }
}

async fn write_all(sock: &Sock<Socket>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = sock.output(|conn| conn.send(bytes)).await?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}
