//! The loop of one worker: server02b-epoll's, level-triggered, on a listener that no other process has.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};
use socket2::{SockAddr, Socket};

use crate::Args;
use crate::board::Place;

/// Clients beyond the limit, there only to be told `ERR busy`.
const DEAD_ENDS: usize = 24;
/// Most clients accepted in one round: the others are to have their turn.
const ACCEPTS: usize = 64;
const MAX_EVENTS: usize = 256;
/// What the kernel hands back with an event: for a client its descriptor, and for the two others a name.
const SIGNALS: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
/// Deadlines are looked after at most this often: to look at each client after each event would cost what poll costs.
const TICK: Duration = Duration::from_millis(250);

/// The pool as one worker sees it.
#[derive(Clone, Copy)]
pub struct Crew {
    pub places: &'static [Place],
    pub me: &'static Place,
    /// Clients at once, of all workers together.
    pub max_conns: u64,
}

/// One client: its descriptor, and how far its conversation is.
struct Client {
    conn: Socket,
    peer: SockAddr,
    service: Conn,
    /// There only to be told `ERR busy`.
    dead_end: bool,
    /// What the kernel was last asked to watch.
    interest: EpollFlags,
}

/// What the loop knows between two rounds.
struct Server<'a> {
    args: &'a Args,
    crew: Crew,
    epoll: Epoll,
    /// None once a stop has come: the kernel gives new clients to the others, or refuses them if this was the last.
    listener: Option<Socket>,
    /// By descriptor number, as the kernel names them in its events.
    clients: HashMap<u64, Client>,
    /// The clients that are dead ends.
    dead_ends: usize,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
    /// Whether the listener is watched.
    is_watched: bool,
    /// No client's deadline is before this one.
    nearest: Option<Instant>,
    swept: Instant,
}

/// Serves until a stop, and the last client after it.
pub fn serve_clients(listener: Socket, crew: Crew, args: &Args) -> Result<(), Failed> {
    // Both made after the fork. An epoll instance watches the signals of the process that added the signalfd, so an
    // inherited one would report the parent's; and closing a descriptor does not take it from a list that others share.
    let signals = signals()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    // A client may leave between epoll_wait and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    // From here on the interest list lives in the kernel: an entry is made once, and ends when its descriptor is closed.
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS)).context("epoll_ctl")?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("epoll_ctl")?;

    let mut server = Server::new(args, crew, epoll, listener);
    let mut events = [EpollEvent::empty(); MAX_EVENTS];
    while !server.is_done() {
        server.watch_door();
        let n = match server.epoll.wait(&mut events, server.patience()) {
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(Failed::new(format!("epoll_wait: {e}"))),
        };

        // Only those who are ready are named, however many are not.
        let now = Instant::now();
        let mut knock = false;
        for event in events.iter().take(n) {
            match event.data() {
                SIGNALS => server.stop(&signals, now),
                LISTENER => knock = true,
                client => server.serve(client, now),
            }
        }
        server.sweep(now);
        // Last: a descriptor number that was closed in this round is not given away in it.
        if knock {
            server.accept(n.min(ACCEPTS), now)?;
        }
    }

    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    crew.me.cpu_us.fetch_add(cpu.as_micros() as u64, SeqCst);
    Ok(())
}

/// SIGTERM and SIGINT as a descriptor. They are blocked since before the fork, so that one sent right after it waits here.
fn signals() -> Result<SignalFd, Failed> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?)
}

/// What a client is watched for.
fn interest(service: &Conn) -> EpollFlags {
    match service.next() {
        Next::Read => EpollFlags::EPOLLIN,
        // Only while an answer is pending: an idle socket is always writable, and epoll_wait would never sleep.
        Next::Write => EpollFlags::EPOLLOUT,
        Next::HangUp | Next::Close => EpollFlags::empty(),
    }
}

impl<'a> Server<'a> {
    fn new(args: &'a Args, crew: Crew, epoll: Epoll, listener: Socket) -> Self {
        Server {
            args,
            crew,
            epoll,
            listener: Some(listener),
            clients: HashMap::new(),
            dead_ends: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
            is_watched: true,
            nearest: None,
            swept: Instant::now(),
        }
    }

    /// True when a stop has come, and the last client has left or the grace is over.
    fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|end| self.clients.is_empty() || Instant::now() >= end)
    }

    /// The listener, while another client may come in. Otherwise the backlog holds them.
    fn open_door(&self) -> Option<&Socket> {
        self.listener.as_ref().filter(|_| self.dead_ends < DEAD_ENDS && self.deaf_until.is_none())
    }

    /// A listener that is not accepted from would be reported without end: it is not watched then.
    fn watch_door(&mut self) {
        self.deaf_until = self.deaf_until.filter(|until| Instant::now() < *until);
        let is_open = self.open_door().is_some();
        if is_open == self.is_watched {
            return;
        }
        let interest = if is_open { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        if let Some(listener) = &self.listener {
            // EPOLL_CTL_MOD allocates nothing: with a descriptor in the list it cannot fail.
            let _ = self.epoll.modify(listener, &mut EpollEvent::new(interest, LISTENER));
        }
        self.is_watched = is_open;
    }

    /// How long the loop may sleep if nobody becomes ready.
    fn patience(&self) -> EpollTimeout {
        let sweep = self.nearest.map(|at| at.max(self.swept + TICK));
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        let left = |at: Instant| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let first = sweep.into_iter().chain(self.deaf_until).chain(self.stop_at).min();
        first.map_or(EpollTimeout::NONE, |at| left(at).try_into().unwrap_or(EpollTimeout::MAX))
    }

    /// First stop: nobody new, and reading ends; what was received is still answered. A second one is the parent's to
    /// judge: Ctrl-C reaches the whole group, and the parent's SIGTERM follows it.
    fn stop(&mut self, signals: &SignalFd, now: Instant) {
        while let Ok(Some(_)) = signals.read_signal() {}
        if self.stop_at.is_some() {
            return;
        }
        self.listener = None; // close: the only copy, so the kernel counts this listener out
        self.stop_at = Some(now + Duration::from_millis(self.args.limits.grace));
        for client in self.clients.values() {
            let _ = client.conn.shutdown(Shutdown::Read);
        }
    }

    /// Those whose time is over get a turn.
    fn sweep(&mut self, now: Instant) {
        if self.nearest.is_none_or(|at| now < at.max(self.swept + TICK)) {
            return;
        }
        let mut due = Vec::new();
        for (key, client) in self.clients.iter_mut().filter(|(_, client)| client.service.deadline() <= now) {
            client.service.expire(now);
            due.push(*key);
        }
        due.into_iter().for_each(|key| self.serve(key, now));
        self.swept = now;
        self.nearest = self.clients.values().map(|client| client.service.deadline()).min();
    }

    /// One turn for a client that is ready.
    fn serve(&mut self, key: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let outcome = client.turn(now);
        if client.is_over(&outcome, &self.args.log) {
            match client.dead_end {
                true => self.dead_ends -= 1,
                false => self.crew.me.release(),
            }
            self.clients.remove(&key); // close: it leaves the interest list too
            return;
        }
        self.nearest = self.nearest.into_iter().chain([client.service.deadline()]).min();
        let interest = interest(&client.service);
        if interest != client.interest {
            client.interest = interest;
            let _ = self.epoll.modify(&client.conn, &mut EpollEvent::new(interest, key));
        }
    }

    /// Takes clients from the queue: as guests while the pool has places, then as dead ends. At most `most`: an accept that
    /// finds nobody has made a socket for nothing, and who is left is reported again.
    fn accept(&mut self, most: usize, now: Instant) -> Result<(), Failed> {
        for _ in 0..most {
            let Some(listener) = self.open_door() else { break };
            // accept4 knows SOCK_NONBLOCK; socket2 does not, and asks fcntl. The listener's own mode is not inherited.
            let accepted = listener.accept().and_then(|(conn, peer)| conn.set_nonblocking(true).map(|()| (conn, peer)));
            let (conn, peer) = match accepted {
                Ok(accepted) => accepted,
                // Nobody is left.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.accept_failed(&e, now)?;
                    continue;
                }
            };
            let Crew { places, me, max_conns } = self.crew;
            me.connections.fetch_add(1, SeqCst);
            let dead_end = !me.admit(places, max_conns);
            let service = match dead_end {
                true => Conn::refused(Refusal::Busy, &self.args.limits, now),
                false => Conn::new(&self.args.limits, now),
            };
            let (key, interest) = (conn.as_raw_fd() as u64, interest(&service));
            if let Err(e) = self.epoll.add(&conn, EpollEvent::new(interest, key)) {
                self.args.log.client(&peer, &Err(e.into()));
                if !dead_end {
                    me.release();
                }
                continue;
            }
            self.dead_ends += usize::from(dead_end);
            self.nearest = self.nearest.into_iter().chain([service.deadline()]).min();
            self.clients.insert(key, Client { conn, peer, service, dead_end, interest });
        }
        Ok(())
    }

    /// Out of descriptors, the client stays queued and the listener stays readable: accepting again at once would
    /// spin, and a sleep would hold up everybody. So the listener is left alone for a while.
    fn accept_failed(&mut self, error: &io::Error, now: Instant) -> Result<(), Failed> {
        self.args.log.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => {}
            Verdict::Backoff => self.deaf_until = Some(now + self.backoff.next(now)),
            Verdict::Fatal => return Err(Failed::new(format!("accept: {error}"))),
        }
        Ok(())
    }
}

impl Client {
    /// One turn: at most a request is read and a block sent, so that nobody holds the loop for long. `WouldBlock` says
    /// that there is nothing to do before the kernel reports it ready again.
    fn turn(&mut self, now: Instant) -> io::Result<()> {
        if self.service.next() == Next::Read {
            let mut buffer = [0; 4096];
            let room = self.service.room().min(buffer.len());
            let n = self.conn.read(buffer.get_mut(..room).unwrap_or_default())?;
            match buffer.get(..n) {
                Some([]) | None => self.service.eof(),
                Some(bytes) => self.service.feed(bytes, now),
            }
        }
        // Tried without asking: the send buffer nearly always has room, and asking would cost a round.
        if self.service.next() == Next::Write {
            let n = self.conn.write(self.service.pending())?;
            self.service.consume(n, now);
        }
        if self.service.next() == Next::HangUp {
            self.conn.shutdown(Shutdown::Write)?;
            self.service.hung_up(now);
        }
        Ok(())
    }

    /// True if the conversation is over, which is then logged; the caller closes.
    fn is_over(&self, outcome: &io::Result<()>, log: &Log) -> bool {
        match outcome {
            Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                log.client(&self.peer, outcome);
            }
            _ if self.service.next() == Next::Close => log.client(&self.peer, &self.service.result()),
            _ => return false,
        }
        true
    }
}
