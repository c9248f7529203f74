//! The room: its members, and what each of them is to be sent. It has no socket and no thread; the crate's page shows how a
//! server uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::report::{Failed, Log as Report};
use common::sock::is_transient;

use crate::cli::{Limits, Slow};
use crate::client::{Client, ClientId, Updates, touch};
use crate::event::{Event, GREETING};
use crate::history::History;
use crate::log::Log;
use crate::session::Session;

/// Slots for clients that are being disconnected or rejected, in addition to `--max-conns`.
const CLOSING_SLOTS: usize = 24;

/// What the thread or task that writes to a client does next, see [`Room::next_step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wake the threads or tasks of the clients that have changed, see [`Room::take_changed`].
    Wake,
    /// Send the [`pending`](Session::pending) bytes, and give up at this time.
    Write(Instant),
    /// Send the FIN.
    Finish,
    /// Wait until the client has changed, and until this time at the latest.
    Wait(Instant),
    /// Close the socket, and [`remove`](Room::remove) the client.
    Over,
}

/// The room. A server reports what has happened, and then asks which clients have changed. `H`: what the server keeps with
/// each client in order to wake its thread or task. An event loop needs nothing.
#[derive(Debug)]
pub struct Room<H = ()> {
    limits: Limits,
    policy: Slow,
    report: Report,
    log: Option<Log>,
    /// Records for a server that writes the log itself, see [`Room::take_log`].
    records: Option<Vec<u8>>,
    pub(crate) history: History,
    pub(crate) clients: BTreeMap<ClientId, Client<H>>,
    /// The members' nicks in lower case: nicks are compared without case.
    pub(crate) nicks: BTreeMap<String, ClientId>,
    updates: Updates,
    /// The deadline of each session, the earliest first. It is right except for the clients in `changed` and `touched`.
    timers: BTreeSet<(Instant, ClientId)>,
    touched: Vec<ClientId>,
    is_stopping: bool,
}

impl<H: Clone + Default> Room<H> {
    /// An empty room. With a chat log, its history is read from the log. `policy`: what happens to a slow reader.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn open(limits: &Limits, report: &Report, policy: Slow) -> Result<Room<H>, Failed> {
        let (log, said) = Log::of(limits, report)?.unzip();
        Ok(Room {
            limits: limits.clone(),
            policy,
            report: report.clone(),
            log,
            records: None,
            history: History::new(limits.history, said.unwrap_or_default()),
            clients: BTreeMap::new(),
            nicks: BTreeMap::new(),
            updates: Updates::default(),
            timers: BTreeSet::new(),
            touched: Vec::new(),
            is_stopping: false,
        })
    }

    /// A client has been accepted. If the room is full, the client gets `! server-full`, and its session ends. Returns what
    /// [`take_changed`](Self::take_changed) will return for this client.
    pub fn connect(&mut self, id: ClientId, address: IpAddr, now: Instant) -> H {
        self.report.info(&format!("client {id}: {address} connected"));
        let open = self.clients.values().filter(|client| !client.session.is_closing());
        let (all, near) =
            open.fold((0, 0), |(all, near), client| (all + 1, near + u32::from(client.address == address)));
        let is_full = all >= self.limits.max_conns || (near >= self.limits.max_per_addr && !address.is_loopback());
        let session = Session::new(&self.limits, self.policy, now);
        let (handle, nick, echo) = (H::default(), None, false);
        let (is_changed, is_touched, timer) = (false, false, None);
        let client = Client { session, address, nick, echo, is_changed, is_touched, timer, handle: handle.clone() };
        self.clients.insert(id, client);
        match is_full {
            _ if self.is_stopping => self.handle(id, Event::GoingDown, now),
            true => self.handle(id, Event::Full, now),
            false => self.send(id, GREETING, now),
        }
        handle
    }

    /// Takes bytes from a client. No bytes mean the end of file.
    pub fn receive(&mut self, id: ClientId, bytes: &[u8], now: Instant) {
        if let Some(session) = self.session_mut(id) {
            session.receive(bytes);
            self.handle_input(id, now);
        }
    }

    /// Takes the result of read(2) for a client.
    pub fn received(&mut self, id: ClientId, received: &io::Result<usize>, buffer: &[u8], now: Instant) {
        match received {
            Ok(n) => self.receive(id, buffer.get(..*n).unwrap_or_default(), now),
            Err(e) if is_transient(e) => {}
            Err(_) => self.handle(id, Event::Lost, now),
        }
    }

    /// The bytes to send to a client.
    pub fn pending(&self, id: ClientId) -> &[u8] {
        self.session(id).map(Session::pending).unwrap_or_default()
    }

    /// Takes the result of send(2) for a client's [`pending`](Self::pending) bytes.
    pub fn sent(&mut self, id: ClientId, sent: &io::Result<usize>, now: Instant) {
        self.session_mut(id).into_iter().for_each(|session| _ = session.sent(sent, now));
    }

    /// Calls send(2) with a client's pending bytes, and takes its result.
    ///
    /// # Errors
    /// The error of the call.
    pub fn send_with(&mut self, id: ClientId, send: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let Some(session) = self.session_mut(id) else { return Err(io::ErrorKind::NotConnected.into()) };
        let sent = send(session.pending());
        session.sent(&sent, Instant::now());
        sent
    }

    /// The server has closed the socket: forgets the client.
    pub fn remove(&mut self, id: ClientId, now: Instant) {
        self.leave(id, Event::Lost, now); // has no effect on a client that has left before
        if let Some(client) = self.clients.remove(&id) {
            self.report.info(&format!("client {id}: closed"));
            client.timer.iter().for_each(|at| _ = self.timers.remove(&(*at, id)));
            if client.is_touched {
                self.touched.retain(|touched| *touched != id);
            }
        }
    }

    /// The next client that has changed: its session may have bytes to send, may pause or continue reading, or may be over.
    /// None: all clients have been handled.
    pub fn next_changed(&mut self) -> Option<ClientId> {
        loop {
            let id = self.updates.changed.pop_front()?;
            if let Some(client) = self.clients.get_mut(&id) {
                client.is_changed = false;
                touch(&mut self.touched, id, client);
                return Some(id);
            }
        }
    }

    /// The handles of all clients that have changed: for a server in which each client has its own thread or task.
    pub fn take_changed(&mut self) -> Vec<H> {
        let mut handles = Vec::with_capacity(self.updates.changed.len());
        for id in self.updates.changed.drain(..) {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.is_changed = false;
            touch(&mut self.touched, id, client);
            handles.push(client.handle.clone());
        }
        handles
    }

    /// What the thread or task that writes to a client does next. Handles the client's timeouts first.
    pub fn next_step(&mut self, id: ClientId, now: Instant) -> Step {
        if self.session(id).is_some_and(|session| session.deadline() <= now) {
            self.tick_one(id, now);
        }
        if !self.updates.changed.is_empty() {
            return Step::Wake;
        }
        let Some(session) = self.session_mut(id).filter(|session| !session.is_over()) else { return Step::Over };
        match session.wants_write() {
            true => Step::Write(session.deadline()),
            false if session.finish(now) => Step::Finish,
            false => Step::Wait(session.deadline()),
        }
    }

    /// A client's session, to look at.
    pub fn session(&self, id: ClientId) -> Option<&Session> {
        self.clients.get(&id).map(|client| &client.session)
    }

    /// A client's session, to send its bytes.
    pub fn session_mut(&mut self, id: ClientId) -> Option<&mut Session> {
        let client = self.clients.get_mut(&id)?;
        touch(&mut self.touched, id, client);
        Some(&mut client.session)
    }

    /// True while the server may accept another client. Otherwise the connections stay in the backlog.
    pub fn is_accepting(&self) -> bool {
        !self.is_stopping && self.clients.len() < self.limits.max_conns as usize + CLOSING_SLOTS
    }

    /// The time of the next [`tick`](Self::tick).
    pub fn deadline(&mut self) -> Option<Instant> {
        // No timer is moved when a line is queued and sent at once: only the result of both is compared here.
        let changed = self.updates.changed.iter().copied();
        for id in changed.chain(mem::take(&mut self.touched)) {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.is_touched = false;
            let at = client.session.deadline();
            if client.timer != Some(at) {
                client.timer.iter().for_each(|old| _ = self.timers.remove(&(*old, id)));
                self.timers.insert((at, id));
                client.timer = Some(at);
            }
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// Handles all timeouts that have expired, and ends the pauses of the rate limit.
    pub fn tick(&mut self, now: Instant) {
        self.deadline(); // brings the timers up to date
        let due: Vec<ClientId> = self.timers.range(..=(now, ClientId::MAX)).map(|(_, id)| *id).collect();
        due.into_iter().for_each(|id| self.tick_one(id, now));
    }

    fn tick_one(&mut self, id: ClientId, now: Instant) {
        let is_due = |session: &&mut Session| session.deadline() <= now && !session.is_over();
        let Some(session) = self.session_mut(id).filter(is_due) else { return };
        if let Some(event) = session.timed_out(now) {
            self.handle(id, event, now);
        }
        self.handle_input(id, now);
    }

    /// The server stops: all clients get their final message, and have the shutdown timeout to read it. The second call ends
    /// all sessions at once.
    pub fn shut_down(&mut self, now: Instant) {
        let end = if self.is_stopping { now } else { now + self.limits.grace() };
        self.is_stopping = true;
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.handle(id, Event::GoingDown, now);
            self.session_mut(id).into_iter().for_each(|session| session.end_by(end));
            self.change(id);
        }
    }

    /// True after the first [`shut_down`](Self::shut_down).
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// True if the server stops and the last client is gone.
    pub fn is_done(&self) -> bool {
        self.is_stopping && self.clients.is_empty()
    }

    /// Takes an event of a client. After the client's final message only [`Event::Lost`] has an effect.
    pub fn handle(&mut self, id: ClientId, event: Event, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.session.is_closing() {
            if event == Event::Lost {
                client.session.fail();
                self.updates.change(id, client);
            }
            return;
        }
        match (event, client.nick.is_some()) {
            (Event::Line(text), true) => self.command(id, &text, now),
            (Event::Line(text), false) => self.first_line(id, &text, now),
            (Event::NotUtf8, true) => self.send(id, "! not-utf8 a line must be UTF-8", now),
            (event, _) => self.leave(id, event, now),
        }
        let idle_timeout = Duration::from_millis(self.limits.idle_timeout);
        if self.clients.get(&id).is_some_and(|client| client.nick.is_some()) {
            self.session_mut(id).into_iter().for_each(|session| session.keep_until(now + idle_timeout));
        }
        // A line can overflow a queue, and the line about that can overflow another one.
        while let Some(slow) = self.updates.overflowed.pop() {
            self.handle(slow, Event::TooSlow, now);
        }
    }

    /// Handles the lines that a client has sent, at its rate.
    fn handle_input(&mut self, id: ClientId, now: Instant) {
        let before = self.session(id).and_then(Session::paused_until);
        while let Some(event) = self.session_mut(id).and_then(|session| session.next_event(now)) {
            self.handle(id, event, now);
        }
        if self.session(id).is_some_and(|session| session.is_closing() || session.paused_until() != before) {
            self.change(id);
        }
    }

    /// Queues one line for one client.
    pub(crate) fn send(&mut self, id: ClientId, line: &str, now: Instant) {
        if let Some(client) = self.clients.get_mut(&id) {
            self.updates.push(id, client, format!("{line}\n").as_bytes(), now);
        }
    }

    /// Queues one line for all members, or for all except one.
    pub(crate) fn broadcast(&mut self, except: Option<ClientId>, line: &str, now: Instant) {
        let line = format!("{line}\n");
        for (id, client) in self.clients.iter_mut().filter(|(id, _)| Some(**id) != except) {
            if client.nick.is_some() {
                self.updates.push(*id, client, line.as_bytes(), now);
            }
        }
    }

    /// Ends a session: the client gets its final message. The other members read that it left, if they read before that it joined.
    pub(crate) fn leave(&mut self, id: ClientId, why: Event, now: Instant) {
        let is_member = self.clients.get(&id).is_some_and(|client| client.nick.is_some());
        let (reason, last) = why.ending(is_member).unwrap_or_default();
        self.leave_with(id, reason, last, now);
        if why == Event::Lost {
            self.session_mut(id).into_iter().for_each(Session::fail);
        }
    }

    /// Ends a session with this reason and this final message.
    pub(crate) fn leave_with(&mut self, id: ClientId, reason: &str, last: &str, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.session.close(last, now);
        if let Some(nick) = client.nick.take() {
            self.nicks.remove(&nick.to_ascii_lowercase());
            if !self.is_stopping {
                self.broadcast(None, &format!("* {nick} left ({reason})"), now);
            }
        }
        self.change(id);
    }

    /// Takes the chat log out of the room: the server writes the [`records`](Self::take_records) itself.
    pub fn take_log(&mut self) -> Option<Log> {
        self.records = self.log.as_ref().map(|_| Vec::new());
        self.log.take()
    }

    /// The records since the last call, for the log that was taken out.
    pub fn take_records(&mut self) -> Vec<u8> {
        self.records.as_mut().map(mem::take).unwrap_or_default()
    }

    /// Adds a line to the history and to the log. The write waits for the page cache only, not for the disk.
    pub(crate) fn record(&mut self, line: String) {
        let said = self.history.add(line);
        if let Some(records) = &mut self.records {
            records.extend(said.record());
        }
        if let Some(Err(e)) = self.log.as_mut().map(|log| log.append(&said.record())) {
            self.report.repeated("WARN", &format!("chat log: write: {e}"));
        }
    }

    fn change(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            self.updates.change(id, client);
        }
    }
}

#[cfg(test)]
#[path = "tests/room.rs"]
mod tests;
