//! Chat with processes: a worker process per client, and a hub process that owns every socket.
//!
//! Run: cargo run -p v0-processes
//! Try: cargo run -p chat -- --nick alice
//! Prev: server08-tokio
//! Next: v1-threads
//! Diff base: none
//! Overload: refuse (above --max-conns the hub sends `! server-full`, and no worker is forked)
//! Slow reader: kick (`! slow-reader` when --outbox is full, or after --write-timeout)

mod bus;
mod children;
mod hub;
mod log_file;
mod worker;

use std::net::{IpAddr, Shutdown};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::ToHub;
use chat::server::ip;
use chat::{ClientId, Options, Slow};
use children::{Children, HUB};
use common::descriptors::limit_descriptors;
use common::report::{Failed, ready};
use common::sock::Backoff;
use hub::Hub;
use lifecycle::end_child;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{ForkResult, fork};
use socket2::Socket;

fn main() -> Result<(), Failed> {
    let (mut parent, hub) = Parent::start()?;
    // Fork the hub before the first client: no worker must inherit the hub's end of the bus.
    // SAFETY: this process has one thread, so the child may do whatever the parent may do.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => hub_process(parent, hub),
        ForkResult::Parent { child } => parent.children.add(child, HUB),
    }
    drop(hub); // the parent's copies of the hub's descriptors
    ready(&parent.listener);
    while parent.wait() {
        let Some(client) = parent.accept() else { continue };
        let Some((link, hub_end)) = parent.new_link() else {
            parent.send_to_hub(&client, None); // the hub rejects the client
            continue;
        };
        // SAFETY: as above.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => worker_process(parent, client, link, hub_end),
            Ok(ForkResult::Parent { child }) => {
                parent.children.add(child, client.id);
                parent.send_to_hub(&client, Some(&hub_end));
            }
            Err(e) => {
                parent.options.log.repeated("WARN", &format!("fork: {e}"));
                parent.send_to_hub(&client, None);
            }
        }
        // The parent's copies of the connection and of both ends of the link are closed here.
    }
    parent.end()
}

/// How long the hub may run after the shutdown timeout.
const HUB_DELAY: Duration = Duration::from_millis(500);

/// An accepted client. Its number is never used again; a pid or a descriptor is.
struct Client {
    id: ClientId,
    address: IpAddr,
    conn: Socket,
}

/// The parent process: it accepts, forks and reaps. It never waits for a client.
struct Parent {
    options: Options,
    listener: Socket,
    /// The pause of accept after EMFILE.
    backoff: Backoff,
    /// The parent's end of the bus, a pair of sockets between the parent and the hub.
    bus: Socket,
    children: Children,
    last_id: ClientId,
}

/// The hub process. It closes its copies of the parent's descriptors first.
fn hub_process(parent: Parent, hub: Hub) -> ! {
    let log = parent.options.log.clone();
    drop(parent);
    end_child(hub.run(), &log)
}

/// A worker process. It closes its copies of the parent's descriptors first. With a copy of the
/// listener, a worker that outlives the parent would keep the port in use. With a copy of the bus,
/// the hub would not read end of file when the parent dies. With a copy of the hub's end of its own
/// link, the worker would not read end of file when the hub dies.
fn worker_process(parent: Parent, client: Client, link: Socket, hub_end: Socket) -> ! {
    let Options { limits, log, .. } = parent.options.clone();
    drop((parent, hub_end));
    // An error means that the client or the hub has closed its socket: the session is over.
    let _ = worker::run(&client.conn, &link, &limits);
    end_child(Ok(()), &log)
}

impl Parent {
    /// Does everything that can fail at the start, except fork: also for the hub.
    fn start() -> Result<(Parent, Hub), Failed> {
        let command = Options::command("v0-processes", "Chat with a worker process per client")
            .mut_arg("max_conns", |arg| arg.default_value("64"))
            .mut_arg("log", |arg| arg.default_value("chat_log.txt"));
        let options = Options::of(command);
        let children = Children::new(&options.log)?;
        limit_descriptors(u64::MAX)?;
        let listener = options.listen()?;
        let room = options.room(Slow::Kick)?;
        // If a client leaves between poll and accept, accept must not sleep.
        listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        let (bus, hub_end) = bus::pair().context("socketpair")?;
        // A hub that does not read blocks the parent for this time only.
        bus.set_write_timeout(Some(HUB_DELAY)).context("setsockopt SO_SNDTIMEO")?;
        let hub = Hub::new(room, hub_end, &options.log)?;
        let (backoff, last_id) = (Backoff::default(), HUB);
        let parent = Parent { options, listener, backoff, bus, children, last_id };
        Ok((parent, hub))
    }

    /// Sleeps until a client connects or a signal arrives. False: the server stops.
    fn wait(&mut self) -> bool {
        let mut fds = vec![PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
        // After EMFILE the listener stays readable, and the loop would spin: accept is paused.
        let paused_until = self.backoff.until();
        if paused_until.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        bus::wait(&mut fds, paused_until);
        self.backoff.expire(Instant::now());
        self.children.take_signals();
        self.children.is_running()
    }

    /// Accepts the next client, if there is one.
    fn accept(&mut self) -> Option<Client> {
        match self.listener.accept() {
            Ok((conn, peer)) => {
                self.last_id += 1;
                Some(Client { id: self.last_id, address: ip(&peer), conn })
            }
            Err(e) => {
                let pause = self.backoff.pause("accept", &e, &self.options.log);
                self.children.failure = pause.err();
                None
            }
        }
    }

    /// Both ends of the link between a new worker and the hub. None: all slots are in use, or the
    /// parent has no free descriptor.
    fn new_link(&self) -> Option<(Socket, Socket)> {
        let has_slot = self.children.workers() < self.options.limits.max_conns as usize;
        let pair = has_slot.then(bus::pair)?;
        pair.inspect_err(|e| self.options.log.repeated("WARN", &format!("socketpair: {e}"))).ok()
    }

    /// Passes the client's socket to the hub, after the hub's end of the link to the worker. The
    /// hub rejects a client without a worker.
    fn send_to_hub(&self, client: &Client, link: Option<&Socket>) {
        let Client { id, address, .. } = *client;
        let message = ToHub::Client { id, address, has_worker: link.is_some() };
        let sent = link
            .map_or(Ok(()), |link| bus::send(&self.bus, &ToHub::Link, Some(link)))
            .and_then(|()| bus::send(&self.bus, &message, Some(&client.conn)));
        if let Err(e) = sent {
            self.options.log.repeated("WARN", &format!("sendmsg: {e}"));
        }
    }

    /// Stops the server. The hub reads end of file on the bus and sends the final messages. Then it
    /// closes the links, and the workers read end of file too.
    fn end(self) -> Result<(), Failed> {
        let _ = self.listener.shutdown(Shutdown::Read); // the kernel refuses new connections
        let _ = self.bus.shutdown(Shutdown::Write);
        self.children.end(self.options.limits.grace() + HUB_DELAY)
    }
}
