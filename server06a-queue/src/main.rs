//! TCP concurrent server: one acceptor, a bounded queue, and a pool of threads.
//!
//! Run: cargo run -p server06a-queue
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06-prethread
//! Next: server07-io-uring
//! Diff base: server06-prethread
//! Overload: queue (--queue clients in the program, the other clients in the listener's backlog)

use std::collections::VecDeque;
use std::io::ErrorKind::Interrupted;
use std::thread::{self, Builder};

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use parking_lot::{Condvar, Mutex};
use socket2::{SockAddr, Socket};

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

    let queue = Queue { limit: queue.into(), ..Queue::default() };
    // The scope waits for all of its threads, so they may borrow the queue.
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

/// A bounded queue: the state, the lock that protects it, and two conditions that threads wait for.
#[derive(Default)]
struct Queue {
    limit: usize,
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
}

#[derive(Default)]
struct State {
    clients: VecDeque<(Socket, SockAddr)>,
    is_closed: bool,
}

impl Queue {
    /// Appends a client. Sleeps while the queue is full: this stops the acceptor (back-pressure).
    fn push(&self, client: (Socket, SockAddr)) {
        let mut state = self.state.lock();
        while state.clients.len() == self.limit {
            // Releases the lock and sleeps in one step, so no notification is lost. Locks again
            // before it returns.
            self.not_full.wait(&mut state);
        }
        state.clients.push_back(client);
        // One client needs one worker: notify_all would also wake the other workers.
        self.not_empty.notify_one();
    }

    /// Removes the first client. Sleeps while the queue is empty. None: it is empty and closed.
    fn pop(&self) -> Option<(Socket, SockAddr)> {
        let mut state = self.state.lock();
        // A loop, because another worker may take the client before this worker has the lock again.
        while state.clients.is_empty() && !state.is_closed {
            self.not_empty.wait(&mut state);
        }
        let client = state.clients.pop_front();
        self.not_full.notify_one();
        client
    }

    /// Lets the workers end when the queue is empty. Without this call they would sleep forever.
    fn close(&self) {
        self.state.lock().is_closed = true;
        self.not_empty.notify_all();
    }
}
