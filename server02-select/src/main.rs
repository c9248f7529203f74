//! TCP event-driven server: one process, many clients, waiting for all of them in select.
//!
//! Run: cargo run -p server02-select
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server01-fork
//! Next: server02a-poll
//! Diff base: server00-iterative
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use common::descriptors::MaxConns;
use lifecycle::{Server, Signals};
use nix::errno::Errno;
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::Socket;

/// TCP event-driven server: one process, many clients, select
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // A set has a bit for each number below FD_SETSIZE. Beyond, FD_SET in C writes behind it, and panics here: with this
    // limit there is no such descriptor.
    let max_conns = args.max_conns.within(FD_SETSIZE as u64)?;
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may leave between select and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut clients = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // The interest sets are made anew each round: select overwrites them with who is ready.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        let mut watched = vec![(SIGNALS, signals.as_fd())];
        readable.insert(signals.as_fd());
        // Full, or out of descriptors: the backlog holds who comes. Watched, it would be reported without end.
        if clients.accepting() {
            watched.push((LISTENER, listener.as_fd()));
            readable.insert(listener.as_fd());
        }
        for (key, client) in clients.iter() {
            watched.push((key, client.as_fd()));
            match client.interest() {
                Interest::Read => readable.insert(client.as_fd()),
                // Only while an answer is pending: an idle socket is always writable, and select would never sleep.
                Interest::Write => writable.insert(client.as_fd()),
            }
        }
        // The only call that sleeps: until somebody is ready, or the first deadline of somebody who is not.
        let mut timeout = clients.timeout_ms().map(|ms| TimeVal::milliseconds(ms.into()));
        match select(None, &mut readable, &mut writable, None, timeout.as_mut()) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue, // the sets say nothing now
            Err(e) => Err(e).context("select")?,
        }

        // The bits that are left say who is ready: each has to be looked at, for one client or for all.
        let ready = watched.iter().filter(|(_, fd)| readable.contains(*fd) || writable.contains(*fd));
        let ready: Vec<usize> = ready.map(|(key, _)| *key).collect();
        // A deadline that has passed is one more way to be ready.
        let now = Instant::now();
        for key in ready.into_iter().chain(clients.expired(now)) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => accept(&listener, &mut clients, now)?,
                client => clients.serve(client, now, read_and_write),
            }
        }
    }

    args.server.log.cpu_time();
    Ok(())
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
fn accept(listener: &Socket, clients: &mut Clients<Socket>, now: Instant) -> Result<(), Failed> {
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // not inherited from the listener
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
