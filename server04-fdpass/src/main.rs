//! TCP pre-forked server with descriptor passing: the parent accepts and hands each client to a free child.
//!
//! Run: cargo run -p server04-fdpass -- -v
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03b-reuseport
//! Next: server05-threads
//! Diff base: server03-prefork
//! Overload: queue (in the listener's backlog: the parent accepts only when a worker is free)

mod fd_channel;

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::Failed;
use fd_channel::{Received, recv_fd, send_fd};
use lifecycle::{Server, Supervisor, begin_child, end_child, shutdown};
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{ForkResult, fork};
use socket2::{Domain, Socket, Type};

/// What a worker writes to the parent when it can take a client: a credit for one.
const FREE: u8 = b'f';
/// How often a worker without a free descriptor looks for one.
const PAUSE: Duration = Duration::from_millis(100);

/// TCP pre-forked server with descriptor passing
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool } = Args::parse();
    // It takes signals in `sleep` only: no child can end, and no stop be asked for, between a look and a sleep.
    let mut pool = Supervisor::new(pool.workers, &server)?;
    let listener = server.listen()?;
    // One channel for all: a client goes down to whichever worker takes it, a byte comes up from each one that is free.
    // A worker that dies has not taken what is on its way, so another one gets it. SEQPACKET: messages are never merged.
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).context("socketpair")?;
    // The parent sleeps in ppoll and nowhere else: not in accept for a client that has gone away since, and not in
    // sendmsg for workers that are stopped.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    ours.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut free_workers = 0;
    let mut outcome = Ok(());
    while pool.is_running() {
        while pool.needs_worker() {
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child((listener, ours), &theirs, &server),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        // The listener is asked only while a worker is free: the other clients wait in its backlog.
        let mut fds = vec![PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        if free_workers > 0 {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        pool.ready(&listener);
        pool.sleep(&mut fds);
        while matches!((&ours).read(&mut [0]), Ok(1)) {
            free_workers += 1;
        }
        outcome = hand_out(&listener, &ours, &mut free_workers, &server);
    }

    drop((listener, ours)); // close: new clients are refused, and a worker that waits for one sees the end
    pool.terminate();
    let ended = pool.wait();
    server.log.cpu_time();
    outcome.and(ended)
}

/// Passes a client on for each free worker, as long as there are clients.
fn hand_out(listener: &Socket, channel: &Socket, free_workers: &mut u32, server: &Server) -> Result<(), Failed> {
    while *free_workers > 0 {
        let conn = match listener.accept() {
            Ok((conn, _)) => conn,
            // Nobody there: ppoll says when to ask again.
            Err(e) if matches!(e.kind(), WouldBlock | Interrupted) => break,
            Err(e) => return server.accept_failed(&e),
        };
        match send_fd(channel, &conn) {
            // It is open while it is on its way, whoever closes it here.
            Ok(()) => *free_workers -= 1,
            Err(e) => server.log.repeated("WARN", &format!("sendmsg: {e}")),
        }
        // The client sees the end of the stream only when the last copy is closed: this one must not stay open.
        drop(conn);
    }
    Ok(())
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(parents: (Socket, Socket), channel: &Socket, server: &Server) -> ! {
    drop(parents); // with a copy of the parent's end here, no worker would ever see its end
    begin_child();
    end_child(receive_loop(channel, server), &server.log)
}

/// The iterative server's loop, with recvmsg in the place of accept.
fn receive_loop(mut channel: &Socket, server: &Server) -> Result<(), Failed> {
    let _ = channel.write(&[FREE]); // if the parent has gone, recvmsg will say so
    while !shutdown::requested() {
        match recv_fd(channel) {
            Ok(Received::Descriptor(fd)) => {
                let mut conn = Socket::from(fd);
                if let Ok(peer) = conn.peer_addr() {
                    server.serve(&mut conn, &peer);
                }
                drop(conn); // close: the client sees the end of the stream
            }
            // The kernel has closed it: this client is lost, and the worker not free before it has room for the next.
            Ok(Received::NoRoom) => {
                server.log.repeated("WARN", "recvmsg: MSG_CTRUNC, no descriptor left for a client");
                while channel.try_clone().is_err() && !shutdown::requested() {
                    thread::sleep(PAUSE);
                }
            }
            Ok(Received::NoHandover) => {
                server.log.repeated("WARN", "recvmsg: a message that is no handover");
                continue;
            }
            // The parent has gone.
            Ok(Received::End) => break,
            // A signal came while recvmsg slept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => return Err(Failed::new(format!("recvmsg: {e}"))),
        }
        let _ = channel.write(&[FREE]);
    }
    Ok(())
}
