//! The loop of one worker: server02b-epoll's, on a listener that no other process has.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::report::Failed;
use lifecycle::Signals;
use lifecycle::clients::{Client, Clients, Interest, LISTENER, SIGNALS};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use socket2::Socket;

use crate::Args;
use crate::board::Place;

const MAX_EVENTS: usize = 256;

/// The pool as one worker sees it.
#[derive(Clone, Copy)]
pub struct Crew {
    pub places: &'static [Place],
    pub me: &'static Place,
    /// Clients at once, of all workers together.
    pub max_conns: u64,
}

/// Serves until a stop, and the last client after it.
pub fn serve_clients(listener: Socket, crew: Crew, args: &Args) -> Result<(), Failed> {
    // Both made after the fork. An epoll instance watches the signals of the process that added the signalfd, so an
    // inherited one would report the parent's; and closing a descriptor does not take it from a list that others share.
    // Ctrl-C reaches the whole group, but it is the parent's to judge, and its SIGTERM follows.
    let signals = Signals::of(&[Signal::SIGTERM])?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    // A client may leave between epoll_wait and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    epoll.add(&signals, event(Interest::Read, SIGNALS)).context("epoll_ctl")?;
    let mut listens = false;

    let mut clients = Clients::new(crew.max_conns as usize, &args.server);
    let mut events = [EpollEvent::empty(); MAX_EVENTS];
    while !clients.is_done() {
        crew.me.held.store(clients.served() as u64, SeqCst);
        // The listener too has an entry, as long as somebody can be accepted: it would be reported without end.
        if clients.accepting() != listens {
            let changed = match listens {
                true => epoll.delete(&listener),
                false => epoll.add(&listener, event(Interest::Read, LISTENER)),
            };
            changed.context("epoll_ctl")?;
            listens = !listens;
        }
        let n = match epoll.wait(&mut events, EpollTimeout::from(clients.timeout_ms())) {
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e).context("epoll_wait")?,
        };

        // Those who are ready, and nobody else.
        let ready = events.iter().take(n).map(|event| event.data() as usize);
        let now = Instant::now();
        for key in ready.chain(clients.expired(now)) {
            match key {
                SIGNALS => clients.stop(&signals, &listener, now),
                LISTENER => accept(&epoll, &listener, &mut clients, crew, now)?,
                client => serve(&epoll, &mut clients, client, now),
            }
        }
    }

    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    crew.me.cpu_us.fetch_add(cpu.as_micros() as u64, SeqCst);
    Ok(())
}

/// Level-triggered: reported as long as it is true.
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

/// Accepts everybody who waits, as guests while the pool has places. EAGAIN says that nobody is left.
fn accept(
    epoll: &Epoll,
    listener: &Socket,
    clients: &mut Clients<Socket>,
    crew: Crew,
    now: Instant,
) -> Result<(), Failed> {
    while clients.accepting() {
        let accepted = listener.accept().and_then(|(conn, peer)| {
            conn.set_nonblocking(true)?; // not inherited from the listener
            epoll.add(&conn, event(Interest::Read, clients.next_key()))?;
            Ok((conn, peer))
        });
        crew.me.held.store(clients.served() as u64, SeqCst);
        match accepted {
            Ok((conn, peer)) if crew.me.admits(crew.places, crew.max_conns) => clients.insert(conn, Some(peer), now),
            Ok((conn, peer)) => clients.reject(conn, Some(peer), now),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => clients.accept_failed(&e)?,
        }
    }
    Ok(())
}
