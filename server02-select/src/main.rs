//! TCP event-driven server: one process serves all clients and waits for them in select.
//!
//! Run: cargo run -p server02-select
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server01-fork
//! Next: server02a-poll
//! Diff base: server00-iterative
//! Overload: refuse (over --max-conns a client gets `ERR busy`)

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::descriptors::MaxConns;
use common::report::{self, Failed};
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use lifecycle::{Server, Signals};
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
    // A set has one bit per descriptor number below FD_SETSIZE. In C, FD_SET of a larger number
    // writes past its end. With this RLIMIT_NOFILE the kernel hands out no larger number.
    let max_conns = args.max_conns.within(FD_SETSIZE as u64)?;
    // A descriptor that is readable when SIGTERM or SIGINT is pending.
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may disconnect before accept: accept must not block the other clients.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut clients: Clients<Socket> = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // select overwrites the sets with its result, so each iteration builds them again.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        let mut watched = vec![(SIGNALS, signals.as_fd())];
        readable.insert(signals.as_fd());
        // While accept is paused the listener stays readable: if watched, the loop would spin.
        if clients.accepting() {
            watched.push((LISTENER, listener.as_fd()));
            readable.insert(listener.as_fd());
        }
        for (key, client) in clients.iter() {
            watched.push((key, client.conn.as_fd()));
            match client.interest() {
                Interest::Read => readable.insert(client.conn.as_fd()),
                // Only while an answer is pending: an idle connection is always writable.
                Interest::Write => writable.insert(client.conn.as_fd()),
            }
        }
        // The only call that blocks: until a descriptor is ready, or until the next timeout.
        let mut timeout = clients.timeout_ms().map(|ms| TimeVal::milliseconds(ms.into()));
        if let Err(e) = select(None, &mut readable, &mut writable, None, timeout.as_mut()) {
            // Goes on after EINTR and ENOMEM. After an error the sets are unspecified.
            args.server.wait_failed("select", e)?;
            continue;
        }

        // select reports how many descriptors are ready, but not which: test every bit.
        let is_ready = |fd| readable.contains(fd) || writable.contains(fd);
        let ready = watched.iter().filter(|(_, fd)| is_ready(*fd)).map(|(key, _)| *key);
        let ready: Vec<usize> = ready.collect();
        // A client whose timeout has expired is served like a ready client.
        let now = Instant::now();
        for key in ready.into_iter().chain(clients.expired(now)) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => accept(&listener, &mut clients)?,
                client => clients.serve(client, now, read_and_write),
            }
        }
    }

    args.server.log.cpu_time();
    Ok(())
}

/// Accepts all connections in the backlog. accept returns EAGAIN when the backlog is empty.
fn accept(listener: &Socket, clients: &mut Clients<Socket>) -> Result<(), Failed> {
    let now = Instant::now();
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // on Linux not inherited from the listener
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
