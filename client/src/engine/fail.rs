//! What took too long, what came to nothing, and when to give up.

use super::Engine;
use crate::failure::{CouldNotRun, Failure, Kind};
use crate::report::Ended;

/// After so many failed connects in a row no more are tried: the server is gone.
const CONNECTS_IN_VAIN: u64 = 1000;
/// After so many timeouts in a row for each client no more connections are tried: the server stands still.
const TIMEOUTS_IN_VAIN: u64 = 3;

impl Engine<'_> {
    /// Ends what has waited too long. One pass over all clients costs less than a timer for each request.
    pub(super) fn expire(&mut self, now: u64) {
        for i in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(i) else { return };
            let Some(failure) = slot.client.overdue(now, &self.rules) else { continue };
            if slot.client.is_connecting() {
                self.look_for_resent_syn(i);
                self.connect_failed(i, &failure);
            } else {
                slot.client.fail(&failure, now, &mut self.tally);
                self.close(i);
            }
        }
    }

    /// A connection failed before it was established. For the very first one that may be the end of the run.
    pub(super) fn connect_failed(&mut self, i: usize, failure: &Failure) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(i) else { return };
        if !self.probing {
            slot.client.fail(failure, now, &mut self.tally);
            self.close(i);
            return;
        }
        slot.client.rewind(&self.rules);
        let intended = slot.client.intended();
        self.tally.tried -= 1;
        self.drop_socket(i);
        self.settle(i);
        if let Some(next) = self.addrs.pop() {
            self.addr = next;
            self.peer = next.into();
            self.try_again(i, intended);
        } else {
            self.ready.clear();
            let (addr, failure) = (self.addr, failure.clone());
            self.fatal = Some(match failure.kind() {
                Kind::Refused => CouldNotRun::NobodyListens { addr },
                _ => CouldNotRun::FirstConnect { addr, failure },
            });
        }
    }

    pub(super) fn give_up_if_in_vain(&mut self) {
        if self.tally.connects_failed_in_a_row >= CONNECTS_IN_VAIN {
            self.gave_up.get_or_insert(Ended::ConnectsFailed(CONNECTS_IN_VAIN));
        }
        let in_vain = TIMEOUTS_IN_VAIN * self.clients;
        if self.tally.timeouts_in_a_row >= in_vain && self.end.is_none() {
            self.gave_up.get_or_insert(Ended::TimedOut(in_vain));
        }
    }
}
