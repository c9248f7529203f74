//! The calls on connections as requests to a ring, and what follows from their completions.
//!
//! A recv is always under way on an established connection, so one wait serves all that may happen on it.

use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::Engine;
use super::ring::{Call, Ring, Sending};
use crate::failure::{CouldNotRun, Failure};
use crate::stats::note;

impl Engine<'_> {
    /// Hands over what is queued, waits for completions and deals with them.
    pub(super) fn ring_turn(&mut self, timeout: Duration) -> Result<(), CouldNotRun> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        ring.wait(timeout).map_err(|source| CouldNotRun::System { call: "io_uring_enter", source })?;
        let woken = self.now();
        let mut any = false;
        while let Some(done) = self.ring.as_mut().and_then(Ring::next) {
            any = true;
            match done.call {
                Call::Connect => self.on_connected(done.slot, done.result),
                Call::Send => self.on_sent(done.slot, done.result),
                Call::Recv => self.on_received(done.slot, done.result),
                Call::Close => {}
            }
            if self.pace.is_some() {
                // A turn may be long, and what is due shall not wait for its end.
                self.dispatch();
            }
        }
        if any {
            let now = self.now();
            note(&mut self.tally.turns, now - woken);
            self.warm_up_by_count(now);
        }
        Ok(())
    }

    fn descriptor(&self, i: usize) -> Option<RawFd> {
        self.slots.get(i)?.socket.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn on_connected(&mut self, i: usize, result: Result<usize, i32>) {
        if let Err(errno) = result {
            return self.connect_failed(i, &Failure::Connect(errno));
        }
        if self.slots.get(i).is_some_and(|slot| slot.client.is_opening()) {
            self.on_opening(i);
        } else {
            self.established(i);
            self.ask_to_send(i);
        }
        self.ask_to_receive(i);
    }

    /// What is to be sent now; the kernel gets it with the next wait, but for the client it is sent now.
    pub(super) fn ask_to_send(&mut self, i: usize) {
        let (now, fd) = (self.now(), self.descriptor(i));
        let (Some(fd), Some(slot), Some(ring)) = (fd, self.slots.get(i), &mut self.ring) else { return };
        let (text, whole) = slot.client.text(&self.rules, &mut self.scratch);
        ring.send(i, fd, text, whole, now);
    }

    fn ask_to_receive(&mut self, i: usize) {
        if let (Some(fd), Some(ring)) = (self.descriptor(i), &mut self.ring) {
            ring.recv(i, fd);
        }
    }

    fn on_sent(&mut self, i: usize, result: Result<usize, i32>) {
        let fd = self.descriptor(i);
        let (Some(fd), Some(ring), Some(slot)) = (fd, &mut self.ring, self.slots.get_mut(i)) else { return };
        let Some(lane) = ring.lane(i) else { return };
        lane.sending = Sending::No;
        let (asked_at, whole) = (lane.asked_at, lane.whole);
        let is_older = mem::take(&mut lane.again);
        match result {
            // The answer came before its request was sent, and this was the rest of that.
            _ if is_older => self.ask_to_send(i),
            _ if !slot.client.is_sending() => {}
            Ok(n) => {
                if !slot.client.took(n, whole, asked_at, &mut self.tally) {
                    self.ask_to_send(i);
                }
            }
            Err(libc::EAGAIN | libc::EINTR) => ring.send_patiently(i, fd),
            // What the server said before is received yet, and behind it why the connection is broken.
            Err(errno) => slot.client.send_failed(errno, asked_at, &mut self.tally),
        }
        let held = self.ring.as_mut().and_then(|ring| ring.lane(i)?.held.take());
        if let Some(result) = held {
            self.on_received(i, result);
        }
    }

    fn on_received(&mut self, i: usize, result: Result<usize, i32>) {
        let (Some(ring), Some(slot)) = (&mut self.ring, self.slots.get(i)) else { return };
        let Some(lane) = ring.lane(i) else { return };
        let is_ready = slot.client.is_ready();
        if is_ready && matches!(result, Ok(0) | Err(_)) {
            return self.closed_idle(i);
        }
        // A send that is complete is counted before what was received behind it. Bytes that nobody asked for are in
        // front of the next answer, and make it wrong.
        if is_ready || lane.sending == Sending::AtOnce {
            lane.held = Some(result);
            return;
        }
        if matches!(result, Err(libc::EAGAIN | libc::EINTR)) {
            return self.ask_to_receive(i);
        }
        let input = mem::take(&mut lane.input);
        let heard = self.heard(i, result.map(|n| input.get(..n).unwrap_or_default()), false);
        if let Some(lane) = self.ring.as_mut().and_then(|ring| ring.lane(i)) {
            lane.input = input;
        }
        if heard.is_some() {
            self.settle(i);
        }
        self.ask_to_receive(i);
    }
}
