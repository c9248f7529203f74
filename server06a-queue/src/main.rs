//! TCP concurrent server: one acceptor, a bounded queue, and a pool of threads that serve.
//!
//! Run: cargo run -p server06a-queue
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server06-prethread
//! Next: server07-io-uring
//! Diff base: server06-prethread
//! Overload: queue (--queue clients wait for a thread, the next ones in the listener's backlog)

use std::collections::VecDeque;
use std::io::ErrorKind::Interrupted;
use std::sync::{Condvar, Mutex};
use std::thread::{self, Builder};

use anyhow::Context;
use clap::Parser;
use common::cli::Pool;
use common::report::Failed;
use lifecycle::{Server, shutdown};
use socket2::{SockAddr, Socket};

/// TCP concurrent server: one acceptor, a bounded queue, a pool of threads
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
    /// Clients that may wait for a worker
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, pool, queue } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    let queue = Queue { limit: queue.into(), ..Queue::default() };
    // A scope ends when all of its threads have ended. They may borrow what is older than it.
    thread::scope(|scope| {
        for _ in 0..pool.workers {
            // Not Scope::spawn, which panics where the kernel has no thread to give.
            let worker = Builder::new().spawn_scoped(scope, || worker(&queue, &server));
            // The scope waits for those that were made, so they have to be told.
            worker.inspect_err(|_| queue.close()).context("clone")?;
        }
        let outcome = accept_loop(&listener, &queue, &server);
        queue.close();
        outcome
    })?;

    server.log.cpu_time();
    Ok(())
}

/// The acceptor: it serves nobody, and sleeps while the queue is full.
fn accept_loop(listener: &Socket, queue: &Queue, server: &Server) -> Result<(), Failed> {
    while !shutdown::requested() {
        match listener.accept() {
            Ok(client) => queue.push(client),
            // A signal came while accept slept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => server.accept_failed(&e)?,
        }
    }
    Ok(())
}

/// A thread's whole life: one client at a time.
fn worker(queue: &Queue, server: &Server) {
    while let Some((mut conn, peer)) = queue.pop() {
        server.serve(&mut conn, &peer);
        drop(conn); // close: the client sees the end of the stream
    }
}

/// A bounded queue: what it holds, a lock for it, and two conditions to wait for.
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
    closed: bool,
}

#[allow(clippy::unwrap_used)] // a lock is poisoned by a panic of who holds it, and nothing here panics
impl Queue {
    /// Appends a client; sleeps while there is no room.
    fn push(&self, client: (Socket, SockAddr)) {
        let mut state = self.state.lock().unwrap();
        // A loop: a sleeper may wake without a reason, or find that another one was quicker.
        while state.clients.len() == self.limit {
            // Gives the lock away and sleeps in one step: no pop can slip in between.
            state = self.not_full.wait(state).unwrap();
        }
        state.clients.push_back(client);
        // One client, one worker: the others sleep on.
        self.not_empty.notify_one();
    }

    /// Takes the first client; sleeps until there is one. None: the queue is closed and empty.
    fn pop(&self) -> Option<(Socket, SockAddr)> {
        let mut state = self.state.lock().unwrap();
        while state.clients.is_empty() && !state.closed {
            state = self.not_empty.wait(state).unwrap();
        }
        // Perhaps the acceptor waits for the place that is free now.
        self.not_full.notify_one();
        state.clients.pop_front()
    }

    /// No more will come: who sleeps in `pop` is told.
    fn close(&self) {
        self.state.lock().unwrap().closed = true;
        self.not_empty.notify_all();
    }
}
