//! Chat on async/await: one thread, a reader task and a writer task per client, and an executor that can be read.
//!
//! Run: cargo run -p v4-async
//! Try: cargo run -p chat -- --nick alice
//! Prev: v3-broadcast
//! Next: none
//! Diff base: none
//! Overload: refuse (beyond --max-conns `! server-full`)
//! Slow reader: kick (`! slow-reader` when --outbox is full or nothing moves; --slow grow or drop for comparison)

#![forbid(unsafe_code)]

mod rt;
mod trace;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use chat::cli::{KEEPALIVE, USER_TIMEOUT};
use chat::history::Log as ChatLog;
use chat::{ConnId, Event, Fit, Hub, Input, Limits, Next, Out, Outbox, Send, Slow, To, Why};
use clap::{Parser, ValueEnum};
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rt::{Bell, Runtime, Sock};
use socket2::{SockAddr, Socket, TcpKeepalive};
use trace::{Trace, TraceArgs};

const BACKLOG: i32 = 1024;
/// Bytes that one read takes at most. One block for all clients: it is used within one system call's turn.
const BLOCK: usize = 4096;
/// For a wait that something else ends.
const LONG: Duration = Duration::from_secs(86_400);

/// Chat on async/await, with an executor of its own
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// What happens to a reader that is slower than the room
    #[arg(long, default_value = "kick", value_parser = ["kick", "drop", "grow"])]
    slow: String,
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    log: Log,
}

/// What the tasks of one client share with whoever says something to it.
struct Seat {
    outbox: RefCell<Outbox>,
    /// Rung when there is something new in the outbox, or at the end.
    bell: Bell,
    /// The reader has come to the end of what the client sends.
    at_end: Cell<bool>,
}

/// The room and its doors. One thread: borrowed between two awaits, never across one.
struct Server {
    args: Args,
    slow: Slow,
    rt: Rc<Runtime>,
    hub: RefCell<Hub>,
    seats: RefCell<HashMap<ConnId, Rc<Seat>>>,
    chat_log: RefCell<Option<ChatLog>>,
    block: RefCell<[u8; BLOCK]>,
    /// The last number given to a client.
    number: Cell<ConnId>,
    /// Rung by a signal, by a listener that can accept no more, and by the last client that leaves.
    bell: Bell,
    stops: Cell<u32>,
    failed: Cell<Option<Failed>>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let signals = signals()?;
    descriptors()?;
    let rt = Runtime::new(Trace::new(&args.trace)?).context("epoll_create1")?;
    let server = Server::new(args, &rt)?;

    let listener = listen(&server.args.listen, BACKLOG)?;
    rt.run(chat(Rc::clone(&server), listener, signals)).context("epoll_wait")??;

    server.args.log.cpu_time();
    Ok(())
}

/// SIGTERM and SIGINT as a descriptor. Blocked before the ready line, so that one sent right after it waits here.
fn signals() -> Result<SignalFd, Failed> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?)
}

/// The soft limit of descriptors is low for the sake of programs that use select; any process may raise its own.
fn descriptors() -> Result<(), Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?)
}

/// The whole server: opens the door, waits for a signal, closes the door, and waits until the room is empty.
async fn chat(server: Rc<Server>, listener: Socket, signals: SignalFd) -> Result<(), Failed> {
    let rt = &server.rt;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    lasting(&listener).context("setsockopt")?;
    let listener = Rc::new(Sock::new(rt, listener).context("epoll_ctl")?);
    let signals = Sock::new(rt, signals).context("epoll_ctl")?;
    rt.spawn(watch(Rc::clone(&server), signals));
    rt.spawn(accept(Rc::clone(&server), Rc::clone(&listener)));
    server.bell.rung().await;
    while server.stops.get() == 0 {
        server.bell.rung().await; // the room was empty for a moment
    }

    // Refuses new clients, and ends the accept that waits.
    let _ = listener.io.shutdown(Shutdown::Read);
    drop(listener);
    let last_words = server.hub.borrow_mut().shut_down();
    server.post(last_words);
    let end = Instant::now() + server.args.limits.grace();
    while !server.seats.borrow().is_empty() && server.stops.get() == 1 {
        if rt.until(end, server.bell.rung()).await.is_none() {
            break;
        }
    }
    server.failed.take().map_or(Ok(()), Err)
}

/// A member whose cable was cut stays in the room no longer than these say. Accepted sockets inherit them.
fn lasting(listener: &Socket) -> io::Result<()> {
    let (silence, between, probes) = KEEPALIVE;
    listener.set_tcp_keepalive(&TcpKeepalive::new().with_time(silence).with_interval(between).with_retries(probes))?;
    listener.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// First signal: the stop. Second: now.
async fn watch(server: Rc<Server>, signals: Sock<SignalFd>) {
    let next = |signals: &SignalFd| signals.read_signal()?.ok_or_else(|| ErrorKind::WouldBlock.into());
    while signals.input(next).await.is_ok() {
        server.stops.set(server.stops.get() + 1);
        server.bell.ring();
    }
}

/// Takes clients from the queue, one at a time; two tasks serve each.
async fn accept(server: Rc<Server>, listener: Rc<Sock<Socket>>) {
    let mut backoff = Backoff::default();
    loop {
        let error = match listener.input(Socket::accept).await {
            Ok((conn, peer)) => {
                server.welcome(conn, &peer);
                continue;
            }
            Err(_) if server.stops.get() > 0 => return,
            Err(e) => e,
        };
        server.args.log.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => {}
            // Out of descriptors, the client stays queued. This task sleeps, and nobody else.
            Verdict::Backoff => {
                let now = Instant::now();
                server.rt.sleep_until(now + backoff.next(now)).await;
            }
            Verdict::Fatal => {
                server.failed.set(Some(Failed::new(format!("accept: {error}"))));
                server.stops.set(server.stops.get() + 1);
                return server.bell.ring();
            }
        }
    }
}

impl Server {
    fn new(args: Args, rt: &Rc<Runtime>) -> Result<Rc<Server>, Failed> {
        let mut hub = Hub::new(&args.limits, Instant::now(), SystemTime::now());
        let mut chat_log = None;
        if !args.limits.no_log {
            let path = &args.limits.log;
            let opened = ChatLog::open(path, args.limits.history).with_context(|| path.display().to_string());
            let (log, said) = opened?;
            hub.recall(said);
            chat_log = Some(log);
        }
        let slow = Slow::from_str(&args.slow, true).unwrap_or_default();
        Ok(Rc::new(Server {
            args,
            slow,
            rt: Rc::clone(rt),
            hub: RefCell::new(hub),
            seats: RefCell::default(),
            chat_log: RefCell::new(chat_log),
            block: RefCell::new([0; BLOCK]),
            number: Cell::new(0),
            bell: Bell::new(rt),
            stops: Cell::new(0),
            failed: Cell::new(None),
        }))
    }

    /// A client comes in: a seat, a reader and a writer. Whether it may stay is for the hub to say.
    fn welcome(self: &Rc<Self>, conn: Socket, peer: &SockAddr) {
        let sock = conn.set_nonblocking(true).and_then(|()| Sock::new(&self.rt, conn));
        let sock = match sock {
            Ok(sock) => Rc::new(sock),
            Err(e) => return self.args.log.repeated("WARN", &format!("epoll_ctl: {e}")),
        };
        let id = self.number.get() + 1;
        self.number.set(id);
        let outbox = RefCell::new(Outbox::new(&self.args.limits, self.slow));
        let seat = Rc::new(Seat { outbox, bell: Bell::new(&self.rt), at_end: Cell::new(false) });
        self.seats.borrow_mut().insert(id, Rc::clone(&seat));
        let address = peer.as_socket().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        self.args.log.info(&format!("client {id}: connected from {address}"));
        self.tell(id, Event::Connected(address));
        self.rt.spawn(read(Rc::clone(self), id, Rc::clone(&sock), Rc::clone(&seat)));
        self.rt.spawn(write(Rc::clone(self), id, sock, seat));
    }

    /// Something happened to a client. What is to be said about it goes into the outboxes.
    fn tell(&self, id: ConnId, event: Event) {
        let outs = self.hub.borrow_mut().handle(id, event, Instant::now());
        self.post(outs);
    }

    /// Puts lines into the outboxes and wakes the writers. Nobody waits here, however slow a reader is.
    fn post(&self, outs: Vec<Out>) {
        let now = Instant::now();
        let mut outs = VecDeque::from(outs);
        while let Some(out) = outs.pop_front() {
            if out.to == To::Log {
                self.append(&out.bytes);
            }
            let receivers: Vec<ConnId> = self.hub.borrow().receivers(out.to).collect();
            for id in receivers {
                let Some(seat) = self.seats.borrow().get(&id).map(Rc::clone) else { continue };
                if seat.outbox.borrow_mut().push(&out, now) == Fit::Overflow {
                    outs.extend(self.hub.borrow_mut().handle(id, Event::TooSlow, now));
                }
                seat.bell.ring();
            }
        }
    }

    /// A write to a file does not wait for the disk, only for the page cache: no reason for a thread of its own.
    fn append(&self, record: &[u8]) {
        if let Some(Err(e)) = self.chat_log.borrow_mut().as_mut().map(|log| log.append(record)) {
            self.args.log.repeated("WARN", &format!("{}: {e}", self.args.limits.log.display()));
        }
    }

    /// One read, as soon as there is something, into the block that all clients share.
    async fn receive(&self, sock: &Sock<Socket>, input: &mut Input) -> io::Result<usize> {
        sock.input(|mut conn| {
            let block = &mut *self.block.borrow_mut();
            let n = conn.read(block)?;
            input.feed(block.get(..n).unwrap_or_default());
            if n < block.len() {
                sock.input_drained();
            }
            Ok(n)
        })
        .await
    }
}

/// A client's first task: reads, and tells the hub. Waiting for its turn to speak is *not reading*.
async fn read(server: Rc<Server>, id: ConnId, sock: Rc<Sock<Socket>>, seat: Rc<Seat>) {
    let mut input = Input::new(&server.args.limits, Instant::now());
    let why = loop {
        // None: the hub has forgotten this client, and the writer will end the connection.
        let deadline = server.hub.borrow().deadline_of(id);
        if deadline.is_none() {
            input.close();
        }
        match input.next(Instant::now()) {
            Next::Tell(event) => server.tell(id, event),
            Next::Wait(until) => server.rt.sleep_until(until).await,
            Next::Read => {
                let deadline = deadline.unwrap_or_else(|| Instant::now() + LONG);
                match server.rt.until(deadline, server.receive(&sock, &mut input)).await {
                    None => server.tell(id, Event::Tick),
                    Some(Ok(0)) => break Why::Closed,
                    Some(Ok(n)) => seat.outbox.borrow_mut().drained(n),
                    Some(Err(_)) => break Why::Lost,
                }
            }
        }
    };
    seat.at_end.set(true);
    seat.bell.ring();
    server.tell(id, Event::Gone(why));
}

/// A client's second task: takes all that waits in its outbox in one system call, and sees the conversation to its end.
async fn write(server: Rc<Server>, id: ConnId, sock: Rc<Sock<Socket>>, seat: Rc<Seat>) {
    loop {
        let (next, deadline) = (seat.outbox.borrow().next(), seat.outbox.borrow().deadline());
        let deadline = deadline.unwrap_or_else(|| Instant::now() + LONG);
        let outcome = match next {
            Send::Nothing => {
                seat.bell.rung().await;
                continue;
            }
            Send::Write => {
                let send = |conn: &Socket| conn.send_vectored(&seat.outbox.borrow().slices());
                server.rt.until(deadline, sock.output(send)).await
            }
            Send::HangUp => {
                seat.outbox.borrow_mut().hung_up(Instant::now());
                Some(sock.io.shutdown(Shutdown::Write).map(|()| 0))
            }
            Send::Drain if seat.at_end.get() => break,
            Send::Drain => server.rt.until(deadline, seat.bell.rung()).await.map(|()| Ok(0)),
            Send::Close => break,
        };
        let now = Instant::now();
        match outcome {
            Some(Ok(n)) => seat.outbox.borrow_mut().consume(n, now),
            Some(Err(_)) => break,
            None => {
                let is_late = seat.outbox.borrow_mut().expire(now);
                if is_late {
                    server.tell(id, Event::TooSlow);
                }
            }
        }
    }
    // The reader may wait for something that will not come.
    let _ = sock.io.shutdown(Shutdown::Both);
    server.seats.borrow_mut().remove(&id);
    server.args.log.info(&format!("client {id}: gone"));
    if server.seats.borrow().is_empty() {
        server.bell.ring();
    }
}
