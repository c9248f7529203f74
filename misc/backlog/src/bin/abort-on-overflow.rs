//! What net.ipv4.tcp_abort_on_overflow changes: nothing for a SYN, but a late handshake gets a RST.
//!
//! The setting is about the last ACK of a handshake that meets a full accept queue. A dropped SYN
//! never gets that far.
//!
//! Run: cargo run -p backlog --bin abort-on-overflow

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backlog::probe::{
    SYN_SENT, connect, connected, info, listen, result, set_tcp_option, wait_for, wait_queued,
};
use backlog::{Stop, network, print_line};
use clap::Parser;
use nix::errno::Errno;

/// The program waits this long for a result of a client.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// What tcp_abort_on_overflow changes. Runs in its own network namespace
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    backlog::run("abort-on-overflow", run)
}

/// Both settings for a dropped SYN, then both for a late handshake.
fn run() -> Result<(), Stop> {
    print_line("                      abort_on_overflow  seen by the client in 1.5 s");
    for value in [0, 1] {
        network::set("ipv4/tcp_abort_on_overflow", value)?;
        print_line(&format!("SYN, full queue       {value:>17}  {}", syn_at_full_queue()?));
    }
    for value in [0, 1] {
        network::set("ipv4/tcp_abort_on_overflow", value)?;
        print_line(&format!("last ACK, full queue  {value:>17}  {}", late_handshake()?));
    }
    Ok(())
}

/// The queue is full before the SYN arrives.
fn syn_at_full_queue() -> Result<String, Stop> {
    let (_listener, addr) = listen(0)?;
    let _fills_the_queue = connected(addr)?;
    let client = connect(addr)?;
    wait_for(TIMEOUT, || Ok::<_, Stop>(info(&client)?.state != SYN_SENT))?;
    Ok(result(&client))
}

/// A handshake whose last step is late. With TCP_DEFER_ACCEPT a connection enters the accept queue
/// with its first data, so more connections can be on their way than the queue has room for. On a
/// real network the round-trip time has this effect.
fn late_handshake() -> Result<String, Stop> {
    let (listener, addr) = listen(1)?;
    set_tcp_option(&listener, libc::TCP_DEFER_ACCEPT, 30)?;
    // Two connections may be on their way at once, so the third starts when the first is queued.
    let (first, second) = (connected(addr)?, connected(addr)?);
    first.send(b"1").context("send")?;
    wait_queued(&listener, 1)?;
    let third = connected(addr)?;
    second.send(b"2").context("send")?;
    wait_queued(&listener, 2)?;
    third.send(b"3").context("send")?;
    let mut error = None;
    wait_for(TIMEOUT, || {
        error = third.take_error().context("getsockopt SO_ERROR")?;
        Ok::<_, Stop>(error.is_some())
    })?;
    Ok(match error {
        Some(e) => Errno::from_raw(e.raw_os_error().unwrap_or_default()).to_string(),
        None => format!("{}; the queue has {} others", result(&third), info(&listener)?.queued),
    })
}
