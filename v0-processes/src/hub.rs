//! The hub: it owns every client's socket, the room and the log file.
//!
//! The hub is one process with one thread, so all lines get one order: on the sockets, in the
//! history and in the log file. It sleeps in poll and in no other call, so no client and no worker
//! can block the others.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use chat::{ClientId, Event, Room};
use common::report::{Failed, Log};
use nix::poll::{PollFd, PollFlags};
use socket2::Socket;

use crate::bus::{self, Received, ToHub};
use crate::log_file::LogFile;

/// With this flag send and recv return EAGAIN instead of sleeping. O_NONBLOCK is no alternative: it
/// belongs to the open file description, which the hub and the worker share, and the worker's read
/// has to sleep.
const DONTWAIT: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// The state of the hub.
struct Hub {
    /// The whole chat, without sockets: members, history, limits, and what waits for each client.
    room: Room,
    /// A client has the same number in the room.
    clients: BTreeMap<ClientId, Client>,
    /// The hub's end of the bus. End of file means that the parent stops the server or has died.
    bus: Socket,
    /// The link to the worker of the next client: the parent sends it just before the client.
    next_link: Option<Socket>,
    log: Log,
}

/// A client, as the hub knows it.
struct Client {
    /// The hub writes to the socket. The worker has a copy of the descriptor, and reads from it.
    conn: Socket,
    /// The hub's end of the link to the worker. None: the worker has ended, or has to end.
    link: Option<Socket>,
}

/// A socket that poll watches.
enum Ready {
    /// The parent has sent a message, or has closed the bus.
    Bus,
    /// The worker of this client has sent a message, or has ended.
    Link(ClientId),
    /// The client has sent bytes, and no worker reads them.
    Readable(ClientId),
    /// The kernel takes bytes for the client again.
    Writable(ClientId),
}

/// Serves all clients until the parent closes the bus and every session has ended.
pub fn run(mut room: Room, bus: Socket, log: &Log) -> Result<(), Failed> {
    let mut log_file = LogFile::new(room.take_log(), log);
    let (clients, next_link) = (BTreeMap::new(), None);
    let mut hub = Hub { room, clients, bus, next_link, log: log.clone() };
    while !hub.room.is_done() {
        let deadline = hub.room.deadline().into_iter().chain(log_file.deadline()).min();
        let ready = hub.wait(deadline);
        let now = Instant::now();
        for socket in ready {
            match socket {
                Ready::Bus => hub.read_bus(now).context("recvmsg")?,
                Ready::Link(id) => hub.read_link(id, now),
                Ready::Readable(id) => hub.discard(id, now),
                Ready::Writable(id) => hub.write(id, now),
            }
        }
        // Timeouts, and then each client that has to be written to because of all these events.
        hub.room.tick(now);
        while let Some(id) = hub.room.next_changed() {
            hub.write(id, now);
        }
        log_file.write(hub.room.take_records(), hub.room.is_done());
    }
    Ok(())
}

impl Hub {
    /// Sleeps until a socket is ready or the deadline has passed.
    fn wait(&self, deadline: Option<Instant>) -> Vec<Ready> {
        let (mut sockets, mut fds) = (Vec::new(), Vec::new());
        let mut watch = |name, socket, events| {
            sockets.push(name);
            fds.push(PollFd::new(Socket::as_fd(socket), events));
        };
        // After end of file the bus would always be readable, and the loop would spin.
        if !self.room.is_stopping() {
            watch(Ready::Bus, &self.bus, PollFlags::POLLIN);
        }
        for (id, client) in &self.clients {
            let Some(session) = self.room.session(*id) else { continue };
            if let Some(link) = &client.link {
                watch(Ready::Link(*id), link, PollFlags::POLLIN);
            } else if session.is_closing() {
                // No worker reads what the client still sends.
                watch(Ready::Readable(*id), &client.conn, PollFlags::POLLIN);
            }
            if session.wants_write() {
                // Only now: an idle socket is always writable.
                watch(Ready::Writable(*id), &client.conn, PollFlags::POLLOUT);
            }
        }
        bus::wait(&mut fds, deadline);
        let mut is_ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        sockets.retain(|_| is_ready.next().unwrap_or(false));
        sockets
    }

    /// Reads one message from the parent.
    fn read_bus(&mut self, now: Instant) -> io::Result<()> {
        match bus::receive(&self.bus)? {
            Received::Message(ToHub::Link, Some(link)) => self.next_link = Some(link.into()),
            Received::Message(ToHub::Client { id, address, has_worker }, Some(conn)) => {
                let link = self.next_link.take();
                if has_worker && link.is_none() {
                    // The link was lost. The worker has read end of file, and rejects the client.
                    return Ok(());
                }
                self.clients.insert(id, Client { conn: conn.into(), link });
                self.room.connect(id, address, now);
                if !has_worker {
                    self.room.handle(id, Event::Full, now);
                }
            }
            // The kernel has dropped a descriptor. If it was the client's, the link is closed here,
            // and the worker rejects the client.
            Received::Message(..) => {
                self.next_link = None;
                self.log.repeated("WARN", "recvmsg: MSG_CTRUNC: no free descriptor for a client");
            }
            Received::EndOfFile => self.room.shut_down(now),
            Received::Nothing => {}
        }
        Ok(())
    }

    /// Reads one message from a worker, and no more: a client that sends many lines delays the
    /// others by one line per iteration.
    fn read_link(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.link.as_ref().map_or(Ok(Received::Nothing), bus::receive) {
            Ok(Received::Message(Event::Closed, _)) => self.room.receive(id, b"", now),
            Ok(Received::Message(event, _)) => self.room.handle(id, event, now),
            Ok(Received::Nothing) => {}
            // The worker has ended, for whatever reason. End of file comes after its last message.
            Ok(Received::EndOfFile) | Err(_) => {
                client.link = None;
                self.room.handle(id, Event::Crashed, now);
            }
        }
    }

    /// Reads and discards what a client sends after its final message. A close with unread bytes
    /// would send a RST, and the client could lose that message.
    fn discard(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get(&id) else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let received = client.conn.recv_with_flags(&mut buffer, DONTWAIT);
        self.room.received(id, &received, &[0; 4096], now);
    }

    /// Sends what is waiting for a client. After its final message, ends the connection.
    fn write(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(session) = self.room.session_mut(id) else { return };
        while session.wants_write() {
            let sent = client.conn.send_with_flags(session.pending(), DONTWAIT);
            if !session.sent(&sent, now) {
                break;
            }
        }
        if session.finish(now) {
            // shutdown sends a FIN although the worker has a copy of the descriptor. close would
            // not. Closing the link ends the worker.
            let _ = client.conn.shutdown(Shutdown::Write);
            client.link = None;
        }
        if session.is_over() {
            // Also ends a read of the worker.
            let _ = client.conn.shutdown(Shutdown::Both);
            self.clients.remove(&id);
            self.room.remove(id, now);
        }
    }
}
