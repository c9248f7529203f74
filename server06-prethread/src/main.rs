//! TCP concurrent server: a pool of threads, all blocked in accept on the one listener.
//!
//! Run: cargo run -p server06-prethread
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server05-threads
//! Next: server06a-queue
//! Diff base: server05-threads
//! Overload: queue (in the listener's backlog, until a thread comes back to accept)

use std::io::ErrorKind::Interrupted;
use std::thread::{self, Builder};

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::Failed;
use lifecycle::{Server, shutdown};
use socket2::Socket;

/// TCP concurrent server: a pool of threads in accept
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    // A scope ends when all of its threads have ended. They may borrow what is older than it.
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..pool.workers {
            // Not Scope::spawn, which panics where the kernel has no thread to give.
            let worker = Builder::new().spawn_scoped(scope, || accept_loop(&listener, &server));
            workers.push(worker.inspect_err(|_| shutdown::request()).context("clone")?);
        }
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;

    server.log.cpu_time();
    Ok(())
}

/// The iterative server's loop, in every thread. The kernel keeps the sleepers in a queue and wakes one of them for each
/// connection: no herd, and all take turns.
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
