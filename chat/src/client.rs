//! A client as the room sees it, and the list of clients that have changed.

use std::collections::VecDeque;
use std::mem;
use std::net::IpAddr;
use std::time::Instant;

use crate::outbox::Fit;
use crate::session::Session;

/// A client's number. A server never uses a number twice. A descriptor number is used again, and would name another client.
pub type ClientId = u64;

/// A client. It is a member if it has a nick.
#[derive(Debug)]
pub(crate) struct Client<H> {
    pub(crate) session: Session,
    pub(crate) address: IpAddr,
    pub(crate) nick: Option<String>,
    pub(crate) echo: bool,
    /// Its number is in `Updates::changed`.
    pub(crate) is_changed: bool,
    /// Its number is in `Room::touched`.
    pub(crate) is_touched: bool,
    /// Its entry in `Room::timers`.
    pub(crate) timer: Option<Instant>,
    /// See [`Room::take_changed`](crate::Room::take_changed).
    pub(crate) handle: H,
}

/// Clients that the server or the room still has to handle.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    /// Clients that a server has not asked for yet, see [`Room::next_changed`].
    pub(crate) changed: VecDeque<ClientId>,
    /// Clients whose queue is full.
    pub(crate) overflowed: Vec<ClientId>,
}

impl Updates {
    pub(crate) fn push<H>(&mut self, id: ClientId, client: &mut Client<H>, line: &[u8], now: Instant) {
        if client.session.push(line, now) == Fit::Overflow {
            self.overflowed.push(id);
        }
        self.change(id, client);
    }

    pub(crate) fn change<H>(&mut self, id: ClientId, client: &mut Client<H>) {
        if !mem::replace(&mut client.is_changed, true) {
            self.changed.push_back(id);
        }
    }
}

/// The deadline of this client's session may have changed.
pub(crate) fn touch<H>(touched: &mut Vec<ClientId>, id: ClientId, client: &mut Client<H>) {
    if !mem::replace(&mut client.is_touched, true) {
        touched.push(id);
    }
}
