//! The hub: the one process that owns every client's socket, the room and the log. One loop, and nothing in it waits for
//! a client.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process;
use std::time::Instant;

use anyhow::Context;
use chat::{ClientId, Event, Room};
use common::report::{Failed, Log};
use common::sock::is_transient;
use lifecycle::Signals;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use socket2::Socket;

use crate::bus::{self, Received, Record, timeout};
use crate::ledger::{LOOK_AGAIN, Ledger};

/// The hub waits in poll and nowhere else. A flag of the call and not O_NONBLOCK, which would belong to the open file: the
/// worker shares that, and its sleeping read would fail.
const DONTWAIT: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A client: a socket to write to, and the link to its worker, for as long as it may say something.
struct Peer {
    conn: Socket,
    link: Option<Socket>,
}

/// Where something has happened.
enum Source {
    Signals,
    Parent,
    Link(ClientId),
    Drain(ClientId),
    Write(ClientId),
}

struct Hub {
    room: Room,
    peers: BTreeMap<ClientId, Peer>,
    parent: Socket,
    report: Log,
}

/// The hub's whole life. `!`: it never returns into the parent's code, and the compiler checks it.
pub fn run(mut room: Room, parent: Socket, parent_pid: Pid, report: &Log) -> ! {
    // The parent's death is a stop, with last words.
    let _ = set_pdeathsig(Signal::SIGTERM);
    if getppid() != parent_pid {
        room.shut_down(Instant::now()); // it died before the prctl, and no signal will come
    }
    let outcome = Hub { room, peers: BTreeMap::new(), parent, report: report.clone() }.run();
    if let Err(e) = &outcome {
        report.repeated("Error:", &format!("hub: {e:?}"));
    }
    process::exit(outcome.is_err().into())
}

impl Hub {
    fn run(mut self) -> Result<(), Failed> {
        let mut ledger = Ledger::new(self.room.take_log(), self.report.clone());
        // SIGINT stays blocked: Ctrl-C is for the parent, who sends SIGTERM.
        let signals = Signals::of(&[Signal::SIGTERM])?;
        while !self.room.is_done() {
            let again = ledger.is_waiting().then(|| Instant::now() + LOOK_AGAIN);
            let ready = self.wait(&signals, self.room.deadline().into_iter().chain(again).min()).context("poll")?;
            let now = Instant::now();
            for source in ready {
                match source {
                    Source::Signals if signals.read().is_ok() => self.room.shut_down(now),
                    Source::Signals => {}
                    Source::Parent => self.receive(now).context("recvmsg")?,
                    Source::Link(id) => self.listen(id, now),
                    Source::Drain(id) => self.drain(id, now),
                    Source::Write(id) => self.write(id, now),
                }
            }
            self.room.tick(now);
            while let Some(id) = self.room.next_changed() {
                self.write(id, now);
            }
            ledger.write(self.room.take_records(), self.room.is_done());
        }
        Ok(())
    }

    /// Waits for a signal, the parent, a worker, a client that is to be written to, or the deadline.
    fn wait(&self, signals: &Signals, deadline: Option<Instant>) -> io::Result<Vec<Source>> {
        let mut sources = vec![(Source::Signals, PollFd::new(signals.as_fd(), PollFlags::POLLIN))];
        sources.push((Source::Parent, PollFd::new(self.parent.as_fd(), PollFlags::POLLIN)));
        for (id, peer) in &self.peers {
            let Some(session) = self.room.session(*id) else { continue };
            if let Some(link) = &peer.link {
                sources.push((Source::Link(*id), PollFd::new(link.as_fd(), PollFlags::POLLIN)));
            } else if session.is_closing() {
                sources.push((Source::Drain(*id), PollFd::new(peer.conn.as_fd(), PollFlags::POLLIN)));
            }
            if session.wants_write() {
                sources.push((Source::Write(*id), PollFd::new(peer.conn.as_fd(), PollFlags::POLLOUT)));
            }
        }
        let (sources, mut fds): (Vec<Source>, Vec<PollFd>) = sources.into_iter().unzip();
        match poll(&mut fds, timeout(deadline)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(sources.into_iter().zip(fds).filter(|(_, fd)| fd.any().unwrap_or(false)).map(|(source, _)| source).collect())
    }

    /// A client, or the link to its worker.
    fn receive(&mut self, now: Instant) -> io::Result<()> {
        match bus::receive(&self.parent)? {
            Received::Record(Record::Client { id, address, has_worker }, Some(conn)) => {
                self.peers.insert(id, Peer { conn: conn.into(), link: None });
                self.room.connect(id, address, now);
                if !has_worker {
                    self.room.handle(id, Event::Full, now);
                }
            }
            Received::Record(Record::Link { id }, Some(link)) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.link = Some(link.into());
                } // or close: by that its worker hears that there is no room
            }
            Received::Record(record, _) => {
                self.report.repeated("WARN", "recvmsg: MSG_CTRUNC: Too many open files, a client is sent away");
                if let Record::Link { id } = record {
                    self.room.handle(id, Event::Full, now);
                }
            }
            Received::End => self.room.shut_down(now),
            Received::Nothing => {}
        }
        Ok(())
    }

    /// One record from a worker, and then a look at everything else: a flood delays nobody.
    fn listen(&mut self, id: ClientId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match peer.link.as_ref().map_or(Ok(Received::Nothing), bus::receive) {
            Ok(Received::Record(Record::Event(Event::Closed), _)) => self.room.receive(id, b"", now),
            Ok(Received::Record(Record::Event(Event::Lost), _)) => self.room.disconnect(id, now),
            Ok(Received::Record(Record::Event(event), _)) => self.room.handle(id, event, now),
            Ok(Received::Nothing) => {}
            // The worker is dead, whatever it died of.
            _ => {
                peer.link = None;
                self.room.handle(id, Event::Crashed, now);
            }
        }
    }

    /// Reads on after the last words, where no worker does: a close with unread bytes would be a reset.
    fn drain(&mut self, id: ClientId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let received = peer.conn.recv_with_flags(&mut [MaybeUninit::uninit(); 4096], DONTWAIT);
        self.room.received(id, &received, &[0; 4096], now);
    }

    fn write(&mut self, id: ClientId, now: Instant) {
        let (Some(peer), Some(session)) = (self.peers.get_mut(&id), self.room.session_mut(id)) else { return };
        while session.wants_write() {
            match peer.conn.send_with_flags(session.pending(), DONTWAIT) {
                Ok(n) => session.sent(n, now),
                Err(e) if is_transient(&e) => break,
                Err(_) => session.abort(),
            }
        }
        if session.finish(now) {
            // The FIN goes out although the worker has a copy of the descriptor; a close would not send it.
            let _ = peer.conn.shutdown(Shutdown::Write);
            peer.link = None; // by that the worker ends
        }
        if session.is_over() {
            let _ = peer.conn.shutdown(Shutdown::Both);
            self.peers.remove(&id);
            self.room.remove(id, now);
        }
    }
}
