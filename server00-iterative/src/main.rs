//! TCP iterative server: one client at a time, in one process.
//!
//! Run: cargo run -p server00-iterative
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: none
//! Next: server01-fork
//! Diff base: none
//! Overload: queue (in the listener's backlog, until the client in front is done or meets a deadline)

use std::io::ErrorKind::Interrupted;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use common::sock::bind_failed;
use lifecycle::{BACKLOG, Server, shutdown};
use socket2::{Domain, Socket, Type};

/// TCP iterative server: one client at a time
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
}

fn main() -> Result<(), Failed> {
    let Args { server } = Args::parse();
    shutdown::on_signals(&server.limits)?;

    let addr = server.listen.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    // Without it a restart would wait for the last run's connections to leave TIME_WAIT.
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    // Accepted sockets inherit it. Two answers in a row would otherwise wait for the client's delayed ACK.
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).map_err(|e| bind_failed(addr, &e))?;
    // From here on the kernel completes handshakes and queues them, whether or not anybody calls accept.
    listener.listen(BACKLOG).with_context(|| format!("listen {addr}"))?;
    shutdown::register(&listener);
    report::ready(&listener);

    while !shutdown::requested() {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal came while accept slept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        server.serve(&mut conn, &peer);
        drop(conn); // close: the client sees the end of the stream
    }

    server.log.cpu_time();
    Ok(())
}
