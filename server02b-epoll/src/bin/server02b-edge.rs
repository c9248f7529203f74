//! TCP event-driven server: one process, many clients, edge-triggered epoll: told once.
//!
//! Run: cargo run -p server02b-epoll --bin server02b-edge
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02b-epoll
//! Next: server02c-mio
//! Diff base: server02b-epoll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use common::descriptors::MaxConns;
use lifecycle::{Server, Signals};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

const MAX_EVENTS: usize = 256;

/// TCP event-driven server: one process, many clients, epoll, edge-triggered
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let max_conns = args.max_conns.within(u64::MAX)?;
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may leave between epoll_wait and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    // Edge-triggered: who is ready is told once. Whoever has not said EAGAIN since then is not told again, so we remember.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(&signals, event(EpollFlags::EPOLLIN, SIGNALS)).context("epoll_ctl")?;
    epoll.add(&listener, event(EpollFlags::EPOLLIN, LISTENER)).context("epoll_ctl")?;
    let (mut unfinished, mut queued) = (BTreeSet::new(), false);

    let mut clients = Clients::new(max_conns, &args.server);
    let mut events = [EpollEvent::empty(); MAX_EVENTS];
    report::ready(&listener);
    while !clients.is_done() {
        let timeout = if unfinished.is_empty() { clients.timeout_ms() } else { Some(0) };
        let n = match epoll.wait(&mut events, EpollTimeout::from(timeout)) {
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e).context("epoll_wait")?,
        };

        let ready = events.iter().take(n).map(|event| event.data() as usize);
        // A deadline that has passed is one more way to be ready.
        let now = Instant::now();
        unfinished.extend(ready.chain(clients.expired(now)));
        for key in mem::take(&mut unfinished) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => queued = true,
                client => serve(&mut unfinished, &mut clients, client, now),
            }
        }
        if queued {
            queued = accept(&epoll, &listener, &mut clients, now)?;
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// Edge-triggered: reported when it becomes true.
fn event(interest: EpollFlags, key: usize) -> EpollEvent {
    EpollEvent::new(interest | EpollFlags::EPOLLET, key as u64)
}

/// Serves a client, and remembers it if it has not said EAGAIN. Not in one go: whoever never stops would starve the others.
fn serve(unfinished: &mut BTreeSet<usize>, clients: &mut Clients<Socket>, key: usize, now: Instant) {
    clients.serve(key, now, read_and_write);
    if clients.get(key).is_some_and(Client::is_unfinished) {
        unfinished.insert(key);
    }
}

/// One turn of a client that is ready, for what it waits for. No call sleeps: it fails with EAGAIN instead.
fn read_and_write(client: &mut Client<Socket>, now: Instant) -> io::Result<()> {
    if client.interest() == Interest::Read {
        let n = client.conn.read(client.service.space())?; // 0: end of file
        client.service.received(n, now);
    }
    // Tried without asking: the send buffer nearly always has room, and asking would cost a round.
    if client.interest() == Interest::Write {
        let n = client.conn.write(client.service.pending())?; // perhaps a part of it
        client.service.consume(n, now);
    }
    Ok(())
}

/// Accepts everybody who waits: EAGAIN says that nobody is left. True if somebody may be, and nobody can be accepted.
fn accept(epoll: &Epoll, listener: &Socket, clients: &mut Clients<Socket>, now: Instant) -> Result<bool, Failed> {
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // not inherited from the listener
            // For both, once and for all: that costs no call later, and no spin either.
            epoll.add(&conn, event(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, clients.next_key()))?;
            Ok((conn, peer))
        });
        match accepted {
            Ok((conn, peer)) => clients.insert(conn, Some(peer), now),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => clients.accept_failed(&e)?,
        }
    }
    Ok(true)
}
