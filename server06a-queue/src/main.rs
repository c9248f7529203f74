//! TCP concurrent server: one acceptor, a bounded queue, and a pool of threads.
//!
//! Run: cargo run -p server06a-queue
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06-prethread
//! Next: server07-io-uring
//! Diff base: server06-prethread
//! Overload: queue (--queue clients in the program, the other clients in the listener's backlog)

mod queue;

use std::io::ErrorKind::Interrupted;
use std::thread::{self, Builder};

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use queue::Queue;
use socket2::Socket;

/// TCP concurrent server: one acceptor, a bounded queue, and a pool of threads
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
    /// Maximum number of clients in the queue
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool, queue } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    let queue = Queue::new(queue);
    thread::scope(|scope| {
        for _ in 0..pool.workers {
            // Builder, because Scope::spawn panics if the kernel cannot create a thread.
            let worker = Builder::new().spawn_scoped(scope, || worker(&queue, &server));
            worker.inspect_err(|_| queue.close()).context("clone")?; // close ends the other workers
        }
        report::ready(&listener);
        let outcome = accept_loop(&listener, &queue, &server);
        queue.close();
        outcome
    })?;

    server.log.cpu_time();
    Ok(())
}

/// The acceptor, the main thread: it serves no client. While the queue is full it does not accept.
fn accept_loop(listener: &Socket, queue: &Queue, server: &Server) -> Result<(), Failed> {
    while !shutdown::requested() {
        // Sleep until a client connects.
        match listener.accept() {
            // Hand the client over to the workers. At the limit, sleep until the queue has room.
            Ok(client) => queue.push(client),
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => server.accept_failed(&e)?,
        }
    }
    Ok(())
}

/// The whole life of a thread: it serves one client at a time.
fn worker(queue: &Queue, server: &Server) {
    while let Some((mut conn, peer)) = queue.pop() {
        server.serve(&mut conn, &peer);
        drop(conn); // close(2): the client reads end of file
    }
}
