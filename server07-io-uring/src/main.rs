//! TCP completion-driven server: one process, many clients, and the kernel does the calls: io_uring.
//!
//! Run: cargo run -p server07-io-uring
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06a-queue
//! Next: server08-tokio
//! Diff base: server02b-epoll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)
//! Needs: Linux 5.19, and kernel.io_uring_disabled = 0; otherwise one line and exit status 69

mod ring;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types::Fd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ring::{Completion, GROUP, Ring};
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are not for clients: the dead ends, the standard streams, the listener, the signals, the ring.
const RESERVE: u64 = 32;
/// Clients beyond the limit, there only to be told `ERR busy`.
const DEAD_ENDS: usize = 24;
/// Deadlines are looked after at most this often: to look at each client after each event would cost what poll costs.
const TICK: Duration = Duration::from_millis(250);
/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// What a completion is about: the kernel hands back the 64 bits that came with the request. Bits 0 to 2 say this, the
/// others are the client's number. Numbers are never used twice, so that what is late for one client cannot hit another.
const SIGNALS: u64 = 0;
const ACCEPT: u64 = 1;
const RECV: u64 = 2;
const SEND: u64 = 3;
const ROOM: u64 = 4;
const CANCEL: u64 = 5;
const KIND_BITS: u32 = 3;
/// What poll says of a socket that takes bytes, or never will again.
const WRITABLE: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as i32;

/// IORING_RECVSEND_POLL_FIRST: wait before the first try. After an answer the next request is hardly ever there yet.
const POLL_FIRST: u16 = 1;

/// TCP completion-driven server: one process, many clients, io_uring
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
    peer: Option<SockAddr>,
    service: Conn,
    /// There only to be told `ERR busy`.
    dead_end: bool,
    /// The request that the kernel has and has not completed: never more than one. Until then neither the descriptor
    /// may be closed nor the bytes to be sent be touched.
    in_flight: Option<u64>,
    /// The kernel has been asked to end that request early.
    is_cancelled: bool,
    failed: Option<io::Error>,
}

/// What the loop knows between two rounds.
struct Server {
    args: Args,
    max_conns: usize,
    ring: Ring,
    /// None once a stop has come: the kernel refuses new clients.
    listener: Option<Socket>,
    /// True while the kernel has the request to accept.
    accepts: bool,
    /// When that request is to be made anew; None until it has brought a client.
    renew_at: Option<Instant>,
    clients: HashMap<u64, Client>,
    /// The last number given to a client.
    number: u64,
    /// The clients that are no dead ends.
    served: usize,
    backoff: Backoff,
    /// No accept before this: the last one failed for want of something.
    deaf_until: Option<Instant>,
    /// The end of the grace, once a stop has come.
    stop_at: Option<Instant>,
    /// No client's deadline is before this one.
    nearest: Option<Instant>,
    swept: Instant,
}

fn main() -> Result<ExitCode, Failed> {
    let args = Args::parse();
    let signals = signals()?;
    let max_conns = max_conns(args.max_conns)?;
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err((call, error)) => return Ok(unavailable(call, &error)),
    };

    let listener = listen(&args.listen, BACKLOG)?;
    let mut server = Server::new(args, max_conns, ring, listener);
    server.watch_signals(&signals)?;
    let mut completions = Vec::new();
    while !server.is_done() {
        server.watch_door()?;
        // One system call for all that was asked since the last one, by however many clients.
        server.ring.submit_and_wait(server.patience()).context("io_uring_enter")?;

        let now = Instant::now();
        server.ring.completions(&mut completions);
        for completion in completions.drain(..) {
            let number = completion.user_data >> KIND_BITS;
            match completion.user_data & ((1 << KIND_BITS) - 1) {
                SIGNALS => {
                    server.stop(&completion, now)?;
                    server.watch_signals(&signals)?;
                }
                ACCEPT => server.accepted(&completion, now)?,
                kind @ (RECV | SEND | ROOM) => server.turn(number, kind, &completion, now)?,
                // What was cancelled says so itself, in its own completion.
                _ => {}
            }
            server.ring.give_back(&completion);
        }
        server.sweep(now)?;
    }

    server.args.log.cpu_time();
    Ok(ExitCode::SUCCESS)
}

/// One line for whoever wonders why: io_uring may be switched off, filtered, or too young.
fn unavailable(call: &str, error: &io::Error) -> ExitCode {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "switched off by sysctl kernel.io_uring_disabled, or by a seccomp filter",
        Some(libc::ENOSYS) => "not in this kernel, or hidden by a seccomp filter",
        Some(libc::ENOMEM) => "no memory for the ring; before Linux 5.12 it counts as locked memory, see ulimit -l",
        Some(libc::EINVAL) => "this kernel lacks what is used here: Linux 5.19 has it",
        _ => "io_uring cannot be used here",
    };
    let _ = writeln!(io::stderr(), "Error: {call}: {error}: {why}");
    ExitCode::from(UNAVAILABLE)
}

/// SIGTERM and SIGINT as a descriptor. Blocked before the ready line, so that one sent right after it waits here.
fn signals() -> Result<SignalFd, Failed> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("signalfd")?)
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
    fn new(args: Args, max_conns: usize, ring: Ring, listener: Socket) -> Self {
        Server {
            args,
            max_conns,
            ring,
            listener: Some(listener),
            accepts: false,
            renew_at: None,
            clients: HashMap::new(),
            number: 0,
            served: 0,
            backoff: Backoff::default(),
            deaf_until: None,
            stop_at: None,
            nearest: None,
            swept: Instant::now(),
        }
    }

    /// True when a stop has come, and the last client has left or the grace is over.
    fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|end| self.clients.is_empty() || Instant::now() >= end)
    }

    /// A request that names no memory but the ring's own buffers.
    fn ask(&mut self, request: Entry, user_data: u64) -> Result<(), Failed> {
        // SAFETY: there is nothing that could move.
        unsafe { self.ring.push(&request.user_data(user_data)) }.context("io_uring_enter")?;
        Ok(())
    }

    /// Asks for the next signal. A read that takes its buffer from the group when there is something to read.
    fn watch_signals(&mut self, signals: &SignalFd) -> Result<(), Failed> {
        let read = opcode::Read::new(Fd(signals.as_raw_fd()), std::ptr::null_mut(), 128).buf_group(GROUP).build();
        self.ask(read.flags(Flags::BUFFER_SELECT), SIGNALS)
    }

    /// Asks for clients, once for all that will come, while another one may come in. Otherwise the backlog holds them.
    /// The kernel notes the limit of descriptors with the request: one that lives for ever would go by an old limit.
    fn watch_door(&mut self) -> Result<(), Failed> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
        let is_old = self.renew_at.is_some_and(|at| now >= at);
        let is_open = self.clients.len() < self.max_conns + DEAD_ENDS && self.deaf_until.is_none();
        match &self.listener {
            Some(listener) if is_open && !self.accepts => {
                (self.accepts, self.renew_at) = (true, None);
                let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
                self.ask(accept.build(), ACCEPT)
            }
            Some(_) if self.accepts && (is_old || !is_open) => {
                self.renew_at = None;
                self.ask(opcode::AsyncCancel::new(ACCEPT).build(), CANCEL)
            }
            _ => Ok(()),
        }
    }

    /// How long the loop may sleep if nothing is completed.
    fn patience(&self) -> Option<Duration> {
        let sweep = self.nearest.map(|at| at.max(self.swept + TICK));
        let first = sweep.into_iter().chain(self.deaf_until).chain(self.renew_at).chain(self.stop_at).min();
        // Rounded up: waking a moment before the deadline would be a round for nothing.
        first.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// First stop: nobody new, and reading ends; what was received is still answered. Second stop: the end.
    fn stop(&mut self, completion: &Completion, now: Instant) -> Result<(), Failed> {
        if completion.result <= 0 {
            return Ok(()); // no buffer was left, or a signal came by: it is asked for again
        }
        self.stop_at = Some(self.stop_at.map_or(now + Duration::from_millis(self.args.limits.grace), |_| now));
        // Not only a close: the request to accept would keep the listener alive. This ends the request too.
        if let Some(listener) = self.listener.take() {
            let _ = listener.shutdown(Shutdown::Read);
        }
        for client in self.clients.values() {
            let _ = client.conn.shutdown(Shutdown::Read);
        }
        Ok(())
    }

    /// A client, as a guest while there are places, and then as a dead end; or the reason why there is none.
    fn accepted(&mut self, completion: &Completion, now: Instant) -> Result<(), Failed> {
        // The last one of this request: an error ends it, and so does the kernel where it likes.
        self.accepts &= completion.more;
        self.renew_at = self.renew_at.or(Some(now + TICK)).filter(|_| self.accepts);
        if completion.result < 0 {
            return self.accept_failed(&io::Error::from_raw_os_error(-completion.result), now);
        }
        // SAFETY: a new descriptor that nobody else knows of.
        let conn = unsafe { Socket::from_raw_fd(completion.result) };
        if self.listener.is_none() {
            let _ = conn.shutdown(Shutdown::Read); // it came in the moment of the stop
        }
        let dead_end = self.served >= self.max_conns;
        let service = match dead_end {
            true => Conn::refused(Refusal::Busy, &self.args.limits, now),
            false => Conn::new(&self.args.limits, now),
        };
        self.served += usize::from(!dead_end);
        self.number += 1;
        // One request for many clients has no room for many addresses.
        let peer = conn.peer_addr().ok();
        let client = Client { conn, peer, service, dead_end, in_flight: None, is_cancelled: false, failed: None };
        self.clients.insert(self.number, client);
        self.go_on(self.number, false, now)
    }

    /// Out of descriptors, the client stays queued: to ask again at once would spin, and a sleep would hold up
    /// everybody. So the listener is left alone for a while.
    fn accept_failed(&mut self, error: &io::Error, now: Instant) -> Result<(), Failed> {
        if self.listener.is_none() || error.raw_os_error() == Some(libc::ECANCELED) {
            return Ok(());
        }
        self.args.log.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => {}
            Verdict::Backoff => self.deaf_until = Some(now + self.backoff.next(now)),
            Verdict::Fatal => return Err(Failed::new(format!("accept: {error}"))),
        }
        Ok(())
    }

    /// What a client had asked for is done.
    fn turn(&mut self, number: u64, kind: u64, completion: &Completion, now: Instant) -> Result<(), Failed> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        if completion.more {
            // A half-closed client is reported for that alone: no reason to send, and the next report will come.
            if completion.result & WRITABLE == 0 || client.is_cancelled {
                return Ok(());
            }
            client.is_cancelled = true;
            return self.ask(opcode::AsyncCancel::new(completion.user_data).build(), CANCEL);
        }
        (client.in_flight, client.is_cancelled) = (None, false);
        let is_full = kind == SEND && completion.result == -libc::EAGAIN;
        match (kind, completion.result) {
            // Cancelled, or no buffer was left, or no room: what to do now is asked below. No byte is lost.
            (_, error) if matches!(-error, libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {}
            (_, error @ ..0) => client.failed = Some(io::Error::from_raw_os_error(-error)),
            (ROOM, _) => {}
            (RECV, 0) => client.service.eof(),
            (RECV, _) => client.service.feed(self.ring.received(completion), now),
            (_, sent) => client.service.consume(sent as usize, now),
        }
        self.go_on(number, is_full, now)
    }

    /// Asks for what the client needs next: at most a block, so that nobody holds the loop for long.
    fn go_on(&mut self, number: u64, is_full: bool, now: Instant) -> Result<(), Failed> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        if client.service.next() == Next::HangUp {
            client.failed = client.conn.shutdown(Shutdown::Write).err();
            client.service.hung_up(now);
        }
        self.nearest = self.nearest.into_iter().chain([client.service.deadline()]).min();
        let fd = Fd(client.conn.as_raw_fd());
        let (kind, request) = match client.service.next() {
            _ if client.failed.is_some() => return self.close(number),
            // No buffer is bound while nothing comes, and no more is taken from the socket than there is room for: a
            // client that floods fills its own receive buffer, and then its own send buffer, and nobody else's.
            Next::Read => {
                let recv = opcode::Recv::new(fd, std::ptr::null_mut(), client.service.room() as u32);
                (RECV, recv.ioprio(POLL_FIRST).buf_group(GROUP).build().flags(Flags::BUFFER_SELECT))
            }
            // Multishot, for that is edge-triggered. One-shot, and in a send that may wait, the kernel takes a client
            // that is half-closed for one that is ready; such a send it tries in vain a hundred times, and then it
            // makes a thread for it that sleeps in send.
            Next::Write if is_full => (ROOM, opcode::PollAdd::new(fd, libc::POLLOUT as u32).multi(true).build()),
            Next::Write => {
                let (bytes, flags) = (client.service.pending(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
                (SEND, opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags).build())
            }
            Next::HangUp | Next::Close => return self.close(number),
        };
        client.in_flight = Some(number << KIND_BITS | kind);
        // SAFETY: answers are static; an error line is the client's, who stays as long as the request is in flight.
        unsafe { self.ring.push(&request.user_data(number << KIND_BITS | kind)) }.context("io_uring_enter")?;
        Ok(())
    }

    /// The end of a client that has nothing in flight: the close would not end it, and its completion would find
    /// a stranger with the same descriptor.
    fn close(&mut self, number: u64) -> Result<(), Failed> {
        if let Some(client) = self.clients.remove(&number) {
            self.served -= usize::from(!client.dead_end);
            let outcome = client.failed.map_or_else(|| client.service.result(), Err);
            client.peer.inspect(|peer| self.args.log.client(peer, &outcome));
        }
        Ok(())
    }

    /// Ends what has waited too long: its request is cancelled, and goes on from there when that is confirmed.
    fn sweep(&mut self, now: Instant) -> Result<(), Failed> {
        if self.nearest.is_none_or(|at| now < at.max(self.swept + TICK)) {
            return Ok(());
        }
        let mut late = Vec::new();
        for client in self.clients.values_mut().filter(|c| !c.is_cancelled && c.service.deadline() <= now) {
            client.service.expire(now);
            client.is_cancelled = true;
            late.extend(client.in_flight);
        }
        self.swept = now;
        self.nearest = self.clients.values().filter(|c| !c.is_cancelled).map(|c| c.service.deadline()).min();
        late.into_iter().try_for_each(|request| self.ask(opcode::AsyncCancel::new(request).build(), CANCEL))
    }
}
