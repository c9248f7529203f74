//! Chat as a real room needs it: a bounded queue per client, written out while it holds something; who does not read
//! goes. Waits with select, poll or epoll.
//!
//! Run: cargo run -p v3-broadcast
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v2-select
//! Next: v4-async
//! Diff base: v2-select
//! Overload: refuse (beyond --max-conns, and with --poller select beyond a set's end, `! server-full`)
//! Slow reader: kick (beyond --outbox, or after --write-timeout without progress; --slow shows what else there is)

mod epoll;
mod poll;
mod poller;
mod select;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use chat::history::Log as History;
use chat::{ConnId, Event, Fit, Hub, Input, Limits, Next, Out, Outbox, Send, Slow, Then, To, Why};
use clap::{Parser, ValueEnum};
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::sys::select::FD_SETSIZE;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use poller::{Interest, Poller, Ready};
use socket2::{Socket, TcpKeepalive};

const BACKLOG: i32 = 1024;
/// What a set of select holds, less the dead ends and this program's own descriptors.
const SET_MOST: u32 = FD_SETSIZE as u32 - 64;
/// Clients that are on their way out, or only there to be told why not.
const DEAD_ENDS: usize = 24;
/// Most clients accepted in one round: the others are to have their turn.
const ACCEPTS: usize = 64;
/// Tokens of the two descriptors that are no clients; those begin with 1.
const DOOR: u64 = 0;
const SIGNALS: u64 = u64::MAX;

/// Chat: a bounded queue per client, and select, poll or epoll
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Whom to ask who is ready
    #[arg(long, value_enum, default_value_t = Kind::Epoll)]
    poller: Kind,
    /// What happens to a reader that is slower than the room
    #[arg(long, value_enum, default_value_t)]
    slow: Slow,
    #[command(flatten)]
    report: Log,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Select,
    Poll,
    Epoll,
}

/// One client.
struct Client {
    conn: Socket,
    input: Input,
    outbox: Outbox,
    /// Not read from before this: it says too much.
    held_until: Option<Instant>,
    /// What the poller has been told.
    interest: Interest,
    /// Its entry in the timers.
    timer: Option<Instant>,
}

/// What the loop knows between two rounds.
struct Server {
    args: Args,
    poller: Box<dyn Poller>,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<Socket>,
    door_is_open: bool,
    hub: Hub,
    history: Option<History>,
    clients: BTreeMap<ConnId, Client>,
    /// Clients that something happened to in this round.
    touched: BTreeSet<ConnId>,
    timers: BTreeSet<(Instant, ConnId)>,
    /// `--slow block`: somebody's queue is over its mark, and nobody is read from.
    blocked: bool,
    /// The number of the latest client.
    latest: ConnId,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = signals()?;
    let mut server = Server::new(args)?;
    server.poller.set(signals.as_fd(), SIGNALS, Interest::READ).context("watch the signals")?;
    let mut ready = Vec::new();
    while !server.is_done() {
        server.mind_the_door()?;
        let patience = server.patience();
        server.poller.wait(patience, &mut ready).context("wait")?;
        let now = Instant::now();
        for Ready { token, read } in ready.drain(..) {
            match token {
                SIGNALS => server.stop(&signals, now),
                DOOR => server.accept(now)?,
                id => server.turn(id, read, now),
            }
        }
        server.expire(now);
        server.settle(now)?;
    }
    server.args.report.cpu_time();
    Ok(())
}

/// SIGTERM and SIGINT as a descriptor. Blocked before the ready line, so that one sent right after it waits here.
fn signals() -> Result<SignalFd, Failed> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?)
}

/// Neither ready nor broken: the next round asks again.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Server {
    fn new(mut args: Args) -> Result<Server, Failed> {
        if args.poller == Kind::Select {
            args.limits.max_conns = args.limits.max_conns.min(SET_MOST);
        }
        let poller: Box<dyn Poller> = match args.poller {
            Kind::Select => Box::new(select::Select::default()),
            Kind::Poll => Box::new(poll::Poll::default()),
            Kind::Epoll => Box::new(epoll::Epoll::new().context("epoll_create1")?),
        };
        let limits = &args.limits;
        let mut hub = Hub::new(limits, Instant::now(), SystemTime::now());
        let mut history = None;
        if !limits.no_log {
            let opened = History::open(&limits.log, limits.history);
            let (log, said) = opened.with_context(|| format!("open {}", limits.log.display()))?;
            hub.recall(said);
            history = Some(log);
        }
        let listener = listen(&args.listen, BACKLOG)?;
        // Accepted sockets inherit these. A member whose cable was cut is found out by them, and by nothing else.
        let (time, interval, retries) = chat::cli::KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        listener.set_tcp_keepalive(&keepalive).context("setsockopt SO_KEEPALIVE")?;
        listener.set_tcp_user_timeout(Some(chat::cli::USER_TIMEOUT)).context("setsockopt TCP_USER_TIMEOUT")?;
        // A client may leave between select and accept: accept would then sleep, and the room with it.
        listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        Ok(Server {
            args,
            poller,
            listener: Some(listener),
            door_is_open: false,
            hub,
            history,
            clients: BTreeMap::new(),
            touched: BTreeSet::new(),
            timers: BTreeSet::new(),
            blocked: false,
            latest: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
        })
    }

    /// True when a stop has come, and the last client has left or the grace is over.
    fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|end| self.clients.is_empty() || Instant::now() >= end)
    }

    /// Watches the listener while another client may come in. Otherwise the backlog holds them.
    fn mind_the_door(&mut self) -> Result<(), Failed> {
        self.deaf_until = self.deaf_until.filter(|until| Instant::now() < *until);
        let places = self.args.limits.max_conns as usize + DEAD_ENDS;
        let open = self.clients.len() < places && self.deaf_until.is_none();
        if let Some(listener) = self.listener.as_ref().filter(|_| open != self.door_is_open) {
            let interest = if open { Interest::READ } else { Interest::NONE };
            self.poller.set(listener.as_fd(), DOOR, interest).context("watch the listener")?;
            self.door_is_open = open;
        }
        Ok(())
    }

    /// How long the loop may sleep if nobody becomes ready: until the first deadline.
    fn patience(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let first = [timer, self.hub.deadline(), self.deaf_until, self.stop_at].into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// First stop: last words for all, and nobody new. Second stop: the end.
    fn stop(&mut self, signals: &SignalFd, now: Instant) {
        while let Ok(Some(_)) = signals.read_signal() {
            if self.stop_at.is_some() {
                self.stop_at = Some(now);
                continue;
            }
            if let Some(listener) = self.listener.take() {
                let _ = self.poller.set(listener.as_fd(), DOOR, Interest::NONE);
            } // close: new clients are refused
            self.stop_at = Some(now + self.args.limits.grace());
            let outs = self.hub.shut_down();
            self.tell_slow(&outs, now);
        }
    }

    /// One client's turn: at most one read, so that nobody holds the loop for long.
    fn turn(&mut self, id: ConnId, can_be_read: bool, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        self.touched.insert(id);
        if can_be_read && client.interest.read {
            let mut buffer = [0; 4096];
            match (&client.conn).read(&mut buffer) {
                // After the last words what comes is thrown away: closing on unread bytes would be a reset.
                Ok(n) if client.outbox.is_closing() => client.outbox.drained(n),
                Ok(0) => self.tell(id, Event::Gone(Why::Closed), now),
                Ok(n) => client.input.feed(buffer.get(..n).unwrap_or_default()),
                // Readiness is a hint.
                Err(e) if is_nothing(&e) => {}
                Err(_) => client.outbox.lost(),
            }
        } else if can_be_read {
            // Not asked for: a reset, of a client that is not read from.
            client.outbox.lost();
        }
        self.hear(id, now);
    }

    /// Hands the hub what has been read, at the client's rate.
    fn hear(&mut self, id: ConnId, now: Instant) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            client.held_until = None;
            match client.input.next(now) {
                Next::Tell(event) => self.tell(id, event, now),
                Next::Wait(until) => return client.held_until = Some(until),
                Next::Read => return,
            }
        }
    }

    /// Tells the hub, and queues what it says; `settle` sends. A line can overflow a queue, and the news of that
    /// another one.
    fn tell(&mut self, id: ConnId, event: Event, now: Instant) {
        let mut events = vec![(id, event)];
        while let Some((id, event)) = events.pop() {
            let outs = self.hub.handle(id, event, now);
            events.extend(self.deliver(&outs, now).into_iter().map(|id| (id, Event::TooSlow)));
        }
    }

    /// Queues what the hub says, and returns who is too slow for it.
    fn deliver(&mut self, outs: &[Out], now: Instant) -> Vec<ConnId> {
        let mut slow = Vec::new();
        for out in outs {
            if let Err(e) = self.record(out) {
                self.args.report.repeated("WARN", &format!("write {}: {e}", self.args.limits.log.display()));
            }
            for id in self.hub.receivers(out.to) {
                let Some(client) = self.clients.get_mut(&id) else { continue };
                if client.outbox.push(out, now) == Fit::Overflow {
                    slow.push(id);
                }
                if out.then == Then::Close {
                    client.input.close();
                }
                self.touched.insert(id);
            }
        }
        slow
    }

    fn record(&mut self, out: &Out) -> io::Result<()> {
        match self.history.as_mut().filter(|_| out.to == To::Log) {
            Some(history) => history.append(&out.bytes),
            None => Ok(()),
        }
    }

    /// Whose time has come: who may be heard again, who did not read, who was silent.
    fn expire(&mut self, now: Instant) {
        let outs = self.hub.expire(now);
        self.tell_slow(&outs, now);
        while let Some((_, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.timer = None;
            if client.outbox.expire(now) {
                self.tell(id, Event::TooSlow, now);
            }
            self.hear(id, now);
            self.touched.insert(id);
        }
    }

    fn tell_slow(&mut self, outs: &[Out], now: Instant) {
        for id in self.deliver(outs, now) {
            self.tell(id, Event::TooSlow, now);
        }
    }

    /// The end of a round: each client that something happened to is written to, once for all its lines, and is then
    /// watched for what it needs now. Who is gone tells others of it, and so touches them.
    fn settle(&mut self, now: Instant) -> Result<(), Failed> {
        let block = self.args.slow == Slow::Block;
        loop {
            while let Some(id) = self.touched.pop_first() {
                let Some(client) = self.clients.get_mut(&id) else { continue };
                client.flush(now);
                let over = client.outbox.next() == Send::Close;
                let wanted = if over { Interest::NONE } else { client.interest(self.blocked) };
                if wanted != client.interest {
                    self.poller.set(client.conn.as_fd(), id, wanted).context("watch a client")?;
                    client.interest = wanted;
                }
                let timer = [client.held_until, client.outbox.deadline()].into_iter().flatten().min().filter(|_| !over);
                if timer != client.timer {
                    client.timer.map(|at| self.timers.remove(&(at, id)));
                    self.timers.extend(timer.map(|at| (at, id)));
                    client.timer = timer;
                }
                if over {
                    self.clients.remove(&id);
                    self.args.report.info(&format!("client {id}: done"));
                    self.tell(id, Event::Gone(Why::Lost), now);
                }
            }
            let blocked = block && self.clients.values().any(|client| client.outbox.is_over_mark());
            if blocked == self.blocked {
                return Ok(());
            }
            // Everybody waits for the slowest, or may go on.
            self.blocked = blocked;
            self.touched.extend(self.clients.keys());
        }
    }

    /// Takes clients from the queue.
    fn accept(&mut self, now: Instant) -> Result<(), Failed> {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listener.as_ref() else { break };
            // accept4 knows SOCK_NONBLOCK; socket2 does not, and asks fcntl. The listener's own mode is not inherited.
            let accepted = listener.accept().and_then(|(conn, peer)| conn.set_nonblocking(true).map(|()| (conn, peer)));
            let (conn, peer) = match accepted {
                Ok(accepted) => accepted,
                // Nobody is left.
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.accept_failed(&e, now)?;
                    continue;
                }
            };
            let address = peer.as_socket().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
            self.latest += 1;
            self.args.report.info(&format!("client {}: {address} connected", self.latest));
            // select has no bit for it: nobody could be waited for. There is a word for it in the buffer, and no more.
            if self.poller.set(conn.as_fd(), self.latest, Interest::READ).is_err() {
                for out in self.hub.refuse(self.latest) {
                    let _ = conn.send(&out.bytes);
                }
                let _ = conn.shutdown(Shutdown::Write);
                continue;
            }
            let (input, outbox) = (Input::new(&self.args.limits, now), Outbox::new(&self.args.limits, self.args.slow));
            let interest = Interest::READ;
            self.clients.insert(self.latest, Client { conn, input, outbox, held_until: None, interest, timer: None });
            self.tell(self.latest, Event::Connected(address), now);
            self.touched.insert(self.latest);
        }
        Ok(())
    }

    /// Out of descriptors, the client stays queued and the listener stays readable: accepting again at once would
    /// spin, and a sleep would hold up everybody. So the listener is left alone for a while.
    fn accept_failed(&mut self, error: &io::Error, now: Instant) -> Result<(), Failed> {
        self.args.report.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => {}
            Verdict::Backoff => self.deaf_until = Some(now + self.backoff.next(now)),
            Verdict::Fatal => return Err(Failed::new(format!("accept: {error}"))),
        }
        Ok(())
    }
}

impl Client {
    /// Read while it may say something and nobody is waited for; write only while something waits: an idle socket is
    /// always writable, and the loop would never sleep.
    fn interest(&self, blocked: bool) -> Interest {
        let drains = self.outbox.is_closing();
        Interest { read: self.held_until.is_none() && (drains || !blocked), write: self.outbox.next() == Send::Write }
    }

    /// Sends without asking first: the buffer nearly always has room, and asking would cost a round. All lines that wait
    /// are one system call.
    fn flush(&mut self, now: Instant) {
        loop {
            match self.outbox.next() {
                Send::Write => match self.conn.send_vectored(&self.outbox.slices()) {
                    Ok(n) => self.outbox.consume(n, now),
                    Err(e) if is_nothing(&e) => return,
                    Err(_) => self.outbox.lost(),
                },
                Send::HangUp => {
                    let _ = self.conn.shutdown(Shutdown::Write);
                    self.outbox.hung_up(now);
                }
                Send::Nothing | Send::Drain | Send::Close => return,
            }
        }
    }
}
