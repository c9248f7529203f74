//! TCP concurrent server: one thread per client.
//!
//! Run: cargo run -p server05-threads
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server04-fdpass
//! Next: server06-prethread
//! Diff base: server00-iterative
//! Overload: queue (in the listener's backlog: with --max-conns threads the acceptor does not accept)

use std::io::ErrorKind::Interrupted;
use std::sync::Arc;
use std::thread::Builder;

use clap::Parser;
use common::report::Failed;
use lifecycle::{Semaphore, Server, shutdown};

/// Bytes of address space; memory is what a thread touches of it, some 16 KiB. glibc keeps 40 MiB of dead threads' stacks
/// for the next ones, with the last 16 KiB of each still in memory: of large stacks that is less than of small ones.
const STACK: usize = 1024 * 1024;

/// TCP concurrent server: one thread per client
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Clients, and so threads, at once
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_conns: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, max_conns } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    let server = Arc::new(server);
    let permits = Semaphore::new(max_conns.into());
    while !shutdown::requested() {
        // At the limit: the next clients wait in the listener's backlog until a thread ends.
        let permit = permits.acquire();
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal came while accept slept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        let shared = Arc::clone(&server);
        let worker = move || {
            shared.serve(&mut conn, &peer);
            drop(conn); // close: the client sees the end of the stream
            drop(permit);
        };
        // Not thread::spawn, which panics where the kernel has no thread to give. The client is closed then.
        if let Err(e) = Builder::new().stack_size(STACK).spawn(worker) {
            server.log.repeated("WARN", &format!("clone: {e}"));
        }
    }

    permits.wait_for_all();
    server.log.cpu_time();
    Ok(())
}
