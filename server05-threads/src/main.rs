//! TCP concurrent server: one thread per client.
//!
//! Run: cargo run -p server05-threads
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server04-fdpass
//! Next: server06-prethread
//! Diff base: server00-iterative
//! Overload: queue (with --max-conns threads, the other clients wait in the listener's backlog)

use std::io::ErrorKind::Interrupted;
use std::sync::Arc;
use std::thread::Builder;

use clap::Parser;
use common::report::{self, Failed};
use lifecycle::{Permit, Semaphore, Server, shutdown};
use socket2::{SockAddr, Socket};

/// TCP concurrent server: one thread per client
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Maximum number of clients, and so of threads
    #[arg(long, default_value_t = 256, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_conns: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, max_conns } = Args::parse();
    // SIGTERM and SIGINT request a shutdown. A signal also interrupts accept (EINTR).
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    // A shutdown makes accept on this socket fail, even if the signal arrives before the call.
    shutdown::register(&listener);

    // All threads share the options and the log. The last owner frees them.
    let server = Arc::new(server);
    let permits = Semaphore::new(max_conns.into());
    report::ready(&listener);

    while !shutdown::requested() {
        // At the limit, sleep until a thread ends. New clients wait in the listener's backlog.
        let permit = permits.acquire();
        // Sleep until a client connects.
        let (conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // The thread serves this client and ends.
        let shared = Arc::clone(&server);
        let serve_client = move || worker(&shared, conn, &peer, permit);
        // Builder, because thread::spawn panics if the kernel cannot create a thread. After an
        // error the closure is dropped: this closes the connection and releases the permit.
        if let Err(e) = Builder::new().stack_size(STACK).spawn(serve_client) {
            server.log.repeated("WARN", &format!("clone: {e}"));
        }
    }

    // Wait for the threads: the end of main ends the process with all its threads.
    permits.wait_for_all();
    server.log.cpu_time();
    Ok(())
}

/// Bytes of address space for a stack. Memory is used only for the pages that the thread touches,
/// about 16 KiB. glibc keeps up to 40 MiB of stacks of ended threads for new threads.
const STACK: usize = 1024 * 1024;

/// The whole life of a thread: it serves one client.
fn worker(server: &Server, mut conn: Socket, peer: &SockAddr, permit: Permit) {
    server.serve(&mut conn, peer);
    drop(conn); // close(2): the client reads end of file
    drop(permit); // after the close: at most max_conns connections are open
}
