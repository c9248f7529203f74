//! TCP event-driven server: one process, many clients, on a portable library: mio.
//!
//! Run: cargo run -p server02c-mio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02b-epoll
//! Next: server03-prefork
//! Diff base: server02b-epoll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use common::descriptors::MaxConns;
use lifecycle::{Server, Signals};
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Poll, Registry, Token};

const MAX_EVENTS: usize = 256;

/// TCP event-driven server: one process, many clients, mio
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
    // A client may leave between poll and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut listener = TcpListener::from_std(listener.into());
    // On Linux this is epoll_create1, and a registration EPOLL_CTL_ADD with EPOLLET; elsewhere kqueue or IOCP.
    let mut poll = Poll::new().context("mio Poll")?;
    let registry = poll.registry().try_clone().context("mio Registry")?;
    registry
        .register(&mut SourceFd(&signals.as_raw_fd()), Token(SIGNALS), mio::Interest::READABLE)
        .context("register")?;
    registry.register(&mut listener, Token(LISTENER), mio::Interest::READABLE).context("register")?;
    // Edge-triggered: who is ready is told once. Whoever has not said EAGAIN since then is not told again, so we remember.
    let (mut unfinished, mut queued) = (BTreeSet::new(), false);

    let mut clients = Clients::new(max_conns, &args.server);
    let mut events = Events::with_capacity(MAX_EVENTS);
    report::ready(&listener);
    while !clients.is_done() {
        let timeout = if unfinished.is_empty() { clients.timeout_ms() } else { Some(0) };
        match poll.poll(&mut events, timeout.map(|ms| Duration::from_millis(ms.into()))) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => Err(e).context("mio poll")?,
        }

        let ready = events.iter().map(|event| event.token().0);
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
            queued = accept(&registry, &listener, &mut clients, now)?;
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// Serves a client, and remembers it if it has not said EAGAIN. Not in one go: whoever never stops would starve the others.
fn serve(unfinished: &mut BTreeSet<usize>, clients: &mut Clients<TcpStream>, key: usize, now: Instant) {
    clients.serve(key, now, read_and_write);
    if clients.get(key).is_some_and(Client::is_unfinished) {
        unfinished.insert(key);
    }
}

/// One turn of a client that is ready, for what it waits for. No call sleeps: it fails with EAGAIN instead.
fn read_and_write(client: &mut Client<TcpStream>, now: Instant) -> io::Result<()> {
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
fn accept(
    registry: &Registry,
    listener: &TcpListener,
    clients: &mut Clients<TcpStream>,
    now: Instant,
) -> Result<bool, Failed> {
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(mut conn, peer)| {
            let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
            registry.register(&mut conn, Token(clients.next_key()), both)?;
            Ok((conn, peer))
        });
        match accepted {
            Ok((conn, peer)) => clients.insert(conn, Some(peer.into()), now),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => clients.accept_failed(&e)?,
        }
    }
    Ok(true)
}
