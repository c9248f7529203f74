//! TCP pre-forked server: a pool of child processes, all blocked in accept on one listener.
//!
//! Run: cargo run -p server03-prefork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server02c-mio
//! Next: server03a-distribution
//! Diff base: server01-fork
//! Overload: queue (in the listener's backlog, until a worker is done with its client)

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
    // It takes signals in `sleep` only: no child can end, and no stop be asked for, between a look and a sleep.
    let mut pool = Supervisor::new(pool.workers, &server)?;
    let listener = server.listen()?;

    while pool.is_running() {
        while pool.needs_worker() {
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(&listener, &server),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        pool.ready(&listener);
        // The parent accepts nobody. It sleeps until a child ends and has to be replaced.
        pool.sleep(&mut []);
    }

    // First: a worker whose accept the next call ends must know why.
    pool.terminate();
    // Wakes whoever sleeps in accept, and refuses new clients: shutdown acts on the socket that all the processes share.
    let _ = listener.shutdown(Shutdown::Read);
    let outcome = pool.wait();
    server.log.cpu_time();
    outcome
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: &Socket, server: &Server) -> ! {
    begin_child();
    end_child(accept_loop(listener, server), &server.log)
}

/// The iterative server's loop, in every worker. All of them sleep in accept; a connection wakes one.
fn accept_loop(listener: &Socket, server: &Server) -> Result<(), Failed> {
    while !shutdown::requested() {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal came while accept slept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        server.serve(&mut conn, &peer);
        drop(conn); // close: the client sees the end of the stream
    }
    Ok(())
}
