//! Chat on one thread: all clients are waited for in select, and each line is sent at once to all, as far as it fits.
//!
//! Run: cargo run -p v2-select
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v1-threads
//! Next: v3-broadcast
//! Diff base: none
//! Overload: refuse (beyond --max-conns, and where a descriptor's number does not fit in a set, `! server-full`)
//! Slow reader: drop (what does not fit into the kernel's buffer is not sent, and counted: `* you missed 12 lines`)

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use chat::history::Log as History;
use chat::{ConnId, Event, Hub, Input, Limits, Next, Out, Outbox, Send, Then, To, Why};
use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::errno::Errno;
use nix::sys::select::{FD_SETSIZE, FdSet, select};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::{Socket, TcpKeepalive};

const BACKLOG: i32 = 1024;
/// What a set holds, less the dead ends, the standard streams, the listener, the signals, the log, and some to spare.
const MAX_CONNS: u32 = FD_SETSIZE as u32 - 64;
/// Clients that are on their way out, or only there to be told why not.
const DEAD_ENDS: usize = 24;
/// Most clients accepted in one round: the others are to have their turn.
const ACCEPTS: usize = 64;
/// How often a client that no set can hold is looked at.
const UNWATCHED: Duration = Duration::from_millis(20);

/// Chat: one thread with select; what does not fit is dropped, and counted
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    report: Log,
}

/// One client.
struct Client {
    conn: Socket,
    input: Input,
    /// At most the rest of one line: whoever has one misses the next lines.
    outbox: Outbox,
    /// Not read from before this: it says too much.
    held_until: Option<Instant>,
}

/// What the loop knows between two rounds.
struct Server {
    args: Args,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<Socket>,
    hub: Hub,
    history: Option<History>,
    clients: BTreeMap<ConnId, Client>,
    /// The number of the latest client.
    latest: ConnId,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
}

fn main() -> Result<(), Failed> {
    let mut args = Args::parse();
    args.limits.max_conns = args.limits.max_conns.min(MAX_CONNS);
    let signals = signals()?;
    let mut server = Server::new(args)?;

    while !server.is_done() {
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        let mut timeout = server.patience().map(|left| TimeVal::microseconds(left.as_micros() as i64 + 1));
        // The interest sets belong to this program and are made anew: select overwrites them with what is ready.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        readable.insert(signals.as_fd());
        if let Some(listener) = server.open_door() {
            readable.insert(listener.as_fd());
        }
        for client in server.clients.values().filter(|client| fits(&client.conn)) {
            // Who is not read from fills its own send buffer, and waits: the rate limit needs no other means.
            if client.held_until.is_none() {
                readable.insert(client.conn.as_fd());
            }
            // Only for the rest of a line: an idle socket is always writable, and select would never sleep.
            if client.outbox.next() == Send::Write {
                writable.insert(client.conn.as_fd());
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
        let can_be_read = |client: &Client| !fits(&client.conn) || readable.contains(client.conn.as_fd());
        let ready: Vec<(ConnId, bool)> = server.clients.iter().map(|(id, client)| (*id, can_be_read(client))).collect();
        let now = Instant::now();
        if stop {
            server.stop(&signals, now);
        }
        for (id, can_be_read) in ready {
            server.turn(id, can_be_read, now);
        }
        server.sweep(now);
        if knock {
            server.accept(now)?;
        }
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

/// True if a set has a bit for it. In C, FD_SET of a larger number writes behind the set; here it would panic.
fn fits(fd: &impl AsRawFd) -> bool {
    (fd.as_raw_fd() as usize) < FD_SETSIZE
}

/// Neither ready nor broken: the next round asks again.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Server {
    fn new(args: Args) -> Result<Server, Failed> {
        let limits = &args.limits;
        let mut hub = Hub::new(limits, Instant::now(), SystemTime::now());
        let mut history = None;
        if !limits.no_log {
            let opened = History::open(&limits.log, limits.history);
            let (log, said) = opened.with_context(|| format!("open {}", limits.log.display()))?;
            hub.recall(said);
            history = Some(log);
        }
        // The number the listener will have is tried out before the ready line: the signals' is lower.
        if !fits(&io::stderr().as_fd().try_clone_to_owned().context("dup")?) {
            return Err(Failed::new(format!(
                "select: a set ends at {FD_SETSIZE}, and all descriptors below are taken"
            )));
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
            listener: Some(listener),
            hub,
            history,
            clients: BTreeMap::new(),
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

    /// The listener, while another client may come in. Otherwise the backlog holds them.
    fn open_door(&self) -> Option<&Socket> {
        let places = self.args.limits.max_conns as usize + DEAD_ENDS;
        self.listener.as_ref().filter(|_| self.clients.len() < places && self.deaf_until.is_none())
    }

    /// How long the loop may sleep if nobody becomes ready: until the first deadline.
    fn patience(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
        let unwatched = |client: &Client| (!fits(&client.conn)).then_some(now + UNWATCHED);
        let of =
            |client: &Client| [client.held_until, client.outbox.deadline(), unwatched(client)].into_iter().flatten();
        let first = self.clients.values().flat_map(of).chain(self.hub.deadline());
        let first = first.chain(self.deaf_until).chain(self.stop_at).min()?;
        Some(first.saturating_duration_since(now))
    }

    /// First stop: last words for all, and nobody new. Second stop: the end.
    fn stop(&mut self, signals: &SignalFd, now: Instant) {
        while let Ok(Some(_)) = signals.read_signal() {
            if self.stop_at.is_some() {
                self.stop_at = Some(now);
                continue;
            }
            self.listener = None; // close: new clients are refused
            self.stop_at = Some(now + self.args.limits.grace());
            let outs = self.hub.shut_down();
            self.deliver(&outs, now);
        }
    }

    /// One client's turn: at most one read, so that nobody holds the loop for long.
    fn turn(&mut self, id: ConnId, can_be_read: bool, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.flush(now);
        if can_be_read && client.held_until.is_none() {
            let mut buffer = [0; 4096];
            match (&client.conn).read(&mut buffer) {
                // After the last words what comes is thrown away: closing on unread bytes would be a reset.
                Ok(n) if client.outbox.is_closing() => client.outbox.drained(n),
                // Readable, and nothing to read: the end of file. Whoever ignores it spins (naive-spin.rs).
                Ok(0) => self.tell(id, Event::Gone(Why::Closed), now),
                Ok(n) => client.input.feed(buffer.get(..n).unwrap_or_default()),
                // Readiness is a hint.
                Err(e) if is_nothing(&e) => {}
                Err(_) => client.outbox.lost(),
            }
        }
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

    fn tell(&mut self, id: ConnId, event: Event, now: Instant) {
        let outs = self.hub.handle(id, event, now);
        self.deliver(&outs, now);
    }

    /// Sends what the hub says, at once. Whose buffer is full misses it; nobody waits for anybody.
    fn deliver(&mut self, outs: &[Out], now: Instant) {
        for out in outs {
            if let Err(e) = self.record(out) {
                self.args.report.repeated("WARN", &format!("write {}: {e}", self.args.limits.log.display()));
            }
            for id in self.hub.receivers(out.to) {
                let Some(client) = self.clients.get_mut(&id) else { continue };
                client.outbox.push(out, now);
                client.flush(now);
                if out.then == Then::Close {
                    client.input.close();
                }
            }
        }
    }

    fn record(&mut self, out: &Out) -> io::Result<()> {
        match self.history.as_mut().filter(|_| out.to == To::Log) {
            Some(history) => history.append(&out.bytes),
            None => Ok(()),
        }
    }

    /// The end for those whose time is over, or whose connection is gone; whoever is still in the room leaves it.
    fn sweep(&mut self, now: Instant) {
        let outs = self.hub.expire(now);
        self.deliver(&outs, now);
        let mut over = Vec::new();
        for (id, client) in &mut self.clients {
            client.outbox.expire(now);
            if client.outbox.next() == Send::Close {
                over.push(*id);
            }
        }
        for id in over {
            self.clients.remove(&id);
            self.args.report.info(&format!("client {id}: done"));
            self.tell(id, Event::Gone(Why::Lost), now);
        }
    }

    /// Takes clients from the queue.
    fn accept(&mut self, now: Instant) -> Result<(), Failed> {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.open_door() else { break };
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
            let outs = match fits(&conn) {
                true => self.hub.handle(self.latest, Event::Connected(address), now),
                false => self.hub.refuse(self.latest),
            };
            let (input, outbox) = (Input::new(&self.args.limits, now), Outbox::direct(&self.args.limits));
            self.clients.insert(self.latest, Client { conn, input, outbox, held_until: None });
            self.deliver(&outs, now);
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
    /// Sends without asking first: the buffer nearly always has room, and asking would cost a round.
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
