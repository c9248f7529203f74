//! The hub: the one process that owns every client's socket, the room and the log. One loop, and nothing in it waits for
//! a client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use chat::history::Said;
use chat::{ConnId, Event, Fit, Hub, Limits, Out, Outbox, Send, Slow, Then, To, Why};
use common::report::Log;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use socket2::Socket;

use crate::bus::{self, Received, Record, Tag};
use crate::ledger::{LOOK_AGAIN, Ledger};

/// The hub waits in poll and nowhere else.
const DONTWAIT: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A client as the hub sees it: a socket to write to. What it sends is its worker's business.
struct Peer {
    conn: Socket,
    outbox: Outbox,
}

struct Room<'a> {
    hub: Hub,
    peers: BTreeMap<ConnId, Peer>,
    /// The clients with something to do other than to be told the next line: bytes that wait, an end to be seen off.
    busy: BTreeSet<ConnId>,
    ledger: Ledger,
    bus: Socket,
    limits: &'a Limits,
    report: &'a Log,
    /// When the room is closed, come what may.
    end: Option<Instant>,
}

/// The hub's whole life. `!`: it never returns into the parent's code, and the compiler checks it.
pub fn run(bus: Socket, ledger: Ledger, said: Vec<Said>, parent: Pid, limits: &Limits, report: &Log) -> ! {
    // The parent's death is a stop, with last words.
    let _ = set_pdeathsig(Signal::SIGTERM);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let now = Instant::now();
        // How many there may be, the parent decides: it is the one who forks.
        let mut hub = Hub::new(&Limits { max_conns: u32::MAX, ..limits.clone() }, now, SystemTime::now());
        hub.recall(said);
        let (peers, busy) = (BTreeMap::new(), BTreeSet::new());
        let mut room = Room { hub, peers, busy, ledger, bus, limits, report, end: None };
        if getppid() != parent {
            room.close(now); // it died before the prctl, and no signal will come
        }
        room.run()
    }));
    if let Ok(Err(e)) = &outcome {
        report.repeated("Error:", &format!("hub: {e}"));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the hub's.
    unsafe { libc::_exit((!matches!(outcome, Ok(Ok(())))).into()) }
}

impl Room<'_> {
    fn run(&mut self) -> io::Result<()> {
        // SIGINT stays blocked: Ctrl-C is for the parent, who sends SIGTERM.
        let signals =
            SignalFd::with_flags(&SigSet::from(Signal::SIGTERM), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        while self.end.is_none_or(|end| Instant::now() < end && !self.peers.is_empty()) {
            let (stop, spoken, ready) = self.sleep(&signals)?;
            let now = Instant::now();
            if stop && matches!(signals.read_signal(), Ok(Some(_))) {
                self.close(now);
            }
            // One record for one look at everything else: a flood from one worker delays nobody.
            if spoken {
                self.hear(now)?;
            }
            for id in ready {
                let outs = self.serve(id, now);
                self.post(outs, now);
            }
            self.expire(now);
        }
        // close would not do: a worker has a copy of the descriptor, and only shutdown ends the connection itself.
        self.peers.values().for_each(|peer| drop(peer.conn.shutdown(Shutdown::Both)));
        self.ledger.close(self.report);
        Ok(())
    }

    /// Waits for a signal, the bus, a busy client or a deadline.
    fn sleep(&self, signals: &SignalFd) -> io::Result<(bool, bool, Vec<ConnId>)> {
        let mut fds =
            vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.bus.as_fd(), PollFlags::POLLIN)];
        let busy: Vec<ConnId> = self.busy.iter().copied().filter(|id| self.peers.contains_key(id)).collect();
        for peer in busy.iter().filter_map(|id| self.peers.get(id)) {
            let interest = match peer.outbox.next() {
                Send::Drain => PollFlags::POLLIN,
                _ => PollFlags::POLLOUT,
            };
            fds.push(PollFd::new(peer.conn.as_fd(), interest));
        }
        match poll(&mut fds, self.patience(&busy)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let (stop, spoken) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
        Ok((stop, spoken, busy.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(id, _)| id).collect()))
    }

    /// Until the first deadline, rounded up: to wake a moment early would be to spin.
    fn patience(&self, busy: &[ConnId]) -> PollTimeout {
        let now = Instant::now();
        let outboxes = busy.iter().filter_map(|id| self.peers.get(id)?.outbox.deadline());
        let again = self.ledger.is_waiting().then(|| now + LOOK_AGAIN);
        match outboxes.chain(self.hub.deadline()).chain(self.end).chain(again).min() {
            Some(at) => {
                PollTimeout::try_from(at.saturating_duration_since(now).as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        }
    }

    /// Takes one record off the bus.
    fn hear(&mut self, now: Instant) -> io::Result<()> {
        match bus::receive(&self.bus) {
            Ok(Received::Record(record, fd)) => self.heard(record, fd, now),
            // Neither the hub nor the client would ever hear of each other. The parent knows the worker.
            Ok(Received::NoDescriptor(record)) => {
                self.report.repeated("WARN", "recvmsg: MSG_CTRUNC: Too many open files, a client is sent away");
                let _ = bus::send(&self.bus, &Record::new(Tag::NoRoom, record.id), None, libc::MSG_DONTWAIT);
            }
            // Nobody is left to write: no parent, no worker.
            Ok(Received::End) => self.end = Some(now),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => self.report.alert(&format!("bus: {e}")),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn heard(&mut self, record: Record, fd: Option<OwnedFd>, now: Instant) {
        let (tag, id) = (record.tag, record.id);
        if let Some(fd) = fd {
            let outbox = Outbox::new(self.limits, Slow::Kick);
            self.peers.insert(id, Peer { conn: Socket::from(fd), outbox });
        }
        if tag == Tag::Refused {
            let bytes = b"! server-full try again later\n".as_slice().into();
            return self.post(vec![Out { to: To::One(id), bytes, then: Then::Close }], now);
        }
        if let Some(event) = record.event() {
            let outs = self.hub.handle(id, event, now);
            self.post(outs, now);
        }
    }

    /// SIGTERM: everybody's last words.
    fn close(&mut self, now: Instant) {
        if self.end.is_none() {
            self.end = Some(now + self.limits.grace());
            let outs = self.hub.shut_down();
            self.post(outs, now);
        }
    }

    /// Says what the hub has decided, at once where the kernel takes it. Whoever is too slow or turns out to be gone
    /// leaves, and that is said in its turn: said at once, half of the room would hear it before this line and half after.
    fn post(&mut self, outs: Vec<Out>, now: Instant) {
        let mut outs = VecDeque::from(outs);
        while let Some(out) = outs.pop_front() {
            if out.to == To::Log {
                self.ledger.append(&out.bytes, self.report);
            }
            let receivers: Vec<ConnId> = self.hub.receivers(out.to).collect();
            for id in receivers {
                let Some(peer) = self.peers.get_mut(&id) else { continue };
                match peer.outbox.push(&out, now) {
                    Fit::Overflow => outs.extend(self.hub.handle(id, Event::TooSlow, now)),
                    _ => outs.extend(self.serve(id, now)),
                }
            }
        }
    }

    /// Does for one client whatever can be done without waiting, and says what follows from it.
    fn serve(&mut self, id: ConnId, now: Instant) -> Vec<Out> {
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        let lost = peer.advance(now);
        match peer.outbox.next() {
            Send::Nothing => drop(self.busy.remove(&id)),
            // Its drop closes the hub's copy. The worker's is still there, and the worker reads the end.
            Send::Close => {
                self.busy.remove(&id);
                self.peers.remove(&id);
            }
            _ => drop(self.busy.insert(id)),
        }
        match lost {
            true => self.hub.handle(id, Event::Gone(Why::Lost), now),
            false => Vec::new(),
        }
    }

    /// Everything whose time is over: handshakes, silence, readers that do not read, ends that nobody answers.
    fn expire(&mut self, now: Instant) {
        if self.hub.deadline().is_some_and(|at| at <= now) {
            let outs = self.hub.expire(now);
            self.post(outs, now);
        }
        for id in self.busy.clone() {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if peer.outbox.deadline().is_some_and(|at| at <= now) {
                let mut outs = Vec::new();
                if peer.outbox.expire(now) {
                    outs = self.hub.handle(id, Event::TooSlow, now);
                }
                outs.extend(self.serve(id, now));
                self.post(outs, now);
            }
        }
        if self.ledger.is_waiting() {
            self.ledger.flush(libc::LOCK_EX | libc::LOCK_NB, self.report);
        }
    }
}

impl Peer {
    /// Goes on until the kernel would make the hub wait. True if the connection turns out to be gone.
    ///
    /// MSG_DONTWAIT and not O_NONBLOCK: that would belong to the open file, which the worker shares, and make its sleeping
    /// read fail.
    fn advance(&mut self, now: Instant) -> bool {
        loop {
            let done = match self.outbox.next() {
                // One gathered write for all that waits.
                Send::Write => {
                    let sent = self.conn.send_vectored_with_flags(&self.outbox.slices(), DONTWAIT);
                    sent.map(|n| self.outbox.consume(n, now))
                }
                // The FIN goes out although the worker has a copy of the descriptor; a close would not send it.
                Send::HangUp => {
                    let _ = self.conn.shutdown(Shutdown::Write);
                    self.outbox.hung_up(now);
                    Ok(())
                }
                // The worker may be asleep, holding up a flood: unread bytes would turn the end into a reset.
                Send::Drain => {
                    let read = self.conn.recv_with_flags(&mut [MaybeUninit::uninit(); 4096], DONTWAIT);
                    read.map(|n| self.outbox.drained(n))
                }
                Send::Close => {
                    let _ = self.conn.shutdown(Shutdown::Both);
                    return false;
                }
                Send::Nothing => return false,
            };
            match done {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A reset. The worker reads of it too, but may be asleep.
                Err(_) => return self.give_up(now),
            }
        }
    }

    /// No word reaches the client any more.
    fn give_up(&mut self, now: Instant) -> bool {
        let news = !self.outbox.is_closing();
        self.outbox.close(now);
        self.outbox.hung_up(now);
        self.outbox.drained(0);
        let _ = self.conn.shutdown(Shutdown::Both);
        news
    }
}
