//! TCP event-driven server: one process, many clients, and the kernel keeps the interest list: epoll.
//!
//! Run: cargo run -p server02b-epoll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02a-poll
//! Next: server02c-mio
//! Diff base: server02a-poll
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
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are not for clients: the dead ends, the standard streams, the listener, the signals.
const RESERVE: u64 = 32;
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

/// TCP event-driven server: one process, many clients, epoll
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients at once [default: 10000, or what the hard limit of descriptors leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_conns: Option<u64>,
    /// Edge-triggered: be told that something has come, not that it is there
    #[arg(long)]
    edge: bool,
    #[command(flatten)]
    log: Log,
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
struct Server {
    args: Args,
    max_conns: usize,
    epoll: Epoll,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<Socket>,
    /// By descriptor number, as the kernel names them in its events.
    clients: HashMap<u64, Client>,
    /// The clients that are no dead ends.
    served: usize,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
    /// Who has a turn in this round. Edge-triggered, also who may have more to do, and will not be reported again.
    ready: BTreeSet<u64>,
    /// The listener was reported, and accept has not said yet that nobody is left.
    knock: bool,
    /// Whether the listener is watched; edge-triggered it always is.
    is_watched: bool,
    /// No client's deadline is before this one.
    nearest: Option<Instant>,
    swept: Instant,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = signals()?;
    let max_conns = max_conns(args.max_conns)?;

    let listener = listen(&args.listen, BACKLOG)?;
    // A client may leave between epoll_wait and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    // From here on the interest list lives in the kernel: an entry is made once, and ends when its descriptor is closed.
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS)).context("epoll_ctl")?;
    epoll.add(&listener, EpollEvent::new(triggered(EpollFlags::EPOLLIN, args.edge), LISTENER)).context("epoll_ctl")?;

    let mut server = Server::new(args, max_conns, epoll, listener);
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
        for event in events.iter().take(n) {
            match event.data() {
                SIGNALS => server.stop(&signals, now),
                LISTENER => server.knock = true,
                client => drop(server.ready.insert(client)),
            }
        }
        server.sweep(now);
        server.serve(now);
        server.accept(if server.args.edge { ACCEPTS } else { n.min(ACCEPTS) }, now)?;
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

/// Level-triggered events are reported as long as they are true; edge-triggered ones when they become true.
fn triggered(interest: EpollFlags, edge: bool) -> EpollFlags {
    if edge { interest | EpollFlags::EPOLLET } else { interest }
}

/// What a client is watched for. Edge-triggered for both, once and for all: that costs no call, and no spin either.
fn interest(service: &Conn, edge: bool) -> EpollFlags {
    match service.next() {
        _ if edge => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        Next::Read => EpollFlags::EPOLLIN,
        // Only while an answer is pending: an idle socket is always writable, and epoll_wait would never sleep.
        Next::Write => EpollFlags::EPOLLOUT,
        Next::HangUp | Next::Close => EpollFlags::empty(),
    }
}

impl Server {
    fn new(args: Args, max_conns: usize, epoll: Epoll, listener: Socket) -> Self {
        Server {
            args,
            max_conns,
            epoll,
            listener: Some(listener),
            clients: HashMap::new(),
            served: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
            ready: BTreeSet::new(),
            knock: false,
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
        self.listener.as_ref().filter(|_| self.clients.len() < self.max_conns + DEAD_ENDS && self.deaf_until.is_none())
    }

    /// Level-triggered, a listener that is not accepted from would be reported without end: it is not watched then.
    /// Edge-triggered it was reported once and will not be again, and `knock` remembers it.
    fn watch_door(&mut self) {
        self.deaf_until = self.deaf_until.filter(|until| Instant::now() < *until);
        let is_open = self.open_door().is_some();
        if self.args.edge || is_open == self.is_watched {
            return;
        }
        self.watch_listener(if is_open { EpollFlags::EPOLLIN } else { EpollFlags::empty() });
        self.is_watched = is_open;
    }

    fn watch_listener(&self, interest: EpollFlags) {
        if let Some(listener) = &self.listener {
            // EPOLL_CTL_MOD allocates nothing: with a descriptor in the list it cannot fail.
            let _ = self.epoll.modify(listener, &mut EpollEvent::new(interest, LISTENER));
        }
    }

    /// How long the loop may sleep if nobody becomes ready: not at all while somebody still has something to do.
    fn patience(&self) -> EpollTimeout {
        if !self.ready.is_empty() || self.knock && self.open_door().is_some() {
            return EpollTimeout::ZERO;
        }
        let sweep = self.nearest.map(|at| at.max(self.swept + TICK));
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        let left = |at: Instant| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let first = sweep.into_iter().chain(self.deaf_until).chain(self.stop_at).min();
        first.map_or(EpollTimeout::NONE, |at| left(at).try_into().unwrap_or(EpollTimeout::MAX))
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
            let interest = interest(&client.service, self.args.edge);
            if self.args.edge {
                // Until the kernel has said EAGAIN there may be more, and no further edge for it. Not in one go:
                // whoever talks without a pause would be drained for ever, and the others starve.
                if !matches!(&outcome, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
                    self.ready.insert(key);
                }
            } else if interest != client.interest {
                client.interest = interest;
                let _ = self.epoll.modify(&client.conn, &mut EpollEvent::new(interest, key));
            }
        }
    }

    /// Takes clients from the queue: as guests while there are places, then as dead ends. An accept that finds nobody has
    /// made a socket and a file for nothing: level-triggered, so many as there were events, and who is left is reported
    /// again; edge-triggered, until it says that nobody is left.
    fn accept(&mut self, most: usize, now: Instant) -> Result<(), Failed> {
        for turn in 0..most {
            let Some(listener) = self.open_door().filter(|_| self.knock) else { break };
            // accept4 knows SOCK_NONBLOCK; socket2 does not, and asks fcntl. The listener's own mode is not inherited.
            let accepted = listener.accept().and_then(|(conn, peer)| conn.set_nonblocking(true).map(|()| (conn, peer)));
            let (conn, peer) = match accepted {
                Ok(accepted) => accepted,
                // Nobody is left.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.knock = false;
                    // An edge with nobody behind it. EPOLL_CTL_MOD makes the kernel look again, to be sure.
                    if self.args.edge && turn == 0 {
                        self.watch_listener(triggered(EpollFlags::EPOLLIN, true));
                    }
                    break;
                }
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
            let (key, interest) = (conn.as_raw_fd() as u64, interest(&service, self.args.edge));
            if let Err(e) = self.epoll.add(&conn, EpollEvent::new(interest, key)) {
                self.args.log.client(&peer, &Err(e.into()));
                continue;
            }
            self.served += usize::from(!dead_end);
            self.nearest = self.nearest.into_iter().chain([service.deadline()]).min();
            self.clients.insert(key, Client { conn, peer, service, dead_end, interest });
        }
        self.knock &= self.args.edge;
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
