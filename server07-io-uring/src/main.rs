//! TCP completion-driven server: one process serves all clients, the kernel makes the calls.
//!
//! Run: cargo run -p server07-io-uring
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06a-queue
//! Next: server08-tokio
//! Diff base: server02b-epoll
//! Overload: refuse (over --max-conns a client gets `ERR busy`)
//! Needs: Linux 5.19 with io_uring enabled; otherwise the server prints one line and exits with 69

mod request;
mod ring;

use std::io;
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::descriptors::MaxConns;
use common::report::{self, Failed};
use lifecycle::clients::Clients;
use lifecycle::{Server, Signals};
use request::{ACCEPT, ACCEPTS, CANCEL, RECV, SEND, SIGNALS};
use ring::{Completion, Ring, UNAVAILABLE};
use socket2::Socket;

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
    // The only limit is RLIMIT_NOFILE.
    let max_conns = args.max_conns.within(u64::MAX)?;
    let signals = Signals::new()?;
    // Two queues in memory that is shared with the kernel: requests and completions.
    let Some(mut ring) = Ring::new() else { return Ok(ExitCode::from(UNAVAILABLE)) };
    let listener = args.server.listen()?;
    request::signals(&mut ring, &signals)?;
    let (mut completions, mut accepts) = (Vec::new(), 0);

    let mut clients: Clients<Socket> = Clients::new(max_conns, &args.server);
    report::ready(&listener);
    while !clients.is_done() {
        // One request accepts one client. While accept is paused, make no new request.
        while accepts < ACCEPTS && clients.accepting() {
            request::accept(&mut ring, &listener)?;
            accepts += 1;
        }
        // The only call that blocks. It submits the new requests of all clients, and returns when
        // requests are complete, or at the next timeout.
        if let Err(e) = ring.submit_and_wait(clients.timeout_ms()) {
            // Goes on after EINTR and ENOMEM.
            args.server.wait_failed("io_uring_enter", e)?;
        }

        let now = Instant::now();
        ring.completions(&mut completions);
        for completion in completions.drain(..) {
            // The number that came with the request says what the completion is about.
            match completion.user_data {
                SIGNALS => {
                    clients.stop(&signals, &listener, now);
                    request::signals(&mut ring, &signals)?;
                }
                ACCEPT => {
                    accepts -= 1;
                    accepted(&mut ring, &mut clients, completion.result, now)?;
                }
                CANCEL => {} // the cancelled request has a completion of its own
                _ => completed(&mut ring, &mut clients, &completion, now)?,
            }
            // The bytes have been used: the kernel may fill this buffer again.
            ring.give_back(&completion);
        }
        // The timeout of a client ends its request early. The completion then serves the client.
        for key in clients.expired(now) {
            request::cancel(&mut ring, &clients, key)?;
        }
    }

    args.server.log.cpu_time();
    Ok(ExitCode::SUCCESS)
}

/// The events of poll for a socket that can be written, or that has failed.
const WRITABLE: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as i32;

/// The completion of an accept request: a new client, or an error.
fn accepted(
    ring: &mut Ring,
    clients: &mut Clients<Socket>,
    result: i32,
    now: Instant,
) -> Result<(), Failed> {
    match result {
        fd @ 0.. => {
            // SAFETY: the kernel has just created this descriptor, and nothing else uses it.
            let conn = unsafe { Socket::from_raw_fd(fd) };
            let (key, peer) = (clients.next_key(), conn.peer_addr().ok());
            clients.insert(conn, peer, now);
            request::next(ring, clients, key, false)
        }
        errno if clients.accepting() => {
            clients.accept_failed(&io::Error::from_raw_os_error(-errno))
        }
        _ => Ok(()), // the shutdown of the listener ends its accept requests too
    }
}

/// The completion of a client's request: serves the client by one step, and requests the next one.
fn completed(
    ring: &mut Ring,
    clients: &mut Clients<Socket>,
    completion: &Completion,
    now: Instant,
) -> Result<(), Failed> {
    let (key, kind) = ((completion.user_data / 4) as usize, completion.user_data % 4);
    // Only the poll for room has several completions, one per change of the socket. A FIN of the
    // client is a change too, but does not make the socket writable.
    if completion.more {
        let is_writable = completion.result & WRITABLE != 0;
        return if is_writable { request::cancel(ring, clients, key) } else { Ok(()) };
    }
    clients.serve(key, now, |client, now| {
        match (kind, completion.result) {
            // Cancelled, or all buffers were in use. The bytes are still in the socket.
            (_, errno) if matches!(-errno, libc::ECANCELED | libc::ENOBUFS) => {}
            (_, errno @ ..0) => return Err(io::Error::from_raw_os_error(-errno)),
            // 0 means end of file, as in recv(2).
            (RECV, 0) => client.service.eof(),
            (RECV, _) => client.service.feed(ring.received(completion), now),
            // The kernel may have taken only a part of the answer.
            (SEND, n) => client.service.consume(n as usize, now),
            _ => {} // ROOM: the socket is writable
        }
        Ok(())
    });
    // The send buffer is full: wait until it has room.
    let is_full = kind == SEND && completion.result == -libc::EAGAIN;
    request::next(ring, clients, key, is_full)
}
