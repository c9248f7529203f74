//! The ancestor's server with its mistake: it takes one recv for one request.
//!
//! Run: cargo run -p multiply --bin naive-server
//! Try: cargo run -p multiply --bin naive-client -- --split 3 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the listener's backlog; one client at a time)

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use clap::Parser;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use socket2::Socket;

/// A silent client is closed after this time. It is longer than any experiment.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Server that can answer 5.0 to the request 5 10
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
}

fn main() -> Result<(), Failed> {
    let Args { server } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let listener = server.listen()?;
    shutdown::register(&listener);
    report::ready(&listener);
    while !shutdown::requested() {
        match listener.accept() {
            Ok((mut conn, peer)) => server.log.client(&peer, &answer(&mut conn, &server)),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => server.accept_failed(&e)?,
        }
    }
    Ok(())
}

fn answer(conn: &mut Socket, server: &Server) -> io::Result<()> {
    conn.set_read_timeout(Some(TIMEOUT))?;
    conn.set_write_timeout(Some(TIMEOUT))?;
    let mut buffer = [0; 1024];
    // The mistake: the bytes that have arrived are taken for the whole request.
    let n = conn.read(&mut buffer)?;
    let data = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned();
    server.log.info(&format!("received data: {data}"));
    conn.write_all(b"Data received")?;
    let numbers: Vec<f64> = data.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [a, b] = numbers.as_slice() {
        // The second mistake: nothing marks the end of the acknowledgement, so the client cannot
        // find the beginning of the result.
        conn.write_all(format!("{:?}", a * b).as_bytes())?;
    }
    Ok(())
}
