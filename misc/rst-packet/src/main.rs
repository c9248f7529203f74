//! TCP server that only closes: each client gets a RST, or a FIN after all its data was read.
//!
//! Run: cargo run -p rst-packet
//! Try: cargo run -p rst-packet --bin rst-client
//! Overload: queue (in the listener's backlog: one client at a time)

use std::io::ErrorKind::Interrupted;
use std::time::Duration;

use clap::Parser;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use rst_packet::closing::{Close, Limits, close};

/// TCP server that only closes its connections, with a RST or with a FIN
#[derive(Parser)]
#[command(mut_arg("idle_timeout", |arg| arg.default_value("5000")))]
struct Args {
    #[command(flatten)]
    server: Server,
    /// How the server closes each connection
    #[arg(long, value_enum, default_value_t = Close::Linger)]
    close: Close,
    /// With --close drain: how long to wait for the client's FIN
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    drain_time: u64,
    /// With --close drain: how many bytes to discard in this time
    #[arg(long, default_value_t = 65_536, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    drain_bytes: u32,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let server = &args.server;
    let limits = Limits {
        idle: Duration::from_millis(server.limits.idle_timeout),
        drain_time: Duration::from_millis(args.drain_time),
        drain_bytes: args.drain_bytes as usize,
    };
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);
    report::ready(&listener);

    while !shutdown::requested() {
        let (conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // While this client is served, a signal ends the waits for its data instead of accept.
        shutdown::register(&conn);
        match (close(conn, args.close, &limits), peer.as_socket()) {
            (Ok(text), Some(addr)) => server.log.info(&format!("client {addr}: {text}")),
            (result, _) => server.log.client(&peer, &result.map(drop)),
        }
        shutdown::register(&listener);
    }

    server.log.cpu_time();
    Ok(())
}
