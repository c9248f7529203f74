//! A client that lets the server close, and then says what each further call returns.
//!
//! Run: cargo run -p rst-packet --bin rst-client
//! Try: cargo run -p rst-packet -- --close unread, and here --send hello

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::report::Failed;
use rst_packet::ours::{Ours, PATIENCE};
use socket2::{Domain, Socket, Type};

/// After a send that worked: so long a reset may take.
const RESET: Duration = Duration::from_secs(1);

/// Which call meets the closed connection first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum First {
    Read,
    Write,
}

/// Client of rst-packet: lets the server close, and shows what each further call returns
#[derive(Parser)]
struct Args {
    /// The server's address
    #[arg(short = 'i', long, default_value = "127.0.0.1", value_name = "ADDR")]
    host: IpAddr,
    /// The server's port
    #[arg(short, long, default_value_t = common::cli::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The call that meets the closed connection first
    #[arg(long, value_enum, default_value_t = First::Read)]
    first: First,
    /// Bytes to send before the server closes
    #[arg(long, value_name = "TEXT", conflicts_with = "upload")]
    send: Option<String>,
    /// Number of bytes to send before the server closes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    upload: Option<u32>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let server = std::net::SocketAddr::new(args.host, args.port);
    let conn = Socket::new(Domain::for_address(server), Type::STREAM, None).context("socket")?;
    // It bounds connect too, and a connect that sleeps in the kernel is hardly ever late for the reset of a fast server.
    conn.set_write_timeout(Some(PATIENCE)).context("setsockopt SO_SNDTIMEO")?;
    let connected = conn.connect(&server.into());
    let mut ours = Ours::new(conn).context("setsockopt SO_RCVTIMEO")?;
    match connected {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => ours.say("connect ECONNRESET"),
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

/// A send that works only fills a buffer; what the peer says to it comes a moment later, if at all.
fn send(ours: &mut Ours) {
    ours.send(b"x");
    if ours.calls().ends_with("ok") && ours.wait_reset(RESET).is_ok() {
        ours.so_error();
    }
}
