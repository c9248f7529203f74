//! TCP completion-driven server: one process, many clients, and the kernel does the calls: io_uring.
//!
//! Run: cargo run -p server07-io-uring
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06a-queue
//! Next: server08-tokio
//! Diff base: server02b-epoll
//! Overload: refuse (beyond --max-conns `ERR busy` and no more)
//! Needs: Linux 5.19, and kernel.io_uring_disabled = 0; otherwise one line and exit status 69

mod ring;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::ptr::null_mut;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types::CancelBuilder, types::Fd};
use lifecycle::clients::{Client, Clients, Interest};
use common::descriptors::MaxConns;
use lifecycle::{Server, Signals};
use ring::{Completion, GROUP, Ring};
use socket2::Socket;

/// Requests to accept that are in the ring at once: as many clients can come in by one system call.
const ACCEPTS: usize = 8;
/// What a completion is about: the kernel hands back the 64 bits that came with the request. For a client they are
/// 4 x its key + one of the three below.
const SIGNALS: u64 = u64::MAX;
const ACCEPT: u64 = u64::MAX - 1;
const CANCEL: u64 = u64::MAX - 2;
const RECV: u64 = 0;
const SEND: u64 = 1;
const ROOM: u64 = 2;
/// What poll says of a socket that takes bytes, or never will again.
const WRITABLE: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as i32;
/// IORING_RECVSEND_POLL_FIRST: wait before the first try. After an answer the next request is hardly ever there yet.
const POLL_FIRST: u16 = 1;

/// TCP completion-driven server: one process, many clients, io_uring
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<ExitCode, Failed> {
    let args = Args::parse();
    let max_conns = args.max_conns.within(u64::MAX)?;
    let signals = Signals::new()?;
    let mut ring = match Ring::new() {
        Ok(ring) => ring,
        Err((call, error)) => return Ok(ring::unavailable(call, &error)),
    };
    let listener = args.server.listen()?;

    let mut clients = Clients::new(max_conns, &args.server);
    let mut completions = Vec::new();
    let (mut watches, mut accepts) = (false, 0);
    report::ready(&listener);
    while !clients.is_done() {
        // A request is made once for each completion that is wanted. As long as nobody can be accepted, none is.
        if !watches {
            let poll = opcode::PollAdd::new(Fd(signals.as_fd().as_raw_fd()), libc::POLLIN as u32);
            submit(&mut ring, poll.build(), SIGNALS)?;
            watches = true;
        }
        while accepts < ACCEPTS && clients.accepting() {
            let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), null_mut(), null_mut());
            submit(&mut ring, accept.flags(libc::SOCK_CLOEXEC).build(), ACCEPT)?;
            accepts += 1;
        }
        // One system call for all that was asked since the last one, by however many clients.
        ring.submit_and_wait(clients.timeout_ms()).context("io_uring_enter")?;

        let now = Instant::now();
        ring.completions(&mut completions);
        for completion in completions.drain(..) {
            match completion.user_data {
                SIGNALS => {
                    watches = false;
                    clients.stop(&signals, &listener, now);
                }
                ACCEPT => {
                    accepts -= 1;
                    accepted(&mut ring, &completion, &mut clients, now)?;
                }
                CANCEL => {} // what was cancelled says so itself, in its own completion
                _ => completed(&mut ring, &completion, &mut clients, now)?,
            }
            ring.give_back(&completion);
        }
        for key in clients.expired(now) {
            cancel(&mut ring, clients.get(key))?;
        }
    }

    args.server.log.cpu_time();
    Ok(ExitCode::SUCCESS)
}

/// Queues a request that names no memory but the ring's own buffers.
fn submit(ring: &mut Ring, request: Entry, user_data: u64) -> Result<(), Failed> {
    // SAFETY: there is nothing that could move.
    unsafe { ring.push(&request.user_data(user_data)) }.context("io_uring_enter")?;
    Ok(())
}

/// A new client, or the reason why there is none.
fn accepted(
    ring: &mut Ring,
    completion: &Completion,
    clients: &mut Clients<Socket>,
    now: Instant,
) -> Result<(), Failed> {
    match completion.result {
        fd @ 0.. => {
            // SAFETY: a new descriptor that nobody else knows of.
            let conn = unsafe { Socket::from_raw_fd(fd) };
            let (key, peer) = (clients.next_key(), conn.peer_addr().ok());
            clients.insert(conn, peer, now);
            ask(ring, key, clients.get(key), false)
        }
        error if clients.accepting() => clients.accept_failed(&io::Error::from_raw_os_error(-error)),
        _ => Ok(()), // the stop ends this request too
    }
}

/// What a client had asked for is done: it is told, and asks for what it waits for next.
fn completed(
    ring: &mut Ring,
    completion: &Completion,
    clients: &mut Clients<Socket>,
    now: Instant,
) -> Result<(), Failed> {
    let (key, kind) = ((completion.user_data / 4) as usize, completion.user_data % 4);
    if completion.more {
        // A half-closed client is reported for that alone: no reason to send, and the next report will come.
        return if completion.result & WRITABLE == 0 { Ok(()) } else { cancel(ring, clients.get(key)) };
    }
    clients.serve(key, now, |client, now| {
        match (kind, completion.result) {
            // Cancelled, or no buffer was left, or no room: asked again below. No byte is lost.
            (_, error) if matches!(-error, libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {}
            (_, error @ ..0) => return Err(io::Error::from_raw_os_error(-error)),
            (ROOM, _) => {}
            (RECV, 0) => client.service.eof(),
            (RECV, _) => client.service.feed(ring.received(completion), now),
            (_, sent) => client.service.consume(sent as usize, now),
        }
        Ok(())
    });
    ask(ring, key, clients.get(key), kind == SEND && completion.result == -libc::EAGAIN)
}

/// The one request that a client has in the ring, until it is closed. Until its completion neither the descriptor may be
/// closed nor the bytes to be sent be touched.
fn ask(ring: &mut Ring, key: usize, client: Option<&Client<Socket>>, is_full: bool) -> Result<(), Failed> {
    let Some(client) = client else { return Ok(()) };
    let fd = Fd(client.conn.as_raw_fd());
    let (kind, request) = match client.interest() {
        // No buffer is bound while nothing comes, and no more is taken from the socket than there is room for.
        Interest::Read => {
            let recv = opcode::Recv::new(fd, null_mut(), client.service.room() as u32).buf_group(GROUP);
            (RECV, recv.ioprio(POLL_FIRST).build().flags(Flags::BUFFER_SELECT))
        }
        // Multishot, for that is edge-triggered. One-shot, and in a send that may wait, the kernel takes a client that is
        // half-closed for one that is ready, tries in vain a hundred times, and then makes a thread that sleeps in send.
        Interest::Write if is_full => (ROOM, opcode::PollAdd::new(fd, libc::POLLOUT as u32).multi(true).build()),
        Interest::Write => {
            let (bytes, flags) = (client.service.pending(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
            (SEND, opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags).build())
        }
    };
    // SAFETY: answers are static; an error line is the client's, who stays as long as the request is in the ring.
    unsafe { ring.push(&request.user_data(key as u64 * 4 + kind)) }.context("io_uring_enter")?;
    Ok(())
}

/// Ends the request of a client early; it goes on from there when that is confirmed.
fn cancel(ring: &mut Ring, client: Option<&Client<Socket>>) -> Result<(), Failed> {
    let Some(client) = client else { return Ok(()) };
    let of_client = CancelBuilder::fd(Fd(client.conn.as_raw_fd()));
    submit(ring, opcode::AsyncCancel2::new(of_client).build(), CANCEL)
}
