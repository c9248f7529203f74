//! A client whose SYN was dropped: when it sends the SYN again, and when it gives up.
//!
//! Run: cargo run -p backlog --bin syn-retry
//! Try: cargo run -p backlog --bin syn-retry -- --linear 0 --give-up 1

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use backlog::probe::{SYN_SENT, connected, info, listen, result, set_tcp_option, socket, wait_for};
use backlog::{Stop, network, print_line};
use clap::Parser;
use socket2::Socket;

/// The last retry that this program waits for comes within this time.
const LAST_RETRY: Duration = Duration::from_secs(70);

/// When a client whose SYN was dropped sends it again. Runs in its own network namespace
#[derive(Parser)]
struct Args {
    /// The server accepts one connection after this many seconds
    #[arg(long, value_name = "S", default_value_t = 6,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    watch: u64,
    /// Set net.ipv4.tcp_syn_linear_timeouts: the first N retries are one second apart, then each
    /// interval is twice as long as the one before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=127))]
    linear: Option<u32>,
    /// Set TCP_SYNCNT of the client: it gives up after N retries beyond the linear ones. The server
    /// does not accept
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=127))]
    give_up: Option<u32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    backlog::run("syn-retry", || run(&args))
}

/// Fills the queue, connects one client more, and prints what happens to it.
fn run(args: &Args) -> Result<(), Stop> {
    if let Some(retries) = args.linear {
        network::set("ipv4/tcp_syn_linear_timeouts", retries)?;
    }
    let (listener, addr) = listen(0)?;
    // listen(0) has room for one connection.
    let _fills_the_queue = connected(addr)?;
    let client = socket()?;
    if let Some(retries) = args.give_up {
        set_tcp_option(&client, libc::TCP_SYNCNT, retries as libc::c_int)?;
    }
    let start = Instant::now();
    let _ = client.connect(&addr.into()); // EINPROGRESS
    print(start, "SYN sent and dropped: the accept queue is full");
    if wait_for(Duration::from_secs(args.watch), retry_printer(&client, start))?
        || args.give_up.is_some()
    {
        print(start, &format!("result seen by the client: {}", result(&client)));
        return Ok(());
    }
    print(start, "the server accepts one connection: the queue has room");
    let _conn = listener.accept().context("accept")?;
    // The kernel does not notify the client: the next retry finds the room.
    wait_for(LAST_RETRY, || Ok::<_, Stop>(info(&client)?.state != SYN_SENT))?;
    print(start, &format!("result seen by the client: {}", result(&client)));
    Ok(())
}

/// A check for `wait_for`: prints each new retry, and returns true when the client has a result.
fn retry_printer(client: &Socket, start: Instant) -> impl FnMut() -> Result<bool, Stop> {
    let mut printed = 0;
    move || {
        let now = info(client).context("getsockopt TCP_INFO")?;
        if now.retransmitted > printed && now.state == SYN_SENT {
            printed = now.retransmitted;
            print(start, &format!("retry {printed}"));
        }
        Ok(now.state != SYN_SENT)
    }
}

/// One event with the time since the first SYN.
fn print(start: Instant, event: &str) {
    print_line(&format!("{:5.2} s  {event}", start.elapsed().as_secs_f64()));
}
