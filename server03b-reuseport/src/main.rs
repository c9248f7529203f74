//! TCP pre-forked event-driven server: each child has its own listener (SO_REUSEPORT) and epoll.
//!
//! Run: cargo run -p server03b-reuseport
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03a-distribution
//! Next: server04-fdpass
//! Diff base: server03-prefork
//! Overload: refuse (over --max-conns of the whole pool a client gets `ERR busy`)

mod board;
mod event_loop;
mod port;

use std::thread::available_parallelism;

use board::Worker;
use clap::{Parser, value_parser};
use common::descriptors::MaxConns;
use common::report::Failed;
use lifecycle::{Server, Supervisor, die_with_parent, end_child};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use socket2::Socket;

/// TCP pre-forked event-driven server: each child has its own listener (SO_REUSEPORT) and epoll
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Workers, each with a listener and an event loop [default: the number of CPUs]
    #[arg(short = 'n', long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let Args { server, workers, max_conns } = Args::parse();
    let max_conns = max_conns.within(u64::MAX)?;
    // An event loop never waits for one client. More loops than CPUs only add context switches.
    let workers = workers.unwrap_or_else(|| available_parallelism().map_or(1, |n| n.get() as u16));
    // SIGCHLD, SIGTERM and SIGINT are blocked, except in `sleep`. So none of them is lost between
    // a check and the sleep.
    let mut pool = Supervisor::new(workers, &server)?;
    let counters = board::shared_counters(workers.into())?;
    let port = port::take_port(&server.listen)?;

    while pool.is_running() {
        // The kernel has closed the connections of a worker that has ended.
        pool.of_empty_slots(counters).for_each(|worker| worker.set_clients(0));
        // Fork until the pool is complete: at the start, and after a worker has ended.
        while pool.needs_worker() {
            let Some(mine) = pool.of_empty_slots(counters).next() else { break };
            // Each worker gets a new listener. Clients connect to its backlog from now on.
            let listener = match port::share_port(&port) {
                Ok(listener) => listener,
                Err(e) => {
                    pool.failed("listener", format!("{e:?}"));
                    continue;
                }
            };
            let worker = Worker { mine, counters, max_conns };
            // SAFETY: this process has one thread, so the child may call any function.
            match unsafe { fork() } {
                // The child accepts and serves clients, all of them in one event loop.
                Ok(ForkResult::Child) => child(port, listener, worker, &server),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
            // The worker keeps the only copy, and its end closes the listener. With a copy in the
            // parent, clients would wait in a backlog from which no worker accepts.
            drop(listener);
        }
        pool.ready(&port);
        // The parent accepts no client. It sleeps until a worker ends or a shutdown is requested.
        pool.sleep(&mut []);
    }

    // Each worker shuts its own listener down. After the last one new clients are refused.
    pool.terminate();
    let outcome = pool.wait();
    board::print(counters);
    server.log.cpu_time();
    outcome
}

/// The whole life of a child. The return type `!` makes the compiler check that a child never
/// returns to the parent's loop.
fn child(port: Socket, listener: Socket, worker: Worker, server: &Server) -> ! {
    drop(port); // close(2): only the parent keeps the port
    die_with_parent();
    // SIGTERM and SIGINT stay blocked: the event loop reads SIGTERM from a descriptor.
    let _ = SigSet::from(Signal::SIGCHLD).thread_unblock();
    end_child(event_loop::serve_clients(listener, &worker, server), &server.log)
}
