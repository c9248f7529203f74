//! TCP event-driven server: one process, many clients, waiting for all of them in poll.
//!
//! Run: cargo run -p server02a-poll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02-select
//! Next: server02b-epoll
//! Diff base: server02-select
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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

/// TCP event-driven server: one process, many clients, poll
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
    conn: Socket,
    peer: SockAddr,
    service: Conn,
    /// There only to be told `ERR busy`.
    dead_end: bool,
}

/// What the loop knows between two rounds.
struct Server {
    args: Args,
    max_conns: usize,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<Socket>,
    clients: Vec<Client>,
    /// The clients that are no dead ends.
    served: usize,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = signals()?;
    let max_conns = max_conns(args.max_conns)?;

    let listener = listen(&args.listen, BACKLOG)?;
    // A client may leave between poll and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut server = Server::new(args, max_conns, listener);
    while !server.is_done() {
        let timeout = server.patience();
        // The interest is an array, as long as there are clients: no number is too large for it. poll writes only what
        // it found, so that C keeps the array from round to round. Here its entries borrow, and it is made anew.
        let mut interest = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let listener = server.open_door().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        let is_open = listener.is_some();
        interest.extend(listener);
        interest.extend(server.clients.iter().map(|client| {
            let events = match client.service.next() {
                Next::Read => PollFlags::POLLIN,
                // Only while an answer is pending: an idle socket is always writable, and poll would never sleep.
                Next::Write => PollFlags::POLLOUT,
                Next::HangUp | Next::Close => PollFlags::empty(),
            };
            PollFd::new(client.conn.as_fd(), events)
        }));
        match poll(&mut interest, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(Failed::new(format!("poll: {e}"))),
        }

        // The answers stand in the order of the questions. POLLERR and POLLHUP come unasked, and the turn finds out.
        let mut ready = interest.iter().map(|entry| entry.any() != Some(false));
        let stop = ready.next() == Some(true);
        let knock = is_open && ready.next() == Some(true);
        let ready: Vec<bool> = ready.collect();
        let now = Instant::now();
        if stop {
            server.stop(&signals, now);
        }
        server.serve(&ready, now);
        if knock {
            server.accept(now)?;
        }
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
    fn new(args: Args, max_conns: usize, listener: Socket) -> Self {
        Server {
            args,
            max_conns,
            listener: Some(listener),
            clients: Vec::new(),
            served: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
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

    /// How long the loop may sleep if nobody becomes ready: until the first deadline.
    fn patience(&mut self) -> PollTimeout {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
        let deadlines = self.clients.iter().map(|client| client.service.deadline());
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        let left = |at: Instant| at.saturating_duration_since(now) + Duration::from_millis(1);
        let first = deadlines.chain(self.deaf_until).chain(self.stop_at).min();
        first.map_or(PollTimeout::NONE, |at| left(at).try_into().unwrap_or(PollTimeout::MAX))
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
            for client in &self.clients {
                let _ = client.conn.shutdown(Shutdown::Read);
            }
        }
    }

    /// One turn for each client that is ready, and the end for those whose time is over.
    fn serve(&mut self, ready: &[bool], now: Instant) {
        let mut ready = ready.iter();
        self.clients.retain_mut(|client| {
            let outcome = match ready.next() {
                Some(true) => client.turn(now),
                _ => Ok(()),
            };
            client.service.expire(now);
            let over = client.is_over(&outcome, &self.args.log);
            if over && !client.dead_end {
                self.served -= 1;
            }
            !over
        });
    }

    /// Takes clients from the queue: as guests while there are places, then as dead ends.
    fn accept(&mut self, now: Instant) -> Result<(), Failed> {
        for _ in 0..ACCEPTS {
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
            let dead_end = self.served >= self.max_conns;
            let service = match dead_end {
                true => Conn::refused(Refusal::Busy, &self.args.limits, now),
                false => Conn::new(&self.args.limits, now),
            };
            self.served += usize::from(!dead_end);
            self.clients.push(Client { conn, peer, service, dead_end });
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
