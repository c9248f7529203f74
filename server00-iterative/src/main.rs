//! TCP iterative server: one process serves one client at a time.
//!
//! Run: cargo run -p server00-iterative
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: none
//! Next: server01-fork
//! Diff base: none
//! Overload: queue (the other clients wait in the listener's backlog)

use std::io::ErrorKind::Interrupted;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use common::sock::bind_failed;
use lifecycle::{BACKLOG, Server, shutdown};
use socket2::{Domain, Socket, Type};

/// TCP iterative server: one process serves one client at a time
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
}

fn main() -> Result<(), Failed> {
    let Args { server } = Args::parse();
    // SIGTERM and SIGINT request a shutdown. A signal also interrupts accept (EINTR).
    shutdown::on_signals(&server.limits)?;

    let addr = server.listen.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    // Without SO_REUSEADDR, bind fails while connections of the last run are in TIME_WAIT.
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    // Accepted sockets inherit TCP_NODELAY. Without it, the second of two answers is delayed
    // until the client's delayed ACK for the first answer arrives.
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).map_err(|e| bind_failed(addr, &e))?;
    // From now on the kernel completes handshakes and keeps the connections in the backlog.
    listener.listen(BACKLOG).with_context(|| format!("listen {addr}"))?;
    // A shutdown makes accept on this socket fail, even if the signal arrives before the call.
    shutdown::register(&listener);
    report::ready(&listener);

    while !shutdown::requested() {
        // Sleep until a client connects.
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // Serve this client until its session ends.
        // Until then the other clients wait in the backlog.
        server.serve(&mut conn, &peer);
        drop(conn); // close(2): the client reads end of file
    }

    server.log.cpu_time();
    Ok(())
}
