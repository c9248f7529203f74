//! Chat with processes: a worker per client, a hub that owns every socket, and a bus between them.
//!
//! Run: cargo run -p v0-processes
//! Try: cargo run -p chat -- --nick alice
//! Prev: server08-tokio
//! Next: v1-threads
//! Diff base: none
//! Overload: refuse (beyond --max-conns the hub says `! server-full`; nothing is forked for such a client)
//! Slow reader: kick (`! slow-reader` when --outbox is full or nothing moves)

mod bus;
mod hub;
mod ledger;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::{Received, Record, Tag};
use chat::cli::{KEEPALIVE, USER_TIMEOUT};
use chat::history::{Log as ChatLog, Said};
use chat::{ConnId, Limits};
use clap::{CommandFactory, FromArgMatches, Parser};
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use ledger::Ledger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use socket2::{Socket, TcpKeepalive};

const BACKLOG: i32 = 1024;
/// A process per client: fewer than the other chats take, unless asked for more.
const MAX_CONNS: &str = "64";
/// What the hub may take longer than the grace.
const HUB_ENDS: Duration = Duration::from_millis(500);

/// Chat with a process per client
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// The parent's view: who lives, and who is at the door.
struct Parent {
    args: Args,
    /// None: closed, and clients are refused by the kernel.
    listener: Option<Socket>,
    signals: SignalFd,
    /// Its end of the bus, the same that every worker has.
    bus: Socket,
    hub: Pid,
    /// The room is over, whether that was meant or not.
    hub_ended: Option<WaitStatus>,
    workers: BTreeMap<Pid, ConnId>,
    /// Numbers, not pids: a pid is used again.
    number: ConnId,
    /// The dead, for as long as the bus is full. The parent never waits for the hub.
    dead: VecDeque<ConnId>,
    backoff: Backoff,
    /// Out of descriptors, and not accepting before this.
    shut_until: Option<Instant>,
    stops: u32,
}

fn main() -> Result<(), Failed> {
    let command = Args::command().mut_arg("max_conns", |arg| arg.default_value(MAX_CONNS));
    let args = Args::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit());
    // Signals come as descriptors. Blocked before the ready line, so that one sent right after it waits here.
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
    descriptors()?;
    let (chat_log, said) = open_log(&args.limits)?;
    let listener = listen(&args.listen, BACKLOG)?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    lasting(&listener).context("setsockopt")?;

    let (hubs, bus) = bus::pair().context("socketpair")?;
    let (parent, ledger) = (getpid(), Ledger::new(chat_log));
    // The hub comes first: what is forked later has no copy of its end of the bus, nor of the log.
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let hub = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => hub((listener, signals, bus), hubs, ledger, said, parent, &args),
        ForkResult::Parent { child } => child,
    };
    drop((ledger, said, hubs));
    let parent = Parent {
        args,
        listener: Some(listener),
        signals,
        bus,
        hub,
        hub_ended: None,
        workers: BTreeMap::new(),
        number: 0,
        dead: VecDeque::new(),
        backoff: Backoff::default(),
        shut_until: None,
        stops: 0,
    };
    parent.run()
}

/// In the child, before the first client: what the hub does not need goes.
fn hub(
    parents: (Socket, SignalFd, Socket),
    bus: Socket,
    ledger: Ledger,
    said: Vec<Said>,
    parent: Pid,
    args: &Args,
) -> ! {
    drop(parents);
    hub::run(bus, ledger, said, parent, &args.limits, &args.log)
}

/// In the child. The listener must go: a worker that outlived the parent would keep the port taken.
fn worker(parents: Parent, conn: Socket, parent: Pid) -> ! {
    let Parent { args, bus, number, listener, signals, .. } = parents;
    drop((listener, signals));
    worker::run(conn, &bus, number, parent, &args.limits)
}

/// The log is the hub's; opened here, so that a bad name is a start error.
fn open_log(limits: &Limits) -> Result<(Option<ChatLog>, Vec<Said>), Failed> {
    if limits.no_log {
        return Ok((None, Vec::new()));
    }
    let opened = ChatLog::open(&limits.log, limits.history).with_context(|| limits.log.display().to_string());
    let (log, said) = opened?;
    Ok((Some(log), said))
}

/// A member whose cable was cut stays in the room no longer than these say. Accepted sockets inherit them.
fn lasting(listener: &Socket) -> io::Result<()> {
    let (silence, between, probes) = KEEPALIVE;
    listener.set_tcp_keepalive(&TcpKeepalive::new().with_time(silence).with_interval(between).with_retries(probes))?;
    listener.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The soft limit of descriptors is low for the sake of programs that use select; any process may raise its own.
fn descriptors() -> Result<(), Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?)
}

impl Parent {
    fn run(mut self) -> Result<(), Failed> {
        let outcome = loop {
            // Here and nowhere else in the loop: a signal that was taken after this look would be slept over. And the
            // dead before the next client: they leave places.
            self.take_signals();
            if self.stops > 0 {
                break Ok(());
            }
            if let Some(status) = self.hub_ended {
                break Err(Failed::new(format!("hub: {status:?}")));
            }
            let conn = match self.next_client() {
                Ok(Some(conn)) => conn,
                Ok(None) => {
                    self.sleep();
                    continue;
                }
                Err(e) => break Err(e),
            };
            self.number += 1;
            if self.workers.len() >= self.args.limits.max_conns as usize {
                self.turn_away(&conn);
                continue;
            }
            let parent = getpid();
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => worker(self, conn, parent),
                Ok(ForkResult::Parent { child }) => self.employ(child, &conn),
                Err(e) => self.turn_away_after(&format!("fork: {e}"), &conn),
            }
            // The drop of `conn` closes the parent's copy: from here on it is the worker's and the hub's.
        };
        self.end();
        outcome
    }

    fn employ(&mut self, child: Pid, conn: &Socket) {
        self.workers.insert(child, self.number);
        if let Some(peer) = conn.peer_addr().ok().and_then(|peer| peer.as_socket()) {
            self.args.log.info(&format!("client {} is {peer}, worker {child}", self.number));
        }
    }

    /// The hub says the last words: it can wait for the client to hear them, and the parent cannot.
    fn turn_away(&mut self, conn: &Socket) {
        let refused = Record::new(Tag::Refused, self.number);
        if let Err(e) = bus::send(&self.bus, &refused, Some(conn), libc::MSG_DONTWAIT) {
            self.args.log.repeated("WARN", &format!("sendmsg: {e}"));
        }
    }

    fn turn_away_after(&mut self, failure: &str, conn: &Socket) {
        self.args.log.repeated("WARN", failure);
        self.turn_away(conn);
    }

    /// A client, if one waits and the door is open.
    fn next_client(&mut self) -> Result<Option<Socket>, Failed> {
        let now = Instant::now();
        if self.shut_until.is_some_and(|until| now < until) {
            return Ok(None);
        }
        self.shut_until = None;
        let Some(listener) = &self.listener else { return Ok(None) };
        match listener.accept() {
            Ok((conn, _)) => return Ok(Some(conn)),
            // Nobody there: poll says when to ask again.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                self.args.log.repeated("WARN", &format!("accept: {e}"));
                match accept_failed(e.raw_os_error().unwrap_or_default()) {
                    Verdict::Next => {}
                    // The connection stays in the queue and the listener readable: who does not look away spins.
                    Verdict::Backoff => self.shut_until = Some(now + self.backoff.next(now)),
                    Verdict::Fatal => return Err(Failed::new(format!("accept: {e}"))),
                }
            }
        }
        Ok(None)
    }

    /// Waits for a client, a signal, a word from the hub, or room on the bus for the dead.
    fn sleep(&mut self) {
        let words = match self.dead.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        };
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.bus.as_fd(), words)];
        let left = self.shut_until.map(|until| until.saturating_duration_since(Instant::now()).as_millis() + 1);
        if let (None, Some(listener)) = (left, &self.listener) {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        let patience = left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        let _ = poll(&mut fds, patience);
        if let Ok(Received::Record(Record { tag: Tag::NoRoom, id, .. }, _)) = bus::receive(&self.bus) {
            // The worker is not reaped, so its pid is nobody else's.
            for (pid, _) in self.workers.iter().filter(|(_, worker)| **worker == id) {
                let _ = kill(*pid, Signal::SIGUSR1);
            }
        }
        self.bury();
    }

    /// Reads the signals, of which several may have become one, and reaps.
    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTERM | Signal::SIGINT) => self.stops += 1,
                _ => self.reap(),
            }
        }
    }

    /// A loop, since signals do not queue: children that end together may send one SIGCHLD.
    fn reap(&mut self) {
        while let Some((pid, status)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|s| Some((s.pid()?, s)))
        {
            if pid == self.hub {
                self.hub_ended = Some(status);
            }
            let Some(id) = self.workers.remove(&pid) else { continue };
            if !matches!(status, WaitStatus::Exited(_, 0)) && self.stops == 0 && self.hub_ended.is_none() {
                self.args.log.warn(&format!("worker {pid} of client {id} ended: {status:?}"));
            }
            self.dead.push_back(id);
        }
        self.bury();
    }

    /// Tells the hub who is dead: after whatever they had said, since there is one bus.
    fn bury(&mut self) {
        while let Some(id) = self.dead.front() {
            match bus::send(&self.bus, &Record::new(Tag::Dead, *id), None, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Sent, or there is no hub any more.
                _ => drop(self.dead.pop_front()),
            }
        }
    }

    /// The hub says good-bye to everybody; by that the workers end. Whoever has not when the time is over, or when a
    /// second signal comes, is killed. All are reaped.
    fn end(mut self) {
        self.listener = None;
        // Neither is reaped yet, so neither pid is a stranger's.
        if self.hub_ended.is_none() {
            let _ = kill(self.hub, Signal::SIGTERM);
        }
        let end = Instant::now() + self.args.limits.grace() + HUB_ENDS;
        while self.hub_ended.is_none() || !self.workers.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            // A hub that has ended has shut down every connection that it knew, and its workers end by that. Or it was
            // killed: then each of them still waits for its client.
            if left.is_zero() || self.stops > 1 || self.hub_ended.is_some() {
                self.kill_all();
            }
            let patience = PollTimeout::try_from(left.as_millis().max(10)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], patience);
            self.take_signals();
        }
        self.args.log.cpu_time();
    }

    fn kill_all(&self) {
        let hub = self.hub_ended.is_none().then_some(self.hub);
        for pid in self.workers.keys().copied().chain(hub) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
