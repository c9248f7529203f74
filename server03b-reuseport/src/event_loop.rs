//! The event loop of one worker: the loop of server02b-epoll, on a listener that no other process
//! has.

use std::io::{self, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::report::Failed;
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use lifecycle::{Server, Signals};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use socket2::Socket;

use crate::board::Worker;

/// Serves clients until SIGTERM has arrived and the last client is closed. Each worker runs this
/// loop, and no worker waits for another one.
pub fn serve_clients(listener: Socket, worker: &Worker, server: &Server) -> Result<(), Failed> {
    // A descriptor that is readable when SIGTERM is pending. Ctrl-C sends SIGINT to all processes
    // of the terminal, and then the parent sends SIGTERM.
    let signals = Signals::of(&[Signal::SIGTERM])?;
    // A client may disconnect before accept: accept must not block the other clients.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    // The kernel keeps the interest list: a descriptor is added once, and close removes it. Each
    // worker makes its own list after fork: all processes that inherit a list share it.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(&signals, event(Interest::Read, SIGNALS)).context("epoll_ctl")?;
    epoll.add(&listener, event(Interest::Read, LISTENER)).context("epoll_ctl")?;
    let (mut events, mut is_watched) = ([EpollEvent::empty(); 256], true);

    let mut clients: Clients<Socket> = Clients::new(worker.max_conns, server);
    while !clients.is_done() {
        // The other workers need this count: --max-conns is the limit of the whole pool.
        worker.mine.set_clients(clients.served());
        // While accept is paused the listener stays readable: if watched, the loop would spin.
        if clients.accepting() != is_watched {
            let changed = match is_watched {
                true => epoll.delete(&listener),
                false => epoll.add(&listener, event(Interest::Read, LISTENER)),
            };
            match changed {
                Ok(()) => is_watched = !is_watched,
                Err(e) => clients.accept_failed(&e.into())?, // ENOMEM: try again after a pause
            }
        }
        // The only call that blocks: until a descriptor is ready, or until the next timeout.
        let n = match epoll.wait(&mut events, EpollTimeout::from(clients.timeout_ms())) {
            Ok(n) => n,
            // Goes on after EINTR and ENOMEM.
            Err(e) => server.wait_failed("epoll_wait", e).map(|()| 0)?,
        };

        // epoll_wait reports the ready descriptors only, each with the key that epoll_ctl gave it.
        let ready = events.iter().take(n).map(|event| event.data() as usize);
        // A client whose timeout has expired is served like a ready client.
        let now = Instant::now();
        for key in ready.chain(clients.expired(now)) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER if clients.accepting() => accept(&epoll, &listener, &mut clients, worker)?,
                LISTENER => {} // a signal in this iteration has shut the listener down
                client => serve(&epoll, &mut clients, client, now),
            }
        }
    }

    // The CPU time of this process. The parent prints it beside the count of connections: equal
    // counts are not equal work.
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    worker.mine.cpu_ms.fetch_add(cpu.unwrap_or_default().as_millis() as usize, SeqCst);
    Ok(())
}

/// Level-triggered: epoll_wait reports a descriptor in each call while it is ready.
fn event(interest: Interest, key: usize) -> EpollEvent {
    match interest {
        Interest::Read => EpollEvent::new(EpollFlags::EPOLLIN, key as u64),
        // Only while an answer is pending: an idle connection is always writable.
        Interest::Write => EpollEvent::new(EpollFlags::EPOLLOUT, key as u64),
    }
}

/// Accepts one connection. While the backlog has more, epoll_wait reports the listener again.
fn accept(
    epoll: &Epoll,
    listener: &Socket,
    clients: &mut Clients<Socket>,
    worker: &Worker,
) -> Result<(), Failed> {
    let accepted = listener.accept().and_then(|(conn, peer)| {
        conn.set_nonblocking(true)?; // on Linux not inherited from the listener
        epoll.add(&conn, event(Interest::Read, clients.next_key()))?;
        Ok((conn, peer))
    });
    let now = Instant::now();
    match accepted {
        Ok((conn, peer)) if worker.admits(clients.served()) => {
            clients.insert(conn, Some(peer), now)
        }
        // All workers together have --max-conns clients.
        Ok((conn, peer)) => clients.reject(conn, Some(peer), now),
        Err(e) => clients.accept_failed(&e)?, // goes on after EAGAIN and EINTR
    }
    Ok(())
}

/// Serves a ready client by one step, and tells the kernel if the interest has changed.
fn serve(epoll: &Epoll, clients: &mut Clients<Socket>, key: usize, now: Instant) {
    let before = clients.get(key).map(Client::interest);
    clients.serve(key, now, read_and_write);
    if let Some(client) = clients.get(key).filter(|client| Some(client.interest()) != before) {
        let _ = epoll.modify(&client.conn, &mut event(client.interest(), key));
    }
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
