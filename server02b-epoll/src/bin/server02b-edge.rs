//! TCP event-driven server: one process serves all clients, edge-triggered epoll.
//!
//! Run: cargo run -p server02b-epoll --bin server02b-edge
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02b-epoll
//! Next: server02c-mio
//! Diff base: server02b-epoll
//! Overload: refuse (over --max-conns a client gets `ERR busy`)

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::descriptors::MaxConns;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use lifecycle::{Server, Signals};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

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
    // Any descriptor number can be watched: the only limit is RLIMIT_NOFILE.
    let max_conns = args.max_conns.within(u64::MAX)?;
    // A descriptor that is readable when SIGTERM or SIGINT is pending.
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may disconnect before accept: accept must not block the other clients.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    // The kernel keeps the interest list: a descriptor is added once, and close removes it.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(&signals, event(SIGNALS)).context("epoll_ctl")?;
    epoll.add(&listener, event(LISTENER)).context("epoll_ctl")?;
    let mut events = [EpollEvent::empty(); 256];
    // The kernel reports a change once. The program has to remember who is ready until a read, a
    // write or an accept returns EAGAIN.
    let (mut ready, mut listener_ready) = (BTreeSet::new(), false);

    let mut clients: Clients<Socket> = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // The only call that blocks: until a descriptor is ready, or until the next timeout.
        let timeout = if ready.is_empty() { clients.timeout_ms() } else { Some(0) };
        let n = match epoll.wait(&mut events, EpollTimeout::from(timeout)) {
            Ok(n) => n,
            // Goes on after EINTR and ENOMEM.
            Err(e) => args.server.wait_failed("epoll_wait", e).map(|()| 0)?,
        };

        // epoll_wait reports the ready descriptors only, each with the key that epoll_ctl gave it.
        ready.extend(events.iter().take(n).map(|event| event.data() as usize));
        // A client whose timeout has expired is served like a ready client.
        let now = Instant::now();
        ready.extend(clients.expired(now));
        for key in mem::take(&mut ready) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => listener_ready = true,
                client => serve(&mut clients, client, &mut ready, now),
            }
        }
        if listener_ready {
            listener_ready = accept(&epoll, &listener, &mut clients)?;
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// The most steps of one client in one iteration: a client that sends faster than the server reads
/// would otherwise starve the others.
const MAX_STEPS: usize = 4;

/// The key that epoll_wait returns for a descriptor. Edge-triggered: a descriptor is reported once
/// when it becomes readable or writable, so it is watched for both from the start.
fn event(key: usize) -> EpollEvent {
    let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
    EpollEvent::new(both | EpollFlags::EPOLLET, key as u64)
}

/// Accepts all connections in the backlog. accept returns EAGAIN when the backlog is empty. Returns
/// true if the listener stays ready, because accept is paused.
fn accept(epoll: &Epoll, listener: &Socket, clients: &mut Clients<Socket>) -> Result<bool, Failed> {
    let now = Instant::now();
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // on Linux not inherited from the listener
            epoll.add(&conn, event(clients.next_key()))?;
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

/// Serves a ready client until EAGAIN, but by at most MAX_STEPS steps: then the client stays ready.
fn serve(clients: &mut Clients<Socket>, key: usize, ready: &mut BTreeSet<usize>, now: Instant) {
    for _ in 0..MAX_STEPS {
        clients.serve(key, now, read_and_write);
        if !clients.get(key).is_some_and(Client::is_unfinished) {
            return;
        }
    }
    ready.insert(key);
}

/// Serves a ready client by one step: reads at most one request and sends at most one block of the
/// answer. Neither call blocks: they return EAGAIN.
fn read_and_write(client: &mut Client<impl Read + Write>, now: Instant) -> io::Result<()> {
    if client.interest() == Interest::Read {
        let n = client.conn.read(client.service.space())?; // 0 means end of file
        client.service.received(n, now);
    }
    // Write at once: the send buffer nearly always has room, and waiting costs an iteration.
    if client.interest() == Interest::Write {
        let n = client.conn.write(client.service.pending())?; // may take only a part
        client.service.consume(n, now);
    }
    Ok(())
}
