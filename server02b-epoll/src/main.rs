//! TCP event-driven server: one process, many clients, and the kernel keeps the interest list: epoll.
//!
//! Run: cargo run -p server02b-epoll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02a-poll
//! Next: server02c-mio
//! Diff base: server02a-poll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::io::{self, ErrorKind, Read, Write};
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

/// TCP event-driven server: one process, many clients, epoll
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
    // The interest list lives in the kernel: an entry is made once, and ends when its descriptor is closed.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(&signals, event(Interest::Read, SIGNALS)).context("epoll_ctl")?;
    let mut listens = false;

    let mut clients = Clients::new(max_conns, &args.server);
    let mut events = [EpollEvent::empty(); MAX_EVENTS];
    report::ready(&listener);
    while !clients.is_done() {
        // Full, or out of descriptors: the backlog holds who comes. Watched, it would be reported without end.
        if clients.accepting() != listens {
            let changed = match listens {
                true => epoll.delete(&listener),
                false => epoll.add(&listener, event(Interest::Read, LISTENER)),
            };
            changed.context("epoll_ctl")?;
            listens = !listens;
        }
        // The only call that sleeps: until somebody is ready, or the first deadline of somebody who is not.
        let n = match epoll.wait(&mut events, EpollTimeout::from(clients.timeout_ms())) {
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e).context("epoll_wait")?,
        };

        // Those who are ready, and nobody else.
        let ready = events.iter().take(n).map(|event| event.data() as usize);
        // A deadline that has passed is one more way to be ready.
        let now = Instant::now();
        for key in ready.chain(clients.expired(now)) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => accept(&epoll, &listener, &mut clients, now)?,
                client => serve(&epoll, &mut clients, client, now),
            }
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// Level-triggered: reported as long as it is true. Writable only while an answer is pending: an idle socket always is.
fn event(interest: Interest, key: usize) -> EpollEvent {
    match interest {
        Interest::Read => EpollEvent::new(EpollFlags::EPOLLIN, key as u64),
        Interest::Write => EpollEvent::new(EpollFlags::EPOLLOUT, key as u64),
    }
}

/// Serves a client, and tells the kernel if it now waits for something else. A close ends its entry.
fn serve(epoll: &Epoll, clients: &mut Clients<Socket>, key: usize, now: Instant) {
    let before = clients.get(key).map(Client::interest);
    clients.serve(key, now, read_and_write);
    if let Some(client) = clients.get(key).filter(|client| Some(client.interest()) != before) {
        let _ = epoll.modify(&client.conn, &mut event(client.interest(), key));
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

/// Accepts everybody who waits. The listener does not sleep either: EAGAIN says that nobody is left.
fn accept(epoll: &Epoll, listener: &Socket, clients: &mut Clients<Socket>, now: Instant) -> Result<(), Failed> {
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // not inherited from the listener
            epoll.add(&conn, event(Interest::Read, clients.next_key()))?;
            Ok((conn, peer))
        });
        match accepted {
            Ok((conn, peer)) => clients.insert(conn, Some(peer), now),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => clients.accept_failed(&e)?,
        }
    }
    Ok(())
}
