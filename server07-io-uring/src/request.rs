//! The requests of this server. Each one names one call that the kernel makes. No function here
//! makes a system call: `Ring::submit_and_wait` submits all requests that are queued.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null_mut;

use common::report::Failed;
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types::CancelBuilder, types::Fd};
use lifecycle::Signals;
use lifecycle::clients::{Clients, Interest};
use socket2::Socket;

use crate::ring::{GROUP, Ring};

/// Accept requests in the ring: up to this many clients are accepted by one system call.
pub const ACCEPTS: usize = 8;
/// The kernel copies the user_data of a request, 64 bits, to its completion. The user_data of a
/// client's request is 4 x its key + RECV, SEND or ROOM.
pub const SIGNALS: u64 = u64::MAX;
pub const ACCEPT: u64 = u64::MAX - 1;
pub const CANCEL: u64 = u64::MAX - 2;
pub const RECV: u64 = 0;
pub const SEND: u64 = 1;
const ROOM: u64 = 2;
/// IORING_RECVSEND_POLL_FIRST: wait for bytes before the first attempt. After an answer the next
/// request of the client has hardly ever arrived.
const POLL_FIRST: u16 = 1;

/// Completes when a signal is pending.
pub fn signals(ring: &mut Ring, signals: &Signals) -> Result<(), Failed> {
    let poll = opcode::PollAdd::new(Fd(signals.as_fd().as_raw_fd()), libc::POLLIN as u32);
    submit(ring, poll.build(), SIGNALS)
}

/// Completes when a client has connected. The result is the descriptor, as that of accept(2).
pub fn accept(ring: &mut Ring, listener: &Socket) -> Result<(), Failed> {
    let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), null_mut(), null_mut());
    submit(ring, accept.flags(libc::SOCK_CLOEXEC).build(), ACCEPT)
}

/// The next request of a client: receive, send, or wait for room in the send buffer. A client has
/// exactly one request in the ring until it is closed.
pub fn next(
    ring: &mut Ring,
    clients: &Clients<Socket>,
    key: usize,
    is_full: bool,
) -> Result<(), Failed> {
    let Some(client) = clients.get(key) else { return Ok(()) };
    let fd = Fd(client.conn.as_raw_fd());
    let (kind, request) = match client.interest() {
        // The kernel takes a buffer from the group when bytes arrive: an idle client needs none.
        Interest::Read => {
            let room = client.service.room() as u32;
            let recv = opcode::Recv::new(fd, null_mut(), room).buf_group(GROUP);
            (RECV, recv.ioprio(POLL_FIRST).build().flags(Flags::BUFFER_SELECT))
        }
        // Multishot, because it is edge-triggered. If the client has sent a FIN, a one-shot poll
        // completes at once, again and again.
        Interest::Write if is_full => {
            (ROOM, opcode::PollAdd::new(fd, libc::POLLOUT as u32).multi(true).build())
        }
        // Without MSG_DONTWAIT the kernel may create a thread that blocks in send.
        Interest::Write => {
            let (bytes, flags) =
                (client.service.pending(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
            (SEND, opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags).build())
        }
    };
    // SAFETY: answers are static. An error line lives as long as its client, which is closed only
    // after the completion of this request.
    unsafe { ring.push(&request.user_data(key as u64 * 4 + kind)) }
}

/// Ends the request of a client early. That request then completes with ECANCELED.
pub fn cancel(ring: &mut Ring, clients: &Clients<Socket>, key: usize) -> Result<(), Failed> {
    let Some(client) = clients.get(key) else { return Ok(()) };
    let of_client = CancelBuilder::fd(Fd(client.conn.as_raw_fd()));
    submit(ring, opcode::AsyncCancel2::new(of_client).build(), CANCEL)
}

fn submit(ring: &mut Ring, request: Entry, user_data: u64) -> Result<(), Failed> {
    // SAFETY: the request contains no pointer to memory of this program.
    unsafe { ring.push(&request.user_data(user_data)) }
}
