//! TCP concurrent server: a pool of threads, all blocked in accept on one listener.
//!
//! Run: cargo run -p server06-prethread
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server05-threads
//! Next: server06a-queue
//! Diff base: server05-threads
//! Overload: queue (while all threads are busy, clients wait in the listener's backlog)

use std::io::ErrorKind::Interrupted;
use std::thread::{self, Builder};

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use socket2::Socket;

/// TCP concurrent server: a pool of threads, all blocked in accept
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool } = Args::parse();
    // SIGTERM and SIGINT request a shutdown. A signal also interrupts accept (EINTR).
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    // A shutdown makes accept on this socket fail, even if the signal arrives before the call.
    shutdown::register(&listener);

    // The scope waits for all of its threads, so they may borrow the listener.
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..pool.workers {
            // Builder, because Scope::spawn panics if the kernel cannot create a thread.
            let worker = Builder::new().spawn_scoped(scope, || accept_loop(&listener, &server));
            // After an error the scope still waits for the other threads: the shutdown ends them.
            workers.push(worker.inspect_err(|_| shutdown::request()).context("clone")?);
        }
        report::ready(&listener);
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;

    server.log.cpu_time();
    Ok(())
}

/// The whole life of a thread: it serves one client at a time. All threads of the pool sleep in the
/// same accept. Each new connection wakes one of them, the one that has slept longest.
fn accept_loop(listener: &Socket, server: &Server) -> Result<(), Failed> {
    while !shutdown::requested() {
        // Sleep until a client connects.
        match listener.accept() {
            // Serve this client until its session ends. The end of this arm closes the connection.
            Ok((mut conn, peer)) => server.serve(&mut conn, &peer),
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => server.accept_failed(&e)?,
        }
    }
    Ok(())
}
