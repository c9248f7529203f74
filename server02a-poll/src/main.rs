//! TCP event-driven server: one process, many clients, waiting for all of them in poll.
//!
//! Run: cargo run -p server02a-poll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02-select
//! Next: server02b-epoll
//! Diff base: server02-select
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
    let max_conns = args.max_conns.within(u64::MAX)?;
    let signals = Signals::new()?;
    let listener = args.server.listen()?;
    // A client may leave between poll and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut clients = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // An entry for each descriptor, whatever its number. poll does not overwrite the interest, so that C keeps the array
        // from round to round; here its entries borrow, and it is made anew.
        let (mut keys, mut fds) = (vec![SIGNALS], vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)]);
        // Full, or out of descriptors: the backlog holds who comes. Watched, it would be reported without end.
        if clients.accepting() {
            keys.push(LISTENER);
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        for (key, client) in clients.iter() {
            keys.push(key);
            match client.interest() {
                Interest::Read => fds.push(PollFd::new(client.as_fd(), PollFlags::POLLIN)),
                // Only while an answer is pending: an idle socket is always writable, and poll would never sleep.
                Interest::Write => fds.push(PollFd::new(client.as_fd(), PollFlags::POLLOUT)),
            }
        }
        // The only call that sleeps: until somebody is ready, or the first deadline of somebody who is not.
        match poll(&mut fds, PollTimeout::from(clients.timeout_ms())) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e).context("poll")?,
        }

        // Each answer stands where its question stood, and has to be looked at. POLLERR and POLLHUP come unasked.
        let ready = keys.iter().zip(&fds).filter(|(_, fd)| fd.any() != Some(false));
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
