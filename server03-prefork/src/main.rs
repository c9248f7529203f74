//! TCP pre-forked server: a pool of child processes, all blocked in accept on one listener.
//!
//! Run: cargo run -p server03-prefork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02c-mio
//! Next: server03a-distribution
//! Diff base: server01-fork
//! Overload: queue (while all workers are busy, clients wait in the listener's backlog)

use std::io::ErrorKind::Interrupted;
use std::net::Shutdown;

use clap::Parser;
use common::cli::Pool;
use common::report::Failed;
use lifecycle::{Server, Supervisor, begin_child, end_child, shutdown};
use nix::unistd::{ForkResult, fork};
use socket2::Socket;

/// TCP pre-forked server: a pool of child processes, all blocked in accept
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

    while pool.is_running() {
        // Fork until the pool is complete: at the start, and after a worker has ended.
        while pool.needs_worker() {
            // SAFETY: this process has one thread, so the child may call any function.
            match unsafe { fork() } {
                // The child accepts and serves clients, one after the other.
                Ok(ForkResult::Child) => child(&listener, &server),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        pool.ready(&listener);
        // The parent accepts no client. It sleeps until a worker ends or a shutdown is requested.
        pool.sleep(&mut []);
    }

    // Send SIGTERM first. Then a worker knows why accept fails after the next call.
    pool.terminate();
    // shutdown(2) acts on the socket, which all processes share: accept fails in every worker, and
    // new clients are refused.
    let _ = listener.shutdown(Shutdown::Read);
    let outcome = pool.wait();
    server.log.cpu_time();
    outcome
}

/// The whole life of a child. The return type `!` makes the compiler check that a child never
/// returns to the parent's loop.
fn child(listener: &Socket, server: &Server) -> ! {
    begin_child();
    end_child(accept_loop(listener, server), &server.log)
}

/// The loop of server00-iterative, in every worker. All idle workers sleep in accept on the same
/// listener, and the kernel wakes one of them for each connection.
fn accept_loop(listener: &Socket, server: &Server) -> Result<(), Failed> {
    while !shutdown::requested() {
        // Sleep until a client connects.
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // Serve this client until its session ends.
        server.serve(&mut conn, &peer);
        drop(conn); // close(2): the client reads end of file
    }
    Ok(())
}
