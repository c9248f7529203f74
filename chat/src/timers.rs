//! One timer per client, the first of them first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::room::ClientId;

/// The timers of a room.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: BTreeSet<(Instant, ClientId)>,
    by_client: BTreeMap<ClientId, Instant>,
}

impl Timers {
    /// Moves a client's timer if this is nearer. A farther deadline is found out when the timer fires: a line, which moves
    /// its sender's deadline, changes nothing here.
    pub(crate) fn no_later_than(&mut self, id: ClientId, at: Instant) {
        let old = self.by_client.get(&id).copied();
        if old.is_none_or(|old| at < old) {
            self.remove(id);
            self.entries.insert((at, id));
            self.by_client.insert(id, at);
        }
    }

    /// The client is no more.
    pub(crate) fn remove(&mut self, id: ClientId) {
        if let Some(at) = self.by_client.remove(&id) {
            self.entries.remove(&(at, id));
        }
    }

    /// When the first one fires.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.entries.first().map(|(at, _)| *at)
    }

    /// A client whose timer has fired.
    pub(crate) fn pop_fired(&mut self, now: Instant) -> Option<ClientId> {
        let (_, id) = self.entries.first().copied().filter(|(at, _)| *at <= now)?;
        self.remove(id);
        Some(id)
    }
}
