//! A client that waits until the server has closed, and then shows what each call returns.
//!
//! Run: cargo run -p rst-packet --bin rst-client
//! Try: start `cargo run -p rst-packet -- --close unread`, and here add --send hello

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::report::Failed;
use rst_packet::recorded::{Recorded, TIMEOUT};
use socket2::{Domain, Socket, Type};

/// After a successful send: how long to wait for the RST.
const RESET_TIMEOUT: Duration = Duration::from_secs(1);

/// The first call after the server has closed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum First {
    Read,
    Write,
}

/// Client of rst-packet: shows what each call returns after the server has closed
#[derive(Parser)]
struct Args {
    /// The server's address
    #[arg(short = 'i', long, default_value = "127.0.0.1", value_name = "ADDR")]
    host: IpAddr,
    /// The server's port
    #[arg(short, long, default_value_t = common::cli::PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The first call after the server has closed
    #[arg(long, value_enum, default_value_t = First::Read)]
    first: First,
    /// Send this text before the server closes
    #[arg(long, value_name = "TEXT", conflicts_with = "upload")]
    send: Option<String>,
    /// Send this number of bytes before the server closes
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    upload: Option<u32>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let server = SocketAddr::new(args.host, args.port);
    let conn = Socket::new(Domain::for_address(server), Type::STREAM, None).context("socket")?;
    // SO_SNDTIMEO also limits connect.
    conn.set_write_timeout(Some(TIMEOUT)).context("setsockopt SO_SNDTIMEO")?;
    let connected = conn.connect(&server.into());
    let mut ours = Recorded::new(conn).context("setsockopt SO_RCVTIMEO")?;
    match connected {
        Ok(()) => {}
        // The RST of a fast server can arrive before connect returns.
        Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => ours.record("connect ECONNRESET"),
        Err(e) => return Err(Failed::new(format!("connect {server}: {e}"))),
    }

    if let Some(text) = &args.send {
        ours.send(text.as_bytes());
    }
    if let Some(bytes) = args.upload {
        ours.upload(bytes as usize);
    }
    ours.wait_end().with_context(|| format!("{server}"))?;
    let poll = ours.poll_now().context("poll")?;
    if args.first == First::Read {
        ours.recv();
        ours.recv();
    }
    send(&mut ours);
    ours.send(b"x");
    if args.first == First::Write {
        ours.recv();
    }
    writeln!(io::stdout(), "poll   {poll}\ncalls  {}", ours.calls()).context("stdout")?;
    Ok(())
}

/// A successful send has only filled a buffer. The RST for the data arrives later, if at all.
fn send(ours: &mut Recorded) {
    ours.send(b"x");
    if ours.calls().ends_with("ok") && ours.wait_reset(RESET_TIMEOUT).is_ok() {
        ours.so_error();
    }
}
