//! The ancestor's server, with its mistake: it takes one `recv` for one request.
//!
//! Run: cargo run -p multiply --bin naive-server
//! Try: cargo run -p multiply --bin naive-client -- --split 3 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (the listener's backlog; one client at a time)

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, listen};
use multiply::stop;
use socket2::Socket;

/// Longer than any experiment takes; a client that says nothing does not hold the server for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server that answers 5.0 to 5 times 10
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    log: Log,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    stop::on_signal()?;
    let listener = listen(&args.listen, 1024)?;
    stop::watch(&listener);
    let mut backoff = Backoff::default();
    while stop::count() == 0 {
        match listener.accept() {
            Ok((mut conn, peer)) => args.log.client(&peer, &one_request(&mut conn, &args.log)),
            Err(_) if stop::count() > 0 => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => backoff.accept_failed(&e, &args.log)?,
        }
    }
    Ok(())
}

fn one_request(conn: &mut Socket, log: &Log) -> std::io::Result<()> {
    conn.set_read_timeout(Some(PATIENCE))?;
    conn.set_write_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 1024];
    // The mistake: whatever has come so far is taken for the whole request.
    let n = conn.read(&mut buffer)?;
    let data = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned();
    log.info(&format!("received data: {data}"));
    conn.write_all(b"Data received")?;
    let numbers: Vec<f64> = data.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [a, b] = numbers.as_slice() {
        // The other half of the mistake: nothing says where the acknowledgement ends and the result begins.
        conn.write_all(format!("{:?}", a * b).as_bytes())?;
    }
    Ok(())
}
