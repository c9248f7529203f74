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

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::{Record, timeout};
use chat::server::ip;
use chat::{ClientId, Options, Slow};
use common::report::Failed;
use common::sock::Backoff;
use common::descriptors::limit_descriptors;
use lifecycle::Signals;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, close, fork, getpid};
use socket2::Socket;

/// What the hub may take longer than the grace.
const HUB_ENDS: Duration = Duration::from_millis(500);

/// The parent's view: who lives, and who comes.
struct Parent {
    options: Options,
    listener: Socket,
    signals: Signals,
    backoff: Backoff,
    /// The socket to the hub.
    bus: Socket,
    hub: Pid,
    /// The room is over, whether that was meant or not.
    hub_ended: Option<WaitStatus>,
    workers: BTreeMap<Pid, ClientId>,
    last_id: ClientId,
    stops: u32,
}

fn main() -> Result<(), Failed> {
    // A process per client: fewer than the other chats take, unless asked for more.
    let command = Options::command("v0-processes", "Chat with a process per client");
    let options = Options::of(command.mut_arg("max_conns", |arg| arg.default_value("64")));
    // Blocked before the ready line, so that one sent right after it waits here; and in every child.
    let signals = Signals::of(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
    limit_descriptors(u64::MAX)?;
    let room = options.room(Slow::Kick)?;
    let listener = options.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let (bus, hubs) = bus::pair().context("socketpair")?;
    bus.set_write_timeout(Some(HUB_ENDS)).context("setsockopt SO_SNDTIMEO")?; // a hub that stands still stops nobody else
    let parent = getpid();
    // The hub comes first: what is forked later has no copy of its end of the bus, nor of the log.
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let hub = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop((listener, signals, bus));
            hub::run(room, hubs, parent, &options.log)
        }
        ForkResult::Parent { child } => child,
    };
    drop((room, hubs));
    let (backoff, workers) = (Backoff::default(), BTreeMap::new());
    let (hub_ended, last_id, stops) = (None, 0, 0);
    let mut parent = Parent { options, listener, signals, backoff, bus, hub, hub_ended, workers, last_id, stops };
    let outcome = parent.run();
    parent.end();
    outcome
}

impl Parent {
    fn run(&mut self) -> Result<(), Failed> {
        while self.stops == 0 {
            if let Some(status) = self.hub_ended {
                return Err(Failed::new(format!("hub: {status:?}")));
            }
            match self.listener.accept() {
                // The drop of `conn` closes the parent's copy: from here on it is the worker's and the hub's.
                Ok((conn, peer)) => self.serve(&conn, ip(&peer)),
                Err(e) => drop(self.backoff.pause("accept", &e, &self.options.log)?),
            }
            self.wait();
        }
        Ok(())
    }

    /// A worker for the client, if there is a place. Without one the hub only turns the client away: it can wait for the
    /// client to hear it.
    fn serve(&mut self, conn: &Socket, address: IpAddr) {
        self.last_id += 1;
        let id = self.last_id;
        let has_place = self.workers.len() < self.options.limits.max_conns as usize;
        let link = match bus::pair() {
            Ok((hubs, workers)) if has_place => self.fork_worker(conn, hubs, &workers),
            _ => None,
        };
        self.tell_hub(&Record::Client { id, address, has_worker: link.is_some() }, conn);
        link.iter().for_each(|link| self.tell_hub(&Record::Link { id }, link));
    }

    /// The hub's end of the link to a new worker.
    fn fork_worker(&mut self, conn: &Socket, hubs: Socket, workers: &Socket) -> Option<Socket> {
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // A worker that outlived the parent would keep the port taken.
                for fd in [self.listener.as_raw_fd(), self.signals.as_raw_fd(), self.bus.as_raw_fd(), hubs.as_raw_fd()]
                {
                    let _ = close(fd);
                }
                worker::run(conn, workers, &self.options.limits)
            }
            Ok(ForkResult::Parent { child }) => {
                self.workers.insert(child, self.last_id);
                Some(hubs)
            }
            Err(e) => {
                self.options.log.repeated("WARN", &format!("fork: {e}"));
                None
            }
        }
    }

    fn tell_hub(&self, record: &Record, fd: &Socket) {
        if let Err(e) = bus::send(&self.bus, record, Some(fd)) {
            self.options.log.repeated("WARN", &format!("sendmsg: {e}"));
        }
    }

    /// Waits for a client or a signal; reaps, and counts the stops. Before the next client: the dead leave places.
    fn wait(&mut self) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let pause = self.backoff.until();
        if pause.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, timeout(pause));
        self.backoff.expire(Instant::now());
        self.take_signals();
    }

    /// Signals do not queue: several may have become one, and children that end together may send one SIGCHLD.
    fn take_signals(&mut self) {
        while let Ok(signal) = self.signals.read() {
            self.stops += u32::from(signal != Signal::SIGCHLD);
        }
        while let Some((pid, status)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|s| Some((s.pid()?, s)))
        {
            if pid == self.hub {
                self.hub_ended = Some(status);
            }
            let id = self.workers.remove(&pid);
            if id.is_some() && !matches!(status, WaitStatus::Exited(_, 0)) && self.stops == 0 {
                self.options.log.warn(&format!("worker {pid} of client {id:?} ended: {status:?}"));
            }
        }
    }

    /// The hub says good-bye to everybody, and closes its links; by that the workers end. Whoever has not when the time is
    /// over, or when a second signal comes, is killed. All are reaped: until then no pid is a stranger's.
    fn end(&mut self) {
        let _ = self.listener.shutdown(Shutdown::Read); // new clients are refused
        if self.hub_ended.is_none() {
            let _ = kill(self.hub, Signal::SIGTERM);
        }
        let end = Instant::now() + self.options.limits.grace() + HUB_ENDS;
        while self.hub_ended.is_none() || !self.workers.is_empty() {
            if self.stops > 1 || Instant::now() >= end {
                let hub = self.hub_ended.is_none().then_some(self.hub);
                self.workers.keys().copied().chain(hub).for_each(|pid| _ = kill(pid, Signal::SIGKILL));
            }
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], 20u8);
            self.take_signals();
        }
        self.options.log.cpu_time();
    }
}
