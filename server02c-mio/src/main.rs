//! TCP event-driven server: one process serves all clients, on the portable library mio.
//!
//! Run: cargo run -p server02c-mio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02b-epoll
//! Next: server03-prefork
//! Diff base: server02b-edge
//! Overload: refuse (over --max-conns a client gets `ERR busy`)

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::descriptors::MaxConns;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use lifecycle::{Server, Signals};
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Poll, Registry, Token};
use socket2::SockRef;

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
    // Any descriptor number can be watched: the only limit is RLIMIT_NOFILE.
    let max_conns = args.max_conns.within(u64::MAX)?;
    // A descriptor that is readable when SIGTERM or SIGINT is pending.
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may disconnect before accept: accept must not block the other clients.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut listener = TcpListener::from_std(listener.into());
    // On Linux Poll is an epoll instance, edge-triggered. On macOS it is a kqueue, on Windows IOCP.
    let mut poll = Poll::new().context("epoll_create1")?;
    let fd = signals.as_fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(SIGNALS), BOTH).context("epoll_ctl")?;
    poll.registry().register(&mut listener, Token(LISTENER), BOTH).context("epoll_ctl")?;
    let mut events = Events::with_capacity(256);
    // The kernel reports a change once. The program has to remember who is ready until a read, a
    // write or an accept returns EAGAIN.
    let (mut ready, mut listener_ready) = (BTreeSet::new(), false);

    let mut clients: Clients<TcpStream> = Clients::new(max_conns, &args.server);
    report::ready(&SockRef::from(&listener));
    while !clients.is_done() {
        // The only call that blocks: until a descriptor is ready, or until the next timeout.
        let timeout = if ready.is_empty() { clients.timeout_ms() } else { Some(0) };
        let timeout = timeout.map(|ms| Duration::from_millis(ms.into()));
        if let Err(e) = poll.poll(&mut events, timeout) {
            // Goes on after EINTR and ENOMEM.
            args.server.wait_failed("epoll_wait", e)?;
        }

        // mio reports the ready descriptors only, each with the token of its registration.
        ready.extend(events.iter().map(|event| event.token().0));
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
            listener_ready = accept(poll.registry(), &listener, &mut clients)?;
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// The most steps of one client in one iteration: a client that sends faster than the server reads
/// would otherwise starve the others.
const MAX_STEPS: usize = 4;

/// What to watch a descriptor for. mio is edge-triggered: a descriptor is reported once when it
/// becomes readable or writable, so it is watched for both from the start.
const BOTH: mio::Interest = mio::Interest::READABLE.add(mio::Interest::WRITABLE);

/// Accepts all connections in the backlog. accept returns EAGAIN when the backlog is empty. Returns
/// true if the listener stays ready, because accept is paused.
fn accept(
    registry: &Registry,
    listener: &TcpListener,
    clients: &mut Clients<TcpStream>,
) -> Result<bool, Failed> {
    let now = Instant::now();
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(mut conn, peer)| {
            registry.register(&mut conn, Token(clients.next_key()), BOTH)?;
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

/// Serves a ready client until EAGAIN, but by at most MAX_STEPS steps: then the client stays ready.
fn serve(clients: &mut Clients<TcpStream>, key: usize, ready: &mut BTreeSet<usize>, now: Instant) {
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
