//! TCP event-driven server: one process, many clients, waiting for all of them in select.
//!
//! Run: cargo run -p server02-select
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server01-fork
//! Next: server02a-poll
//! Diff base: server00-iterative
//! Overload: refuse (beyond --max-conns, and where a descriptor's number does not fit in a set, `ERR busy` and no more)

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::errno::Errno;
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
/// What a set holds, less the dead ends, the standard streams, the listener, the signals, and some to spare.
const MAX_CONNS: u16 = FD_SETSIZE as u16 - 64;
/// Clients beyond the limit, there only to be told `ERR busy`.
const DEAD_ENDS: usize = 24;
/// Most clients accepted in one round: the others are to have their turn.
const ACCEPTS: usize = 64;
/// How often a client that no set can hold is looked at.
const UNWATCHED: Duration = Duration::from_millis(20);

/// TCP event-driven server: one process, many clients, select
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients at once
    #[arg(long, default_value_t = MAX_CONNS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_CONNS as i64))]
    max_conns: u16,
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
    // The number the listener will have is tried out before the ready line: the signals' is lower.
    if !fits(&signals.as_fd().try_clone_to_owned().context("dup")?) {
        return Err(Failed::new(format!("select: a set ends at {FD_SETSIZE}, and all descriptors below are taken")));
    }

    let listener = listen(&args.listen, BACKLOG)?;
    // A client may leave between select and accept: accept would then sleep, and every client with it.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut server = Server::new(args, listener);
    while !server.is_done() {
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        let mut timeout = server.patience().map(|left| TimeVal::microseconds(left.as_micros() as i64 + 1));
        // The interest sets belong to this program and are made anew: select overwrites them with what is ready.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        readable.insert(signals.as_fd());
        if let Some(listener) = server.open_door() {
            readable.insert(listener.as_fd());
        }
        for client in server.clients.iter().filter(|client| fits(&client.conn)) {
            match client.service.next() {
                Next::Read => readable.insert(client.conn.as_fd()),
                // Only while an answer is pending: an idle socket is always writable, and select would never sleep.
                Next::Write => writable.insert(client.conn.as_fd()),
                Next::HangUp | Next::Close => {}
            }
        }
        match select(None, &mut readable, &mut writable, None, timeout.as_mut()) {
            Ok(_) => {}
            // The sets say nothing now; the next round makes new ones.
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(Failed::new(format!("select: {e}"))),
        }

        // The bits that are left say who is ready: every one has to be looked at, for one client or for all.
        let stop = readable.contains(signals.as_fd());
        let knock = server.listener.as_ref().is_some_and(|listener| readable.contains(listener.as_fd()));
        let is_ready = |conn: &Socket| readable.contains(conn.as_fd()) || writable.contains(conn.as_fd());
        let ready: Vec<bool> =
            server.clients.iter().map(|client| !fits(&client.conn) || is_ready(&client.conn)).collect();
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

/// True if a set has a bit for it. In C, FD_SET of a larger number writes behind the set; here it would panic.
fn fits(fd: &impl AsRawFd) -> bool {
    (fd.as_raw_fd() as usize) < FD_SETSIZE
}

impl Server {
    fn new(args: Args, listener: Socket) -> Self {
        Server {
            args,
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
        let places = usize::from(self.args.max_conns) + DEAD_ENDS;
        self.listener.as_ref().filter(|_| self.clients.len() < places && self.deaf_until.is_none())
    }

    /// How long the loop may sleep if nobody becomes ready: until the first deadline.
    fn patience(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
        let deadlines = self.clients.iter().map(|client| match fits(&client.conn) {
            true => client.service.deadline(),
            false => client.service.deadline().min(now + UNWATCHED),
        });
        let first = deadlines.chain(self.deaf_until).chain(self.stop_at).min()?;
        Some(first.saturating_duration_since(now))
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
            let dead_end = self.served >= usize::from(self.args.max_conns) || !fits(&conn);
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
