//! TCP pre-forked server that counts: which worker accepts, which workers wake for nothing.
//!
//! Run: cargo run -p server03a-distribution -- --wait epoll
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03-prefork
//! Next: server03b-reuseport
//! Diff base: server03-prefork
//! Overload: queue (while all workers are busy, clients wait in the listener's backlog)

mod options;
mod tally;
mod wait;

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use clap::Parser;
use common::cli::Pool;
use common::report::Failed;
use lifecycle::{Server, Supervisor, begin_child, end_child, shutdown};
use nix::unistd::{ForkResult, fork};
use options::Options;
use socket2::Socket;
use tally::{Board, Tally};
use wait::Waiter;

/// TCP pre-forked server that counts: which worker accepts, which workers wake for nothing
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: Pool,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // SIGCHLD, SIGTERM and SIGINT are blocked, except in `sleep`. So none of them is lost between
    // a check and the sleep.
    let mut pool = Supervisor::new(args.pool.workers, &args.server)?;
    let listener = args.server.listen()?;
    let board = Board::new()?;
    let waiter = Waiter::in_parent(args.options, &listener)?;

    while pool.is_running() {
        // Fork until the pool is complete: at the start, and after a worker has ended.
        while pool.needs_worker() {
            let Some(tally) = pool.of_empty_slots(&board.workers).next() else { break };
            // SAFETY: this process has one thread, so the child may call any function.
            match unsafe { fork() } {
                // The child accepts and serves clients, one after the other.
                Ok(ForkResult::Child) => child(&listener, waiter, (board, tally), &args),
                Ok(ForkResult::Parent { child }) => pool.add(child),
                Err(e) => pool.failed("fork", e),
            }
        }
        pool.ready(&listener);
        // The parent accepts no client. It sleeps until a worker ends or a shutdown is requested.
        pool.sleep(&mut []);
        board.print_if_requested(&args, pool.workers());
    }

    // Send SIGTERM first. Then a worker knows why accept fails after the next call.
    pool.terminate();
    // shutdown(2) acts on the socket, which all processes share: accept fails in every worker, and
    // new clients are refused.
    let _ = listener.shutdown(Shutdown::Read);
    let outcome = pool.wait();
    board.print(&args, (0..args.pool.workers).map(|_| None));
    args.server.log.cpu_time();
    outcome
}

/// The whole life of a child. The return type `!` makes the compiler check that a child never
/// returns to the parent's loop.
fn child(listener: &Socket, waiter: Waiter, counters: (&Board, &Tally), args: &Args) -> ! {
    begin_child();
    let waiter = waiter.in_child(args.options, listener);
    end_child(waiter.and_then(|w| accept_loop(listener, w, counters, args)), &args.server.log)
}

/// The loop of server03-prefork. How a worker waits decides which other workers wake up.
fn accept_loop(
    listener: &Socket,
    mut waiter: Waiter,
    (board, tally): (&Board, &Tally),
    args: &Args,
) -> Result<(), Failed> {
    while !shutdown::requested() {
        // Sleep until a client connects.
        tally.wait_begins();
        let accepted = waiter.accept(listener);
        tally.wait_ends(shutdown::requested());
        let (mut conn, peer) = match accepted {
            Ok(accepted) => accepted,
            // A signal interrupted the call.
            Err(e) if e.kind() == Interrupted => continue,
            // A spurious wake-up: another worker has accepted the connection.
            Err(e) if e.kind() == WouldBlock => {
                tally.count_spurious();
                continue;
            }
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => {
                args.server.accept_failed(&e)?;
                continue;
            }
        };
        board.accepted(tally);
        thread::sleep(Duration::from_millis(args.options.busy));
        // Serve this client until its session ends.
        args.server.serve(&mut conn, &peer);
        drop(conn); // close(2): the client reads end of file
    }
    Ok(())
}
