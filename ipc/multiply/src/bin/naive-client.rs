//! The ancestor's client with its mistake: the server sends two messages, so it calls recv twice.
//!
//! Run: cargo run -p multiply --bin naive-client -- 5 10
//! Try: cargo run -p multiply --bin naive-client -- --repeat 2000 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use common::cli::PORT;
use common::report::{Failed, escape};

/// Client that takes the first recv for the acknowledgement and the second one for the result
#[derive(Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    /// Host name or address of the server
    #[arg(short = 'i', long, default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// Port of the server
    #[arg(short, long, default_value_t = PORT)]
    port: u16,
    /// Send the first N bytes, pause, and send the rest
    #[arg(long, value_name = "N")]
    split: Option<usize>,
    /// The length of this pause in ms
    #[arg(long, default_value_t = 200, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pause: u64,
    /// Repeat this many times, and count what the first recv returned
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    first: String,
    second: String,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let mut out = io::stdout();
    let mut counts = BTreeMap::new();
    for _ in 0..args.repeat {
        let server = || format!("server {} port {}", args.host, args.port);
        let (first, second) = ask(&args).with_context(server)?;
        if args.repeat == 1 {
            let _ = writeln!(out, "Acknowledgment: {first}\nResult from server: {second}");
        }
        *counts.entry(first).or_insert(0) += 1;
    }
    if args.repeat > 1 {
        for (first, count) in counts {
            let _ = writeln!(out, "{count:>6} times the first recv returned \"{first}\"");
        }
    }
    Ok(())
}

fn ask(args: &Args) -> io::Result<(String, String)> {
    let mut conn = TcpStream::connect((args.host.as_str(), args.port))?;
    conn.set_read_timeout(Some(Duration::from_secs(10)))?;
    conn.set_nodelay(true)?;
    let request = format!("{} {}", args.first, args.second);
    let cut = args.split.unwrap_or(request.len()).min(request.len());
    let (now, later) = request.as_bytes().split_at(cut);
    conn.write_all(now)?;
    if !later.is_empty() {
        thread::sleep(Duration::from_millis(args.pause));
        // The server may have answered and closed already. Its answer can still be read.
        let _ = conn.write_all(later);
    }
    // The mistake, twice.
    let first = receive(&mut conn)?;
    let second = receive(&mut conn).unwrap_or_default();
    Ok((first, second))
}

fn receive(conn: &mut TcpStream) -> io::Result<String> {
    let mut buffer = [0; 1024];
    let n = conn.read(&mut buffer)?;
    Ok(escape(&String::from_utf8_lossy(buffer.get(..n).unwrap_or_default())))
}
