//! The two queues shared with the kernel: what it is asked to do for each connection, and what it says of it.
//!
//! One io_uring_enter hands over all that is queued and waits. The sockets block: with O_NONBLOCK a request that has to
//! wait comes back with EAGAIN instead.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use socket2::SockAddr;

/// Requests that one system call hands over. More of them cost a call in between, no more.
const ENTRIES: u32 = 1024;
/// So often a full queue is handed over before that is an error.
const PUSHES: usize = 1000;
/// Room for what one recv takes; there is one for each connection.
const BUFFER: usize = 16 * 1024;
/// So many closes may wait to be handed over, while the descriptors are used already for other connections.
pub const CLOSES: u32 = 64;
/// At the end of a run, requests under way are waited for so often and so long.
const ROUNDS: usize = 20;
const ROUND: Duration = Duration::from_millis(10);

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Connect,
    Send,
    Recv,
    Close,
}

/// What the kernel says of a request.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub call: Call,
    pub slot: usize,
    /// What the system call would have returned, or the errno.
    pub result: Result<usize, i32>,
}

/// How far a send is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sending {
    #[default]
    No,
    /// It is complete as soon as it is handed over, if only by EAGAIN.
    AtOnce,
    /// It waits for room.
    Waiting,
}

/// The requests of one connection. The slot's next connection has another generation, so that what comes late for this
/// one does not hit that.
#[derive(Default)]
pub struct Lane {
    generation: u32,
    peer: Option<Box<SockAddr>>,
    output: Vec<u8>,
    pub input: Vec<u8>,
    /// Requests under way which the kernel has not answered yet.
    under_way: u32,
    pub sending: Sending,
    /// When the send was asked for, and how long the whole request is.
    pub asked_at: u64,
    pub whole: u64,
    /// The next request is to be sent behind the send under way.
    pub again: bool,
    /// What was received before its time.
    pub held: Option<Result<usize, i32>>,
}

/// What requests of a connection that is closed may still use.
struct Orphan {
    slot: usize,
    lane: Lane,
}

/// A ring, and the connections of one thread.
pub struct Ring {
    uring: IoUring,
    lanes: Vec<Lane>,
    orphans: Vec<Orphan>,
    done: VecDeque<(u64, i32)>,
    /// Requests that are complete when they are handed over.
    at_once: usize,
    under_way: usize,
    closes: u32,
    failed: Option<io::Error>,
}

impl Ring {
    /// Makes the ring of one thread, whose completions are worked on while it waits for them and at no other time;
    /// before Linux 6.1 the kernel does not know that mode and says EINVAL.
    pub fn new(slots: usize) -> io::Result<Self> {
        let quiet = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
        let uring = match quiet {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_coop_taskrun().build(ENTRIES)
            }
            made => made,
        };
        Ok(Ring {
            uring: uring?,
            lanes: (0..slots).map(|_| Lane::default()).collect(),
            orphans: Vec::new(),
            done: VecDeque::with_capacity(2 * ENTRIES as usize),
            at_once: 0,
            under_way: 0,
            closes: 0,
            failed: None,
        })
    }

    pub fn lane(&mut self, slot: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(slot)
    }

    pub fn connect(&mut self, slot: usize, fd: RawFd, peer: SockAddr) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        let peer = &*lane.peer.insert(Box::new(peer));
        let entry = opcode::Connect::new(Fd(fd), peer.as_ptr().cast(), peer.len()).build();
        self.push_for(slot, Call::Connect, entry);
    }

    /// Sends `bytes`, which are part of a request that is `whole` bytes long. It does not wait for room.
    pub fn send(&mut self, slot: usize, fd: RawFd, bytes: &[u8], whole: u64, now: u64) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        if lane.sending != Sending::No {
            lane.again = true;
            return;
        }
        lane.output.clear();
        lane.output.extend_from_slice(bytes);
        (lane.whole, lane.asked_at, lane.sending) = (whole, now, Sending::AtOnce);
        self.at_once += 1;
        self.push_send(slot, fd, libc::MSG_DONTWAIT);
    }

    /// Sends the same once more, and waits for room.
    pub fn send_patiently(&mut self, slot: usize, fd: RawFd) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        lane.sending = Sending::Waiting;
        self.push_send(slot, fd, 0);
    }

    fn push_send(&mut self, slot: usize, fd: RawFd, flags: i32) {
        let Some(lane) = self.lanes.get(slot) else { return };
        let length = u32::try_from(lane.output.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd), lane.output.as_ptr(), length).flags(flags | libc::MSG_NOSIGNAL).build();
        self.push_for(slot, Call::Send, entry);
    }

    pub fn recv(&mut self, slot: usize, fd: RawFd) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        if lane.input.is_empty() {
            lane.input = vec![0; BUFFER];
        }
        let entry = opcode::Recv::new(Fd(fd), lane.input.as_mut_ptr(), BUFFER as u32).build();
        self.push_for(slot, Call::Recv, entry);
    }

    /// Closes the connection of a slot. A recv under way would hold the socket, and with it the FIN, so it goes first.
    pub fn close(&mut self, slot: usize, socket: impl Into<OwnedFd>) {
        let fd = socket.into().into_raw_fd();
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        let next = Lane { generation: lane.generation.wrapping_add(1), ..Lane::default() };
        let mut lane = mem::replace(lane, next);
        let is_busy = lane.under_way > 0;
        if is_busy {
            self.orphans.push(Orphan { slot, lane });
        } else if let Some(next) = self.lanes.get_mut(slot) {
            (next.output, next.input) = (mem::take(&mut lane.output), mem::take(&mut lane.input));
        }
        let token = token(slot, 0, Call::Close);
        if is_busy {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd)).all()).build();
            self.push(cancel.flags(Flags::SKIP_SUCCESS).user_data(token));
        }
        self.push(opcode::Close::new(Fd(fd)).build().flags(Flags::SKIP_SUCCESS).user_data(token));
        self.closes += 1;
        if self.closes >= CLOSES {
            self.submit();
        }
    }

    fn push_for(&mut self, slot: usize, call: Call, entry: Entry) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        lane.under_way += 1;
        self.under_way += 1;
        let token = token(slot, lane.generation, call);
        self.push(entry.user_data(token));
    }

    /// Queues a request; the kernel sees it at the next wait, or now where the queue is full.
    fn push(&mut self, entry: Entry) {
        for _ in 0..PUSHES {
            // SAFETY: what the entry points to belongs to the lane, or to an orphan, until its completion is here.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() || self.failed.is_some() {
                return;
            }
            self.submit();
        }
        self.failed = Some(io::Error::from_raw_os_error(libc::EAGAIN));
    }

    fn submit(&mut self) {
        self.closes = 0;
        match self.uring.submit().map(drop).or_else(harmless) {
            // The completion queue may be full.
            Ok(()) => self.gather(),
            Err(error) => self.failed = Some(error),
        }
    }

    /// Hands over what is queued, and waits until something is complete besides what is so at once.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.closes = 0;
        let want = if self.done.is_empty() { 1 + self.at_once } else { 1 };
        let timeout = Timespec::from(if self.done.is_empty() { timeout } else { Duration::ZERO });
        let entered = self.uring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout));
        entered.map(drop).or_else(harmless)?;
        self.gather();
        Ok(())
    }

    fn gather(&mut self) {
        self.done.extend(self.uring.completion().map(|entry| (entry.user_data(), entry.result())));
    }

    /// The next completion that belongs to a connection that is still there.
    pub fn next(&mut self) -> Option<Done> {
        loop {
            let (token, result) = self.done.pop_front()?;
            let (slot, generation, call) = parts(token);
            if call == Call::Close {
                continue;
            }
            self.under_way -= 1;
            let result = usize::try_from(result).map_err(|_| -result);
            match self.lanes.get_mut(slot) {
                Some(lane) if lane.generation & GENERATION == generation => {
                    lane.under_way -= 1;
                    self.at_once -= usize::from(call == Call::Send && lane.sending == Sending::AtOnce);
                    return Some(Done { call, slot, result });
                }
                _ => self.bury(slot, generation, call),
            }
        }
    }

    /// A request of a connection that is closed is over, and with the last of them its memory is free.
    fn bury(&mut self, slot: usize, generation: u32, call: Call) {
        let is_it = |orphan: &Orphan| orphan.slot == slot && orphan.lane.generation & GENERATION == generation;
        let Some(n) = self.orphans.iter().position(is_it) else { return };
        let Some(Orphan { lane, .. }) = self.orphans.get_mut(n) else { return };
        self.at_once -= usize::from(call == Call::Send && lane.sending == Sending::AtOnce);
        lane.under_way -= 1;
        if lane.under_way == 0 {
            self.orphans.swap_remove(n);
        }
    }
}

impl Drop for Ring {
    /// The kernel must not write to memory that is somebody else's by then.
    fn drop(&mut self) {
        self.submit();
        _ = self.uring.submitter().register_sync_cancel(Some(ROUND.into()), CancelBuilder::any());
        for _ in 0..ROUNDS {
            while self.next().is_some() {}
            if self.under_way == 0 || self.wait(ROUND).is_err() {
                break;
            }
        }
        if self.under_way > 0 {
            mem::forget((mem::take(&mut self.lanes), mem::take(&mut self.orphans)));
        }
    }
}

/// The bits of a generation that a token has room for.
const GENERATION: u32 = (1 << 24) - 1;

fn token(slot: usize, generation: u32, call: Call) -> u64 {
    (slot as u64) << 32 | u64::from(generation & GENERATION) << 8 | call as u64
}

fn parts(token: u64) -> (usize, u32, Call) {
    let call = match token & 0xff {
        0 => Call::Connect,
        1 => Call::Send,
        2 => Call::Recv,
        _ => Call::Close,
    };
    ((token >> 32) as usize, (token >> 8) as u32 & GENERATION, call)
}

/// Errors that mean no more than *look at the completions first*: a signal, the timeout, a full completion queue.
fn harmless(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_whose_request_it_was() {
        for call in [Call::Connect, Call::Send, Call::Recv, Call::Close] {
            assert_eq!(parts(token(70_000, (7 << 24) + 9, call)), (70_000, 9, call));
        }
    }
}
