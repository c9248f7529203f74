//! The room: who is in it, and what each of them is to be sent. No socket, no thread; see the crate's page for its use.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::report::{Failed, Log as Report};
use common::sock::is_transient;

use crate::cli::{Limits, Slow};
use crate::event::Event;
use crate::history::History;
use crate::log::Log;
use crate::outbox::Fit;
use crate::session::Session;
use crate::timers::Timers;

/// A client, as the server numbers it. Never used twice: a descriptor's number is, and would name a stranger.
pub type ClientId = u64;

/// Clients on their way out, or only there to be told that the room is full, beside those in the room.
const SPARE: usize = 24;

/// A client in the room's book: a member as soon as it has a nick.
#[derive(Debug)]
pub(crate) struct Client {
    session: Session,
    address: IpAddr,
    pub(crate) nick: Option<String>,
    pub(crate) echo: bool,
    /// It stands in `changed`.
    is_changed: bool,
}

/// The room. A server tells it what happens, and after each such call asks who has something to be done for it.
#[derive(Debug)]
pub struct Room {
    limits: Limits,
    policy: Slow,
    report: Report,
    log: Option<Log>,
    records: Vec<u8>,
    pub(crate) history: History,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// Nicks in lower case: two that differ in case only are one.
    pub(crate) nicks: BTreeMap<String, ClientId>,
    timers: Timers,
    changed: VecDeque<ClientId>,
    /// Whose queue has overflowed.
    overflowed: Vec<ClientId>,
    is_stopping: bool,
}

impl Room {
    /// An empty room with its history, which is read from the chat log. `policy`: what happens to a slow reader.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn open(limits: &Limits, report: &Report, policy: Slow) -> Result<Room, Failed> {
        let (log, said) = Log::of(limits)?.unzip();
        Ok(Room {
            limits: limits.clone(),
            policy,
            report: report.clone(),
            log,
            records: Vec::new(),
            history: History::new(limits.history, said.unwrap_or_default()),
            clients: BTreeMap::new(),
            nicks: BTreeMap::new(),
            timers: Timers::default(),
            changed: VecDeque::new(),
            overflowed: Vec::new(),
            is_stopping: false,
        })
    }

    /// A client has been accepted. One too many is told so, and its session ends.
    pub fn connect(&mut self, id: ClientId, address: IpAddr, now: Instant) {
        self.report.info(&format!("client {id}: {address} connected"));
        let open = self.clients.values().filter(|client| !client.session.is_closing());
        let (all, near) =
            open.fold((0, 0), |(all, near), client| (all + 1, near + u32::from(client.address == address)));
        let crowded = all >= self.limits.max_conns || (near >= self.limits.max_per_addr && !address.is_loopback());
        let session = Session::new(&self.limits, self.policy, now);
        self.clients.insert(id, Client { session, address, nick: None, echo: false, is_changed: false });
        if self.is_stopping || crowded {
            self.handle(id, if self.is_stopping { Event::GoingDown } else { Event::Full }, now);
        }
        self.change(id);
    }

    /// The client has sent bytes; none are the end of file.
    pub fn receive(&mut self, id: ClientId, bytes: &[u8], now: Instant) {
        if let Some(session) = self.session_mut(id) {
            session.receive(bytes);
            self.listen(id, now);
        }
    }

    /// What read(2) answered for a client.
    pub fn received(&mut self, id: ClientId, received: &io::Result<usize>, buffer: &[u8], now: Instant) {
        match received {
            Ok(n) => self.receive(id, buffer.get(..*n).unwrap_or_default(), now),
            Err(e) if is_transient(e) => {}
            Err(_) => self.disconnect(id, now),
        }
    }

    /// What send(2) answered for a client's [`pending`](Session::pending) bytes.
    pub fn sent(&mut self, id: ClientId, sent: &io::Result<usize>, now: Instant) {
        match sent {
            Ok(n) => self.session_mut(id).into_iter().for_each(|session| session.sent(*n, now)),
            Err(e) if is_transient(e) => {}
            Err(_) => self.disconnect(id, now),
        }
    }

    /// The connection has failed.
    pub fn disconnect(&mut self, id: ClientId, now: Instant) {
        self.handle(id, Event::Lost, now);
        self.session_mut(id).into_iter().for_each(Session::abort);
        self.change(id);
    }

    /// The server has closed the socket: the client is no more.
    pub fn remove(&mut self, id: ClientId, now: Instant) {
        self.leave(id, "connection lost", "", now); // says nothing of one who has left before
        self.timers.remove(id);
        if self.clients.remove(&id).is_some() {
            self.report.info(&format!("client {id}: gone"));
        }
    }

    /// A client that has something to be done for it: write what waits, or close. None: all is done.
    pub fn next_changed(&mut self) -> Option<ClientId> {
        loop {
            let id = self.changed.pop_front()?;
            if let Some(client) = self.clients.get_mut(&id) {
                client.is_changed = false;
                self.timers.no_later_than(id, client.session.deadline());
                return Some(id);
            }
        }
    }

    /// True if something has changed since the last call: for servers that wake everybody, and let each one look.
    pub fn take_changed(&mut self) -> bool {
        let has_changed = !self.changed.is_empty();
        while self.next_changed().is_some() {}
        has_changed
    }

    /// One client's conversation.
    pub fn session(&self, id: ClientId) -> Option<&Session> {
        self.clients.get(&id).map(|client| &client.session)
    }

    /// One client's conversation, to send of it.
    pub fn session_mut(&mut self, id: ClientId) -> Option<&mut Session> {
        self.clients.get_mut(&id).map(|client| &mut client.session)
    }

    /// True while another client may be accepted. Otherwise the kernel's backlog holds it.
    pub fn has_place(&self) -> bool {
        !self.is_stopping && self.clients.len() < self.limits.max_conns as usize + SPARE
    }

    /// The first moment at which [`tick`](Self::tick) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Time has passed: who may be heard again, who did not read, who was silent.
    pub fn tick(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop_fired(now) {
            self.tick_one(id, now);
        }
    }

    /// As [`tick`](Self::tick), for one client, where each has a thread or a task.
    pub fn tick_one(&mut self, id: ClientId, now: Instant) {
        let Some(session) = self.session_mut(id) else { return };
        let deadline = session.deadline();
        if deadline > now {
            return self.timers.no_later_than(id, deadline);
        }
        if let Some(event) = session.timed_out(now) {
            self.handle(id, event, now);
        }
        self.listen(id, now);
    }

    /// The server stops: everybody is told, and has the grace to hear it. Called again, it ends at once.
    pub fn shut_down(&mut self, now: Instant) {
        let end = if self.is_stopping { now } else { now + self.limits.grace() };
        self.is_stopping = true;
        self.nicks.clear(); // nobody hears that the others leave
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.handle(id, Event::GoingDown, now);
            self.session_mut(id).into_iter().for_each(|session| session.end_by(end));
            self.change(id);
        }
    }

    /// True from the first [`shut_down`](Self::shut_down) on.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// True when the server stops, and the last client is gone.
    pub fn is_done(&self) -> bool {
        self.is_stopping && self.clients.is_empty()
    }

    /// Something happens to a client. After its last words, nothing does.
    pub fn handle(&mut self, id: ClientId, event: Event, now: Instant) {
        let Some(client) = self.clients.get(&id).filter(|client| !client.session.is_closing()) else { return };
        let is_member = client.nick.is_some();
        match (event.farewell(is_member), event) {
            (Some((why, last)), _) => self.leave(id, why, last, now),
            (None, Event::Line(text)) if is_member => self.command(id, &text, now),
            (None, Event::Line(text)) => self.greet(id, &text, now),
            (None, _) => self.send(id, "! not-utf8 say it in UTF-8", now),
        }
        if let Some(client) = self.clients.get_mut(&id).filter(|client| client.nick.is_some()) {
            client.session.keep_until(now + Duration::from_millis(self.limits.idle_timeout));
        }
        // A line can overflow a queue, and the news of that another one.
        while let Some(slow) = self.overflowed.pop() {
            self.handle(slow, Event::TooSlow, now);
        }
    }

    /// Handles what a client has said, at its rate.
    fn listen(&mut self, id: ClientId, now: Instant) {
        let before = self.session(id).and_then(Session::held_until);
        while let Some(event) = self.session_mut(id).and_then(|session| session.next_event(now)) {
            self.handle(id, event, now);
        }
        if self.session(id).is_some_and(|session| session.is_closing() || session.held_until() != before) {
            self.change(id);
        }
    }

    /// Sends one line to one client.
    pub(crate) fn send(&mut self, id: ClientId, line: &str, now: Instant) {
        self.deliver(&[id], line, now);
    }

    /// Sends one line to all members, or all but one.
    pub(crate) fn broadcast(&mut self, except: Option<ClientId>, line: &str, now: Instant) {
        let members: Vec<ClientId> = self.nicks.values().copied().filter(|id| Some(*id) != except).collect();
        self.deliver(&members, line, now);
    }

    fn deliver(&mut self, to: &[ClientId], line: &str, now: Instant) {
        let line = format!("{line}\n");
        for id in to {
            let Some(client) = self.clients.get_mut(id) else { continue };
            if client.session.push(line.as_bytes(), now) == Fit::Overflow {
                self.overflowed.push(*id);
            }
            self.change(*id);
        }
    }

    /// Ends a conversation with its last words; the others are told, if they had been told that it came.
    pub(crate) fn leave(&mut self, id: ClientId, why: &str, last: &str, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.session.close(last, now);
        if let Some(nick) = client.nick.take() {
            self.nicks.remove(&nick.to_ascii_lowercase());
            self.broadcast(None, &format!("* {nick} left ({why})"), now);
        }
        self.change(id);
    }

    /// Takes the chat log away: the server writes the [`records`](Self::take_records) itself.
    pub fn take_log(&mut self) -> Option<Log> {
        self.log.take()
    }

    /// What has been said since the last call, as it is to be in the log that was taken.
    pub fn take_records(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.records)
    }

    /// Remembers and logs what was said. A write to a file waits for the page cache only, not for the disk.
    pub(crate) fn record(&mut self, line: String) {
        let record = self.history.add(line).record();
        match self.log.as_mut().map(|log| log.append(&record)) {
            Some(Ok(())) => {}
            Some(Err(e)) => self.report.repeated("WARN", &format!("write {}: {e}", self.limits.log.display())),
            None if self.limits.no_log => {}
            None => self.records.extend(record),
        }
    }

    fn change(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id).filter(|client| !client.is_changed) {
            client.is_changed = true;
            self.changed.push_back(id);
        }
    }
}

#[cfg(test)]
#[path = "tests/room.rs"]
mod tests;
