//! A full accept queue: which clients connect, what the others see, what the kernel counts.
//!
//! The accept queue holds the connections whose handshake has completed and that no process has
//! accepted. listen(fd, N) makes a queue for N + 1 of them. When it is full the kernel drops a SYN
//! without an answer: the client stays in SYN-SENT and sends its SYN again after a second.
//!
//! Run: cargo run -p backlog
//! Try: cargo run -p backlog -- --backlog 1 --ss

use std::process::{Command, ExitCode, Stdio};

use backlog::probe::{
    ESTABLISHED, SYN_SENT, connect, counter, info, listen, result, wait_connected_or_dropped,
};
use backlog::{Stop, network, print_line};
use clap::Parser;
use socket2::Socket;

/// A listener whose accept queue is full. Runs in its own network namespace
#[derive(Parser)]
struct Args {
    /// The number given to listen(2); may be repeated
    #[arg(long, value_name = "N", default_values_t = [0, 1, 3], value_parser = up_to(500))]
    backlog: Vec<i32>,
    /// How many clients connect beyond that number
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = up_to(100))]
    extra: i32,
    /// Set net.core.somaxconn of the namespace
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    somaxconn: Option<u32>,
    /// Also show the sockets of the last experiment with ss(8)
    #[arg(long)]
    ss: bool,
}

/// An option from 0 to `limit`.
fn up_to(limit: i64) -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(0..=limit)
}

fn main() -> ExitCode {
    let args = Args::parse();
    backlog::run("backlog", || run(&args))
}

/// One line per backlog, then the same client at a port without a listener.
fn run(args: &Args) -> Result<(), Stop> {
    if let Some(limit) = args.somaxconn {
        network::set("core/somaxconn", limit)?;
    }
    print_line("listen(N)  clients  ESTAB  SYN-SENT  error  Recv-Q  Send-Q  overflows  drops");
    for (i, backlog) in args.backlog.iter().enumerate() {
        overfill(*backlog, args.extra, args.ss && i + 1 == args.backlog.len())?;
    }
    // A closed port is different: the kernel answers the SYN with a RST at once.
    let (listener, addr) = listen(1)?;
    drop(listener);
    let refused = connect(addr).map_or_else(|e| format!("{e:#}"), |client| result(&client));
    print_line(&format!("without a listener: {refused}"));
    Ok(())
}

/// A listener without any call of accept, and more clients than its queue has room for.
fn overfill(backlog: i32, extra: i32, show_sockets: bool) -> Result<(), Stop> {
    let before = [counter("ListenOverflows")?, counter("ListenDrops")?];
    let (listener, addr) = listen(backlog)?;
    let mut clients = Vec::new();
    for _ in 0..backlog + extra {
        // One client after the other: of SYNs that arrive together, all pass a queue that has room
        // for one.
        let overflows = counter("ListenOverflows")?;
        let client = connect(addr)?;
        wait_connected_or_dropped(&client, overflows)?;
        clients.push(client);
    }
    print_row(backlog, &listener, &clients, before)?;
    if show_sockets {
        print_sockets(&["-ltn"])?;
        print_sockets(&["-tn", "state", "syn-sent"])?;
    }
    Ok(())
}

/// The states of the clients, the two figures of the queue, and how much the kernel counters
/// ListenOverflows and ListenDrops have grown.
fn print_row(
    backlog: i32,
    listener: &Socket,
    clients: &[Socket],
    [overflows, drops]: [u64; 2],
) -> Result<(), Stop> {
    let in_state = |state| {
        clients.iter().filter(|client| info(client).is_ok_and(|info| info.state == state)).count()
    };
    let queue = info(listener)?;
    print_line(&format!(
        "{backlog:>9}  {:>7}  {:>5}  {:>8}  {:>5}  {:>6}  {:>6}  {:>9}  {:>5}",
        clients.len(),
        in_state(ESTABLISHED),
        in_state(SYN_SENT),
        clients.iter().filter(|client| !matches!(client.take_error(), Ok(None))).count(),
        queue.queued,
        queue.limit,
        counter("ListenOverflows")? - overflows,
        counter("ListenDrops")? - drops
    ));
    Ok(())
}

/// ss is a child of this process, so it runs in the same network namespace.
fn print_sockets(args: &[&str]) -> Result<(), Stop> {
    let output = Command::new("ss").args(args).stdin(Stdio::null()).output().map_err(|e| {
        Stop::Unavailable(format!("ss: {e}. Install the package iproute2, or run without --ss."))
    })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    print_line(&format!("\n$ ss {}\n{}", args.join(" "), printed.trim_end()));
    Ok(())
}
