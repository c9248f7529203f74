//! TCP pre-forked event-driven server: an epoll loop in every child, and a listener of its own for each, SO_REUSEPORT.
//!
//! Run: cargo run -p server03b-reuseport
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server03a-distribution
//! Next: server04-fdpass
//! Diff base: server03-prefork
//! Overload: refuse (beyond --max-conns of the whole pool `ERR busy` and no more)
//!
//! The pool and its supervisor are server03-prefork's. The loop of each child, server02b-epoll's level-triggered one, is
//! in event_loop.rs; what the children know of one another is in board.rs.

mod board;
mod event_loop;

use std::net::SocketAddr;
use std::thread::available_parallelism;

use anyhow::Context;
use board::Place;
use clap::Parser;
use common::cli::Listen;
use common::report::Failed;
use event_loop::{Crew, serve_clients};
use common::descriptors::MaxConns;
use lifecycle::{BACKLOG, Server, Supervisor, die_with_parent, end_child};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use socket2::{Domain, Socket, Type};

/// TCP pre-forked event-driven server: an epoll loop and a listener for every child, SO_REUSEPORT
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Workers, each with a listener and an event loop [default: one for each CPU that it may use]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let max_conns = args.max_conns.within(u64::MAX)? as u64;
    // An event loop never waits for one client, so a second loop on the same CPU only adds context switches.
    let workers = args.workers.unwrap_or_else(|| available_parallelism().map_or(1, |n| n.get() as u16));
    let mut pool = Supervisor::new(workers, &args.server)?;
    let places = board::shared_places(workers.into()).context("mmap")?;

    let placeholder = take_port(&args.server.listen)?;
    // All listeners before the ready line: from then on there is a queue for every value of the kernel's hash.
    let mut listeners = places.iter().map(|_| share_port(&placeholder)).collect::<Result<Vec<_>, _>>()?;
    while pool.is_running() {
        // The clients of a dead worker died with it.
        pool.of_empty_slots(places).for_each(Place::release_all);
        while pool.needs_worker() {
            let Some(me) = pool.of_empty_slots(places).next() else { break };
            let listener = match listeners.pop().map_or_else(|| share_port(&placeholder), Ok) {
                Ok(listener) => listener,
                Err(failed) => {
                    pool.failed("listener", format!("{failed:?}"));
                    continue;
                }
            };
            let crew = Crew { places, me, max_conns };
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => child(listener, (placeholder, listeners), crew, &args),
                Ok(ForkResult::Parent { child }) => {
                    pool.add(child);
                    drop(listener); // close: the worker has the only copy, and its queue ends with the worker
                }
                Err(e) => {
                    pool.failed("fork", e);
                    listeners.push(listener); // clients may wait in its queue
                }
            }
        }
        pool.ready(&placeholder);
        // The parent accepts no client. It sleeps until a worker ends and has to be replaced.
        pool.sleep(&mut []);
    }

    drop(listeners); // close: the listeners without a worker
    // Each worker closes its own listener. When the last one is closed, new clients are refused.
    pool.terminate();
    let outcome = pool.wait();
    board::print(places);
    args.server.log.cpu_time();
    outcome
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: Socket, others: (Socket, Vec<Socket>), crew: Crew, args: &Args) -> ! {
    // A copy of another worker's listener would keep that queue open after its worker, and no process would accept from it.
    drop(others);
    // SIGTERM and SIGINT stay blocked: the event loop takes SIGTERM from a descriptor.
    let _ = SigSet::from(Signal::SIGCHLD).thread_unblock();
    die_with_parent();
    end_child(serve_clients(listener, crew, args), &args.server.log)
}

/// Binds the port and never listens: it fixes the number where the kernel chooses it, and keeps strangers out, even while
/// no worker lives.
fn take_port(at: &Listen) -> Result<Socket, Failed> {
    // Without SO_REUSEPORT, so that it fails where a server runs already. With it a second server of the same user would
    // get a share of the first one's clients.
    let placeholder = bound(at.addr()?, false)?;
    // Of two servers that start at the same moment both may get here, but only one of them can listen.
    let first = bound(addr_of(&placeholder)?, false)?;
    first.listen(BACKLOG).context("listen: another server starts here")?;
    // Its work with connections in TIME_WAIT is done; from here on it would let in who also has the option.
    placeholder.set_reuse_address(false).context("setsockopt SO_REUSEADDR")?;
    // Now the workers' listeners may come beside it, and those of nobody who asks without SO_REUSEPORT.
    placeholder.set_reuse_port(true).context("setsockopt SO_REUSEPORT")?;
    Ok(placeholder)
}

/// One more listener on the port. Each has a queue of its own, and the kernel chooses one by a hash of the addresses and
/// ports, whether or not anybody has time for it.
fn share_port(placeholder: &Socket) -> Result<Socket, Failed> {
    let listener = bound(addr_of(placeholder)?, true)?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.listen(BACKLOG).context("listen")?;
    Ok(listener)
}

/// A socket at this address. SO_REUSEPORT counts at bind: every socket that is there already must have it too.
fn bound(addr: SocketAddr, reuse_port: bool) -> Result<Socket, Failed> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    socket.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    socket.set_reuse_port(reuse_port).context("setsockopt SO_REUSEPORT")?;
    socket.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    Ok(socket)
}

fn addr_of(socket: &Socket) -> Result<SocketAddr, Failed> {
    let addr = socket.local_addr().context("getsockname")?;
    Ok(addr.as_socket().context("getsockname: no address of the internet")?)
}
