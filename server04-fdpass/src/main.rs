//! TCP pre-forked server with descriptor passing: the parent accepts and hands each client to a free child.
//!
//! Run: cargo run -p server04-fdpass -- -v
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03b-reuseport
//! Next: server05-threads
//! Diff base: server03-prefork
//! Overload: queue (in the listener's backlog: the parent accepts only when a worker is free)

mod fd_channel;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen, Pool};
use common::report::{Failed, Log};
use common::service::serve;
use common::sock::{Backoff, Verdict, accept_failed, listen};
use fd_channel::{Received, recv_fd, send_fd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 1024;
/// What a worker says to the parent, a byte each: the client is mine; I had no number for it; give me the next.
const TAKEN: u8 = b't';
const LOST: u8 = b'l';
const FREE: u8 = b'f';
/// A dead worker is replaced at once; the second and later ones in the same place after this, doubling ...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ... to this, until one has lived for a while.
const PAUSE_MOST: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that fails so soon is not unlucky: what it needs is not there. So many of them in `SETTLED` end the server.
const AT_START: Duration = Duration::from_secs(1);
const FAILURES: usize = 5;

/// TCP pre-forked server with descriptor passing
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// The descriptor a child is serving from: its channel, or its client's while it has one.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);

/// A place in the pool.
struct Worker {
    /// None: the place is vacant until `due`.
    pid: Option<Pid>,
    born: Instant,
    due: Instant,
    /// How long the place stays vacant the next time.
    pause: Duration,
    /// The parent's end of the channel, while anybody is at the other.
    channel: Option<Socket>,
    /// It has no client and waits for one.
    free: bool,
    /// A client that was sent to it and that it has not taken. Until then the parent keeps its copy: a worker that dies
    /// first has not read a byte of it, and another can have it. Then it must go, or the client would never see the end.
    offer: Option<Socket>,
}

/// Where clients come in.
struct Door {
    listener: Socket,
    backoff: Backoff,
    /// Out of descriptors, and not accepting before this.
    shut_until: Instant,
    /// Accepted, offered and not taken: the next free workers get these first.
    back: Vec<Socket>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal(Signal::SIGCHLD, wake)?;
    on_signal(Signal::SIGTERM, stop)?;
    on_signal(Signal::SIGINT, stop)?;
    // In the parent they are taken in ppoll and nowhere else, so none is missed between a look and a sleep.
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]).thread_block().context("sigprocmask")?;

    let listener = listen(&args.listen, BACKLOG)?;
    // A client can go away between ppoll and accept; accept must not sleep until the next one comes.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let (parent, now) = (getpid(), Instant::now());
    let mut pool: Vec<Worker> = (0..args.pool.workers).map(|_| Worker::vacant(now)).collect();
    let mut door = Door { listener, backoff: Backoff::default(), shut_until: now, back: Vec::new() };
    let mut failures = Vec::new();
    let mut outcome = Ok(());
    while STOPS.load(SeqCst) == 0 && failures.len() < FAILURES {
        while let Some(place) = pool.iter().position(Worker::is_due) {
            let mut worker = pool.swap_remove(place);
            // SEQPACKET: a byte is a message, and no two are ever merged.
            let Ok((ours, theirs)) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None) else {
                worker.vacate_after("socketpair: no channel for a worker", &args.log);
                pool.push(worker);
                continue;
            };
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child((door, pool, ours), theirs, parent, &args),
                Ok(ForkResult::Parent { child }) => worker.employ(child, ours),
                Err(e) => worker.vacate_after(&format!("fork: {e}"), &args.log),
            }
            pool.push(worker);
        }
        outcome = door.hand_out(&mut pool, &args.log);
        if outcome.is_err() {
            break; // the listener is not one any more
        }
        door.sleep(&mut pool, &args.log);
        reap_children(&mut pool, &mut failures, &args.log);
    }

    let gives_up = STOPS.load(SeqCst) == 0;
    drop(door); // close: from here on clients are refused
    end_children(&mut pool, &args);
    args.log.cpu_time();
    outcome?;
    if gives_up {
        return Err(Failed::new(format!("{FAILURES} workers failed at their start within {SETTLED:?}")));
    }
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping recvmsg returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

impl Worker {
    fn vacant(now: Instant) -> Worker {
        Worker { pid: None, born: now, due: now, pause: Duration::ZERO, channel: None, free: false, offer: None }
    }

    /// Not before the channel of the dead one has been heard to its end.
    fn is_due(&self) -> bool {
        self.pid.is_none() && self.channel.is_none() && self.due <= Instant::now()
    }

    fn employ(&mut self, child: Pid, channel: Socket) {
        let _ = channel.set_nonblocking(true); // this end only: the worker's sleeps
        (self.pid, self.born) = (Some(child), Instant::now());
        // Free from the first moment: what is sent before it listens waits in the channel.
        (self.channel, self.free) = (Some(channel), true);
    }

    fn is_free(&self) -> bool {
        self.free && self.pid.is_some() && self.channel.is_some()
    }

    fn vacate_after(&mut self, failure: &str, log: &Log) {
        log.repeated("WARN", failure);
        self.vacate();
    }

    /// Leaves the place vacant for a while: no time at all the first time, so that a worker that was killed is hardly
    /// missed, and longer each time while its workers keep dying young.
    fn vacate(&mut self) {
        let now = Instant::now();
        if self.pid.take().is_some() && now.duration_since(self.born) >= SETTLED {
            self.pause = Duration::ZERO;
        }
        self.due = now + self.pause;
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MOST);
    }
}

impl Door {
    /// A client for every free worker, as long as there are clients. With no worker free, nobody is accepted.
    fn hand_out(&mut self, pool: &mut [Worker], log: &Log) -> Result<(), Failed> {
        for worker in pool {
            let (true, Some(pid), Some(channel)) = (worker.free, worker.pid, &worker.channel) else { continue };
            let Some(client) = self.next_client(log)? else { break };
            if let Some(peer) = client.peer_addr().ok().and_then(|peer| peer.as_socket()) {
                log.info(&format!("client {peer} goes to worker {pid}"));
            }
            match send_fd(channel, &client) {
                Ok(()) => (worker.free, worker.offer) = (false, Some(client)),
                // EPIPE: the worker is ending. Another one will have the client.
                Err(e) => {
                    log.repeated("WARN", &format!("sendmsg: {e}"));
                    worker.channel = None;
                    self.back.push(client);
                }
            }
        }
        Ok(())
    }

    /// One that was offered before and not taken, or one from the backlog.
    fn next_client(&mut self, log: &Log) -> Result<Option<Socket>, Failed> {
        let now = Instant::now();
        if !self.back.is_empty() || now < self.shut_until {
            return Ok(self.back.pop());
        }
        match self.listener.accept() {
            Ok((client, _)) => return Ok(Some(client)),
            // Nobody there, or a signal came: ppoll says when to ask again.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                log.repeated("WARN", &format!("accept: {e}"));
                match accept_failed(e.raw_os_error().unwrap_or_default()) {
                    Verdict::Next => {}
                    // The connection stays in the queue and the listener readable: who does not look away spins.
                    Verdict::Backoff => self.shut_until = now + self.backoff.next(now),
                    Verdict::Fatal => return Err(Failed::new(format!("accept: {e}"))),
                }
            }
        }
        Ok(None)
    }

    /// Sleeps until a worker speaks, a client comes while a worker is free, a child ends or a stop is asked for. Then
    /// hears every worker that has spoken.
    fn sleep(&mut self, pool: &mut [Worker], log: &Log) {
        let shut = Instant::now() < self.shut_until;
        let channels = pool.iter().filter_map(|worker| worker.channel.as_ref());
        let mut fds: Vec<PollFd> = channels.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)).collect();
        if !shut && pool.iter().any(Worker::is_free) {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        let patience = (shut || pool.iter().any(|worker| worker.pid.is_none())).then_some(PAUSE_FIRST.into());
        // The signals are unblocked here and nowhere else.
        let _ = ppoll(&mut fds, patience, Some(SigSet::empty()));
        let spoke: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let listening = pool.iter_mut().filter(|worker| worker.channel.is_some());
        listening.zip(spoke).filter(|(_, spoke)| *spoke).for_each(|(worker, _)| self.hear(worker, log));
    }

    /// Takes one word of a worker's; ppoll will say so if there is another.
    fn hear(&mut self, worker: &mut Worker, log: &Log) {
        let mut word = [0];
        match (worker.channel.as_ref().map(|mut channel| channel.read(&mut word)), word) {
            (Some(Ok(1)), [TAKEN]) => worker.offer = None,
            (Some(Ok(1)), [LOST]) => self.back.extend(worker.offer.take()),
            (Some(Ok(1)), [FREE]) => {
                worker.free = true;
                if let Some(pid) = worker.pid {
                    log.info(&format!("worker {pid} is free again"));
                }
            }
            (Some(Err(e)), _) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Its end is closed, ECONNRESET if a message was left unread there: whom it has not taken another one gets.
            _ => {
                worker.channel = None;
                self.back.extend(worker.offer.take());
            }
        }
    }
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(parents: (Door, Vec<Worker>, Socket), channel: Socket, parent: Pid, args: &Args) -> ! {
    // The listener, every other channel, clients: with a copy of one of them here, somebody would never see its end.
    drop(parents);
    STOP_FD.store(channel.as_raw_fd(), SeqCst);
    let _ = set_pdeathsig(Signal::SIGKILL);
    // Unblocked only now: a SIGTERM before the store would have found nothing to shut.
    let _ = SigSet::all().thread_unblock();
    // A parent that died before the prctl has sent no signal: stop at once.
    STOPS.fetch_add((getppid() != parent).into(), SeqCst);
    // A panic must not unwind into the parent's loop either.
    let outcome = catch_unwind(AssertUnwindSafe(|| serve_clients(&channel, args)));
    if let Ok(Err(failed)) = &outcome {
        args.log.repeated("Error:", &format!("{failed:?}; this worker ends"));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit((!matches!(outcome, Ok(Ok(())))).into()) }
}

/// The iterative server's loop, with recvmsg in the place of accept.
fn serve_clients(mut channel: &Socket, args: &Args) -> Result<(), Failed> {
    let mut backoff = Backoff::default();
    while STOPS.load(SeqCst) == 0 {
        let mut conn = match recv_fd(channel) {
            // The handler has shut the channel. What came through it all the same is not taken: the parent finds another
            // worker for it.
            _ if STOPS.load(SeqCst) > 0 => break,
            Ok(Received::Descriptor(fd)) => Socket::from(fd),
            // The parent still has the client. This worker had better pause before it is offered another.
            Ok(Received::NoRoom) => {
                args.log.repeated("WARN", "recvmsg: MSG_CTRUNC, no descriptor left for a client");
                let _ = channel.write(&[LOST]);
                thread::sleep(backoff.next(Instant::now()));
                let _ = channel.write(&[FREE]);
                continue;
            }
            Ok(Received::NoHandover) => {
                args.log.repeated("WARN", "recvmsg: a message that is no handover");
                continue;
            }
            // The parent has gone.
            Ok(Received::End) => break,
            // A signal came while recvmsg slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failed::new(format!("recvmsg: {e}"))),
        };
        // Before the first byte of the client's is read: until the parent hears this it may give the client to another.
        let _ = channel.write(&[TAKEN]);
        STOP_FD.store(conn.as_raw_fd(), SeqCst);
        // A stop before the store did not find this client: what it has sent by now is still answered.
        if STOPS.load(SeqCst) > 0 {
            let _ = conn.shutdown(Shutdown::Read);
        }
        let peer = conn.peer_addr();
        let outcome = serve(&mut conn, &args.limits);
        if let Ok(peer) = peer {
            args.log.client(&peer, &outcome);
        }
        STOP_FD.store(channel.as_raw_fd(), SeqCst);
        drop(conn); // close: the client sees the end of the stream
        let _ = channel.write(&[FREE]);
    }
    Ok(())
}

/// Reaps the children that have ended and leaves their places vacant. A loop, since signals do not queue: children that
/// end together may send one SIGCHLD. WNOHANG, since others live on.
fn reap_children(pool: &mut [Worker], failures: &mut Vec<Instant>, log: &Log) {
    while let Some((pid, status)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|s| Some((s.pid()?, s))) {
        // Exit 0 follows a SIGTERM, and SIGKILL comes from outside: neither is the worker's own failure.
        let told = matches!(status, WaitStatus::Exited(_, 0));
        let failed = !told && !matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        for worker in pool.iter_mut().filter(|worker| worker.pid == Some(pid)) {
            if failed && worker.born.elapsed() < AT_START {
                failures.push(Instant::now());
            }
            if !told {
                log.warn(&format!("worker {pid} ended: {status:?}"));
            }
            worker.vacate();
        }
    }
    failures.retain(|failure| failure.elapsed() < SETTLED);
}

/// Asks every child to finish, and kills those that have not when the grace is over or a second signal comes.
fn end_children(pool: &mut [Worker], args: &Args) {
    // A copy of a client that its worker has taken by now would keep it from seeing the end.
    pool.iter_mut().for_each(|worker| worker.offer = None);
    // A pid in the pool is a child of ours and not reaped, so it is no stranger.
    let tell = |pool: &[Worker], signal| {
        for pid in pool.iter().filter_map(|worker| worker.pid) {
            let _ = kill(pid, signal);
        }
    };
    tell(pool, Signal::SIGTERM);
    let end = Instant::now() + Duration::from_millis(args.limits.grace);
    while pool.iter().any(|worker| worker.pid.is_some()) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || STOPS.load(SeqCst) > 1 {
            tell(pool, Signal::SIGKILL);
        }
        let _ = ppoll(&mut [], Some(left.max(Duration::from_millis(10)).into()), Some(SigSet::empty()));
        reap_children(pool, &mut Vec::new(), &args.log);
    }
}

/// In a child: ends the sleep in recvmsg, or its client's reading; what was received is still answered. In the parent the
/// number is -1, and only the count counts.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// SIGCHLD: with a handler it interrupts ppoll, and without one it would be ignored.
extern "C" fn wake(_: libc::c_int) {}
