//! TCP concurrent server: a pool of threads, all blocked in accept on one listener.
//!
//! Run: cargo run -p server06-prethread
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server05-threads
//! Next: server06a-queue
//! Diff base: server05-threads
//! Overload: queue (in the listener's backlog, until a thread calls accept again)

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
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    // The scope ends when all of its threads have ended, so they may borrow the listener.
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..pool.workers {
            // Builder, because Scope::spawn panics if the kernel cannot create a thread. After an
            // error the scope still waits for the threads that exist: the shutdown ends them.
            let worker = Builder::new().spawn_scoped(scope, || accept_loop(&listener, &server));
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
        match listener.accept() {
            Ok((mut conn, peer)) => server.serve(&mut conn, &peer),
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => server.accept_failed(&e)?,
        }
    }
    Ok(())
}
