//! TCP event-driven server: one process, many clients, on a portable library: mio.
//!
//! Run: cargo run -p server02c-mio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02b-epoll
//! Next: server03-prefork
//! Diff base: server02b-epoll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use socket2::SockAddr;

const BACKLOG: i32 = 1024;
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are not for clients: the dead ends, the standard streams, the listener, the signals.
const RESERVE: u64 = 32;
/// Clients beyond the limit, there only to be told `ERR busy`.
const DEAD_ENDS: usize = 24;
/// Most clients accepted in one round: the others are to have their turn.
const ACCEPTS: usize = 64;
const MAX_EVENTS: usize = 256;
/// What mio hands back with an event: for a client its descriptor, and for the two others a name.
const SIGNALS: Token = Token(usize::MAX - 1);
const LISTENER: Token = Token(usize::MAX - 2);
/// Deadlines are looked after at most this often: to look at each client after each event would cost what poll costs.
const TICK: Duration = Duration::from_millis(250);

/// TCP event-driven server: one process, many clients, mio
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients at once [default: 10000, or what the hard limit of descriptors leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_conns: Option<u64>,
    #[command(flatten)]
    log: Log,
}

/// One client: its descriptor, and how far its conversation is.
struct Client {
    conn: TcpStream,
    peer: SockAddr,
    service: Conn,
    /// There only to be told `ERR busy`.
    dead_end: bool,
}

/// What the loop knows between two rounds.
struct Server {
    args: Args,
    max_conns: usize,
    poll: Poll,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<TcpListener>,
    /// By descriptor number, as mio names them in its events.
    clients: HashMap<Token, Client>,
    /// The clients that are no dead ends.
    served: usize,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
    /// Who has a turn in this round: who was reported, and who may have more to do and will not be reported again.
    ready: BTreeSet<Token>,
    /// The listener was reported, and accept has not said yet that nobody is left.
    knock: bool,
    /// No client's deadline is before this one.
    nearest: Option<Instant>,
    swept: Instant,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = signals()?;
    let max_conns = max_conns(args.max_conns)?;

    let listener = listen(&args.listen, BACKLOG)?;
    // mio never makes a descriptor non-blocking that it has not opened itself.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut listener = TcpListener::from_std(listener.into());
    // On Linux this is epoll_create1, and a registration is EPOLL_CTL_ADD with EPOLLET; elsewhere kqueue or IOCP.
    let poll = Poll::new().context("mio Poll")?;
    let registry = poll.registry();
    registry.register(&mut listener, LISTENER, Interest::READABLE).context("register")?;
    // What mio has no type for, here a signalfd, comes in by its number.
    registry.register(&mut SourceFd(&signals.as_raw_fd()), SIGNALS, Interest::READABLE).context("register")?;

    let mut server = Server::new(args, max_conns, poll, listener);
    let mut events = Events::with_capacity(MAX_EVENTS);
    while !server.is_done() {
        let patience = server.patience();
        match server.poll.poll(&mut events, patience) {
            Ok(()) => {}
            // mio passes it on, so that a program can look at its flags.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failed::new(format!("mio poll: {e}"))),
        }

        // An event is a hint, and may be one too many: nobody is trusted to be ready, and everybody gets a turn.
        let now = Instant::now();
        for event in &events {
            match event.token() {
                SIGNALS => server.stop(&signals, now),
                LISTENER => server.knock = true,
                client => drop(server.ready.insert(client)),
            }
        }
        server.sweep(now);
        server.serve(now);
        server.accept(events.iter().count().clamp(1, ACCEPTS), now)?;
    }

    server.args.log.cpu_time();
    Ok(())
}

/// SIGTERM and SIGINT as a descriptor. Blocked before the ready line, so that one sent right after it waits here.
fn signals() -> Result<SignalFd, Failed> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?)
}

/// How many clients at once. The soft limit of descriptors is low for the sake of programs that use select, and any
/// process may raise its own to the hard one.
fn max_conns(wanted: Option<u64>) -> Result<usize, Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?;
    let most = hard.saturating_sub(RESERVE);
    match wanted.unwrap_or(MAX_CONNS.min(most)) {
        n if (1..=most).contains(&n) => Ok(n as usize),
        n => {
            Err(Failed::new(format!("--max-conns {n}: the hard limit of {hard} descriptors leaves {most} for clients")))
        }
    }
}

impl Server {
    fn new(args: Args, max_conns: usize, poll: Poll, listener: TcpListener) -> Self {
        Server {
            args,
            max_conns,
            poll,
            listener: Some(listener),
            clients: HashMap::new(),
            served: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
            ready: BTreeSet::new(),
            knock: false,
            nearest: None,
            swept: Instant::now(),
        }
    }

    /// True when a stop has come, and the last client has left or the grace is over.
    fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|end| self.clients.is_empty() || Instant::now() >= end)
    }

    /// The listener, while another client may come in. Otherwise the backlog holds them.
    fn open_door(&mut self) -> Option<&mut TcpListener> {
        self.listener.as_mut().filter(|_| self.clients.len() < self.max_conns + DEAD_ENDS && self.deaf_until.is_none())
    }

    /// How long the loop may sleep if nobody becomes ready: not at all while somebody still has something to do.
    fn patience(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
        if !self.ready.is_empty() || self.knock && self.open_door().is_some() {
            return Some(Duration::ZERO);
        }
        let sweep = self.nearest.map(|at| at.max(self.swept + TICK));
        // mio rounds up to what the system can measure.
        let first = sweep.into_iter().chain(self.deaf_until).chain(self.stop_at).min();
        first.map(|at| at.saturating_duration_since(now))
    }

    /// First stop: nobody new, and reading ends; what was received is still answered. Second stop: the end.
    fn stop(&mut self, signals: &SignalFd, now: Instant) {
        while let Ok(Some(_)) = signals.read_signal() {
            if self.stop_at.is_some() {
                self.stop_at = Some(now);
                continue;
            }
            self.listener = None; // close: new clients are refused
            self.stop_at = Some(now + Duration::from_millis(self.args.limits.grace));
            for client in self.clients.values() {
                let _ = client.conn.shutdown(Shutdown::Read);
            }
            self.ready.extend(self.clients.keys());
        }
    }

    /// Those whose time is over get a turn.
    fn sweep(&mut self, now: Instant) {
        if self.nearest.is_none_or(|at| now < at.max(self.swept + TICK)) {
            return;
        }
        for (key, client) in self.clients.iter_mut().filter(|(_, client)| client.service.deadline() <= now) {
            client.service.expire(now);
            self.ready.insert(*key);
        }
        self.swept = now;
        self.nearest = self.clients.values().map(|client| client.service.deadline()).min();
    }

    /// One turn for each client that is ready.
    fn serve(&mut self, now: Instant) {
        for key in mem::take(&mut self.ready) {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            let outcome = client.turn(now);
            if client.is_over(&outcome, &self.args.log) {
                self.served -= usize::from(!client.dead_end);
                self.clients.remove(&key); // close: it leaves the interest list too
                continue;
            }
            self.nearest = self.nearest.into_iter().chain([client.service.deadline()]).min();
            // Until the kernel has said EAGAIN there may be more, and no further edge for it. Not in one go:
            // whoever talks without a pause would be drained for ever, and the others starve.
            if !matches!(&outcome, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
                self.ready.insert(key);
            }
        }
    }

    /// Takes clients from the queue: as guests while there are places, then as dead ends. An accept that finds nobody has
    /// made a socket and a file for nothing: so many as there were events, and who is left is reported again.
    fn accept(&mut self, most: usize, now: Instant) -> Result<(), Failed> {
        for _ in 0..most {
            let knock = self.knock;
            let Some(listener) = self.open_door().filter(|_| knock) else { break };
            // accept4 with SOCK_NONBLOCK and SOCK_CLOEXEC.
            let (mut conn, peer) = match listener.accept() {
                Ok((conn, addr)) => (conn, SockAddr::from(addr)),
                // Nobody is left.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.accept_failed(&e, now)?;
                    continue;
                }
            };
            let dead_end = self.served >= self.max_conns;
            let service = match dead_end {
                true => Conn::refused(Refusal::Busy, &self.args.limits, now),
                false => Conn::new(&self.args.limits, now),
            };
            let key = Token(conn.as_raw_fd() as usize);
            // For both directions, once and for all.
            if let Err(e) = self.poll.registry().register(&mut conn, key, Interest::READABLE | Interest::WRITABLE) {
                self.args.log.client(&peer, &Err(e));
                continue;
            }
            self.served += usize::from(!dead_end);
            self.nearest = self.nearest.into_iter().chain([service.deadline()]).min();
            self.clients.insert(key, Client { conn, peer, service, dead_end });
        }
        if self.knock && self.open_door().is_some() {
            self.knock = false;
            // A new registration makes the kernel look again, and report who is left with a new edge.
            if let Some(listener) = self.listener.as_mut() {
                self.poll.registry().reregister(listener, LISTENER, Interest::READABLE).context("reregister")?;
            }
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
