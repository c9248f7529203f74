//! The hub: it owns every client's socket, the room and the log file.
//!
//! The hub is one process with one thread, so all lines get one order: on the sockets, in the
//! history and in the log file. It sleeps in epoll_wait and in no other call, so no client and no
//! worker can block the others.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::time::Instant;

use anyhow::Context;
use chat::{ClientId, Event, Room};
use common::report::{Failed, Log};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::Socket;

use crate::bus::{self, Received, ToHub};
use crate::log_file::LogFile;

/// With this flag send and recv return EAGAIN instead of sleeping. O_NONBLOCK is no alternative: it
/// belongs to the open file description, which the hub and the worker share, and the worker's read
/// has to sleep.
const DONTWAIT: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// The key of the bus among the events. The link of client n has the key n ...
const BUS: u64 = 0;
/// ... and the socket of client n has the key n with this bit.
const CONN: u64 = 1 << 63;

/// The state of the hub.
pub struct Hub {
    /// The whole chat, without sockets: members, history, limits, and what waits for each client.
    room: Room,
    /// A client has the same number in the room.
    clients: BTreeMap<ClientId, Client>,
    /// Watches the bus, all links, and those sockets of clients that the hub has to wait for.
    epoll: Epoll,
    /// The hub's end of the bus. End of file means that the parent stops the server or has died.
    bus: Socket,
    /// The link to the worker of the next client: the parent sends it just before the client.
    next_link: Option<Socket>,
    log_file: LogFile,
    log: Log,
}

/// A client, as the hub knows it.
struct Client {
    /// The hub writes to the socket. The worker has a copy of the descriptor, and reads from it.
    conn: Socket,
    /// The hub's end of the link to the worker. None: the worker has ended, or has to end.
    link: Option<Socket>,
    /// What epoll watches the socket for. Empty: epoll does not watch the socket.
    interest: EpollFlags,
}

impl Hub {
    /// Does everything that can fail at the start. The parent calls it before fork.
    pub fn new(mut room: Room, bus: Socket, log: &Log) -> Result<Hub, Failed> {
        let log_file = LogFile::new(room.take_log(), log);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        epoll.add(&bus, EpollEvent::new(EpollFlags::EPOLLIN, BUS)).context("epoll_ctl")?;
        let (clients, next_link, log) = (BTreeMap::new(), None, log.clone());
        Ok(Hub { room, clients, epoll, bus, next_link, log_file, log })
    }

    /// Serves all clients until the parent has closed the bus and every session has ended.
    pub fn run(mut self) -> Result<(), Failed> {
        let mut events = [EpollEvent::empty(); 64];
        while !self.room.is_done() {
            let deadlines = self.room.deadline().into_iter().chain(self.log_file.deadline());
            // An error is EINTR: no event.
            let n = self.epoll.wait(&mut events, bus::timeout(deadlines.min())).unwrap_or(0);
            let now = Instant::now();
            for event in events.iter().take(n) {
                match event.data() {
                    BUS => self.read_bus(now).context("recvmsg")?,
                    id if id < CONN => self.read_link(id, now),
                    key => self.serve(key - CONN, now),
                }
            }
            self.write_changed(now);
            // Timeouts. A line that has just been sent has not moved any.
            self.room.tick(now);
            self.write_changed(now);
            self.log_file.write(self.room.take_records(), self.room.is_done());
        }
        Ok(())
    }

    /// Reads one message from the parent.
    fn read_bus(&mut self, now: Instant) -> io::Result<()> {
        match bus::receive(&self.bus)? {
            Received::Message(ToHub::Link, Some(link)) => self.next_link = Some(link.into()),
            Received::Message(ToHub::Client { id, address, has_worker }, Some(conn)) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, id);
                let mut link = self.next_link.take().filter(|_| has_worker);
                link = link.filter(|link| self.epoll.add(link, event).is_ok());
                if has_worker && link.is_none() {
                    // The link was lost. The worker has read end of file, and rejects the client.
                    return Ok(());
                }
                let (conn, interest) = (conn.into(), EpollFlags::empty());
                self.clients.insert(id, Client { conn, link, interest });
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
            Received::EndOfFile => {
                // From now on the bus is always readable: stop watching it, or the loop spins.
                self.epoll.delete(&self.bus)?;
                self.room.shut_down(now);
            }
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

    /// The client's socket is ready for what the hub waits for.
    fn serve(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.interest.contains(EpollFlags::EPOLLIN) {
            // Discards what the client has sent after its final message. A close with unread bytes
            // would send a RST, and the client could lose that message.
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let received = client.conn.recv_with_flags(&mut buffer, DONTWAIT);
            self.room.received(id, &received, &[0; 4096], now);
        }
        self.write(id, now);
    }

    /// Writes to all clients that have something to send, or whose session ends.
    fn write_changed(&mut self, now: Instant) {
        while let Some(id) = self.room.next_changed() {
            self.write(id, now);
        }
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
        let mut interest = EpollFlags::empty();
        // An idle socket is always writable: wait for that only while bytes are waiting.
        interest.set(EpollFlags::EPOLLOUT, session.wants_write());
        // Without a worker, the hub reads what the client sends.
        interest.set(EpollFlags::EPOLLIN, session.is_closing() && client.link.is_none());
        if let Err(e) = client.watch(&self.epoll, interest, id) {
            self.log.repeated("WARN", &format!("epoll_ctl: {e}"));
            session.fail();
        }
        if session.is_over() {
            // Without this call epoll would watch the socket until the worker closes its copy too.
            let _ = client.watch(&self.epoll, EpollFlags::empty(), id);
            let _ = client.conn.shutdown(Shutdown::Both);
            self.clients.remove(&id);
            self.room.remove(id, now);
        }
    }
}

impl Client {
    /// Makes epoll watch the client's socket for this.
    fn watch(&mut self, epoll: &Epoll, interest: EpollFlags, id: ClientId) -> nix::Result<()> {
        let mut event = EpollEvent::new(interest, id | CONN);
        match (self.interest.is_empty(), interest.is_empty()) {
            _ if interest == self.interest => return Ok(()),
            (true, _) => epoll.add(&self.conn, event)?,
            (_, true) => epoll.delete(&self.conn)?,
            _ => epoll.modify(&self.conn, &mut event)?,
        }
        self.interest = interest;
        Ok(())
    }
}
