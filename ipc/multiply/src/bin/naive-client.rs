//! The ancestor's client, with its mistake: two messages were sent, so two `recv` are taken for them.
//!
//! Run: cargo run -p multiply --bin naive-client -- 5 10
//! Try: cargo run -p multiply --bin naive-client -- --repeat 2000 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::Failed;
use socket2::{Domain, Socket, Type};

/// The client that reads the acknowledgement and the result as one
#[derive(Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    #[command(flatten)]
    server: Listen,
    /// Send the first N bytes, wait, and send the rest
    #[arg(long, value_name = "N")]
    split: Option<usize>,
    /// How long that wait is, in ms
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pause: u64,
    /// Do it so often, and count what the first recv held
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    first: String,
    second: String,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let addr = args.server.addr()?;
    let mut out = io::stdout();
    let mut firsts = BTreeMap::new();
    for _ in 0..args.repeat {
        let (first, second) = ask(addr, &args).with_context(|| format!("server {addr}"))?;
        if args.repeat == 1 {
            let _ = writeln!(out, "Acknowledgment: {first}\nResult from server: {second}");
        }
        *firsts.entry(first).or_insert(0) += 1;
    }
    if args.repeat > 1 {
        for (first, times) in firsts {
            let _ = writeln!(out, "{times:>6} times the first recv held {first:?}");
        }
    }
    Ok(())
}

fn ask(addr: SocketAddr, args: &Args) -> io::Result<(String, String)> {
    let mut conn = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    conn.connect(&addr.into())?;
    conn.set_read_timeout(Some(Duration::from_secs(10)))?;
    conn.set_tcp_nodelay(true)?;
    let request = format!("{} {}", args.first, args.second);
    let (now, later) = request.as_bytes().split_at(args.split.unwrap_or(request.len()).min(request.len()));
    conn.write_all(now)?;
    if !later.is_empty() {
        thread::sleep(Duration::from_millis(args.pause));
        // The server may have answered, and gone: its answer is there all the same.
        let _ = conn.write_all(later);
    }
    // The mistake, twice.
    let first = one_recv(&mut conn)?;
    let second = one_recv(&mut conn).unwrap_or_default();
    Ok((first, second))
}

fn one_recv(conn: &mut Socket) -> io::Result<String> {
    let mut buffer = [0; 1024];
    let n = conn.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned())
}
