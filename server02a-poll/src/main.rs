//! TCP event-driven server: one process serves all clients and waits for them in poll.
//!
//! Run: cargo run -p server02a-poll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02-select
//! Next: server02b-epoll
//! Diff base: server02-select
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
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

/// TCP event-driven server: one process, many clients, poll
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

    let mut clients: Clients<Socket> = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // poll writes only revents, so a C program reuses the array. Here the entries borrow the
        // descriptors of clients that the loop changes: each iteration builds the array again.
        let mut keys = vec![SIGNALS];
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        // While accept is paused the listener stays readable: if watched, the loop would spin.
        if clients.accepting() {
            keys.push(LISTENER);
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        for (key, client) in clients.iter() {
            keys.push(key);
            match client.interest() {
                Interest::Read => fds.push(PollFd::new(client.conn.as_fd(), PollFlags::POLLIN)),
                // Only while an answer is pending: an idle connection is always writable.
                Interest::Write => fds.push(PollFd::new(client.conn.as_fd(), PollFlags::POLLOUT)),
            }
        }
        // The only call that blocks: until a descriptor is ready, or until the next timeout.
        if let Err(e) = poll(&mut fds, PollTimeout::from(clients.timeout_ms())) {
            // Goes on after EINTR and ENOMEM.
            args.server.wait_failed("poll", e)?;
        }

        // poll reports how many entries are ready, but not which: test every revents. The kernel
        // also sets POLLERR and POLLHUP there, whatever events asks for.
        let is_ready = |fd: &PollFd| fd.any() != Some(false);
        let ready = keys.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(key, _)| *key);
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
