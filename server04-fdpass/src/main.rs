//! TCP pre-forked server with descriptor passing: the parent accepts, a free child serves.
//!
//! Run: cargo run -p server04-fdpass
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03b-reuseport
//! Next: server05-threads
//! Diff base: server03-prefork
//! Overload: queue (while all workers are busy, clients wait in the listener's backlog)
//!
//! The parent sleeps in ppoll. When a client connects and a worker is free, the parent accepts and
//! sends the descriptor through a Unix socket pair. A free worker receives it, serves the client,
//! and then writes one byte: it is free again.

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

/// TCP pre-forked server with descriptor passing: the parent accepts, a free child serves
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool } = Args::parse();
    // SIGCHLD, SIGTERM and SIGINT are blocked, except in `sleep`. So none of them is lost between
    // a check and the sleep.
    let mut pool = Supervisor::new(pool.workers, &server)?;
    let listener = server.listen()?;
    // All workers share one end of the pair. The kernel gives each message to one of them.
    let (parent_end, worker_end) =
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).context("socketpair")?;
    // The parent sleeps only in ppoll. These calls must not block: accept, sendmsg and recv.
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    parent_end.set_nonblocking(true).context("fcntl O_NONBLOCK")?;

    let mut free_workers = 0;
    let mut outcome = Ok(());
    while pool.is_running() {
        // Fork until the pool is complete: at the start, and after a worker has ended.
        while pool.needs_worker() {
            // SAFETY: this process has one thread, so the child may call any function.
            match unsafe { fork() } {
                // The child receives connections and serves them, one after the other.
                Ok(ForkResult::Child) => child((listener, parent_end), &worker_end, &server),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        pool.ready(&listener);
        // The parent sleeps until a worker is free, or a client connects while a worker is free.
        // While no worker is free, clients wait in the backlog.
        let mut fds = vec![PollFd::new(parent_end.as_fd(), PollFlags::POLLIN)];
        if free_workers > 0 {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        pool.sleep(&mut fds);
        // Each byte comes from one free worker. A free worker that was killed is still counted
        // when its replacement writes a byte, so the size of the pool limits the count.
        while matches!((&parent_end).read(&mut [0]), Ok(1)) {
            free_workers = pool.workers().count().min(free_workers + 1);
        }
        outcome = pass_connections(&listener, &parent_end, &mut free_workers, &server);
    }

    // close(2): new clients are refused, and a worker that waits in recvmsg reads end of file.
    drop((listener, parent_end));
    pool.terminate();
    let ended = pool.wait();
    server.log.cpu_time();
    outcome.and(ended)
}

/// Accepts a client for each free worker and passes its connection on, until the backlog is empty.
fn pass_connections(
    listener: &Socket,
    channel: &Socket,
    free_workers: &mut usize,
    server: &Server,
) -> Result<(), Failed> {
    while *free_workers > 0 {
        let conn = match listener.accept() {
            Ok((conn, _)) => conn,
            // The backlog is empty: ppoll reports the next client.
            Err(e) if matches!(e.kind(), WouldBlock | Interrupted) => break,
            Err(e) => return server.accept_failed(&e),
        };
        match send_fd(channel, &conn) {
            Ok(()) => *free_workers -= 1,
            Err(e) => server.log.repeated("WARN", &format!("sendmsg: {e}")),
        }
        // The parent closes its copy. The client reads end of file when the last copy is closed.
        // The message in the channel is a copy too, so the connection stays open.
        drop(conn);
    }
    Ok(())
}

/// The whole life of a child. The return type `!` makes the compiler check that a child never
/// returns to the parent's loop.
fn child(parents: (Socket, Socket), channel: &Socket, server: &Server) -> ! {
    // With a copy of `parent_end` in a worker, no worker would read end of file when the parent
    // closes it.
    drop(parents);
    begin_child();
    end_child(receive_loop(channel, server), &server.log)
}

/// What a worker writes into the channel: it is free, and the parent may send one connection.
const FREE: u8 = b'f';
/// The interval at which a worker without a free descriptor number checks for one.
const INTERVAL: Duration = Duration::from_millis(100);

/// The loop of server00-iterative, in every worker, with recvmsg instead of accept.
fn receive_loop(mut channel: &Socket, server: &Server) -> Result<(), Failed> {
    let _ = channel.write(&[FREE]); // if the parent has ended, recvmsg reads end of file
    while !shutdown::requested() {
        // Sleep until the parent sends a connection. The kernel gives a message to one worker.
        match recv_fd(channel) {
            Ok(Received::Descriptor(fd)) => {
                let mut conn = Socket::from(fd);
                // Serve this client until its session ends.
                if let Ok(peer) = conn.peer_addr() {
                    server.serve(&mut conn, &peer);
                }
                drop(conn); // close(2): the client reads end of file
            }
            // The kernel has closed the descriptor, so this client is lost. The worker is not free
            // until it can receive a descriptor again.
            Ok(Received::Truncated) => {
                server.log.repeated("WARN", "recvmsg: MSG_CTRUNC: too many open files");
                while channel.try_clone().is_err() && !shutdown::requested() {
                    thread::sleep(INTERVAL);
                }
            }
            Ok(Received::Unexpected) => server.log.repeated("WARN", "recvmsg: unexpected message"),
            // The parent has closed its end.
            Ok(Received::EndOfFile) => break,
            // A signal interrupted recvmsg.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => return Err(Failed::new(format!("recvmsg: {e}"))),
        }
        let _ = channel.write(&[FREE]);
    }
    Ok(())
}
