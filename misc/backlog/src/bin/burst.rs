//! A burst of clients at a short accept queue (the bug) and at a long one (the fix).
//!
//! A dropped SYN is sent again after one, two, four ... seconds, so an overloaded server shows
//! latencies of whole seconds. With SYN cookies it can be worse: the client is connected, but the
//! kernel of the server has dropped its last ACK and knows nothing of it.
//!
//! Run: cargo run -p backlog --bin burst
//! Try: cargo run -p backlog --bin burst -- --syncookies 0

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use backlog::probe::{ESTABLISHED, connect, counter, info, listen, received};
use backlog::{Stop, network, print_line};
use clap::Parser;
use socket2::Socket;

/// A client that has no greeting after this time is printed as `-`.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A burst of clients at listen(1) and at listen(128). Runs in its own network namespace
#[derive(Parser)]
struct Args {
    /// How many clients connect at once
    #[arg(long, value_name = "N", default_value_t = 12,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    clients: u32,
    /// The server works this long between two calls of accept
    #[arg(long, value_name = "MS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=100))]
    every: u64,
    /// Set net.ipv4.tcp_syncookies: with 0 the kernel drops a SYN that it cannot store
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(0..=1))]
    syncookies: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    backlog::run("burst", || run(&args))
}

/// The same burst at a short queue and at a long one.
fn run(args: &Args) -> Result<(), Stop> {
    network::set("ipv4/tcp_syncookies", args.syncookies)?;
    burst("bug", 1, args)?;
    burst("fix", 128, args)
}

/// All clients connect at once to a server that accepts one, greets it, and works for a while.
fn burst(name: &str, backlog: i32, args: &Args) -> Result<(), Stop> {
    let before = [counter("ListenOverflows")?, counter("SyncookiesSent")?];
    let (listener, addr) = listen(backlog)?;
    let start = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..args.clients {
        clients.push(Client { socket: connect(addr)?, connected: None, greeted: None });
    }
    // Accepted connections stay open until the end of the burst.
    let mut conns = Vec::new();
    while clients.iter().any(|client| client.greeted.is_none()) && start.elapsed() < TIMEOUT {
        match listener.accept() {
            Ok((conn, _)) => {
                // The client does not send anything before this greeting.
                conn.send(b"hello\n").context("send")?;
                conns.push(conn);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(anyhow::Error::new(e).context("accept").into()),
        }
        // The work, during which the server does not accept.
        std::thread::sleep(Duration::from_millis(args.every));
        clients.iter_mut().for_each(|client| client.check(start.elapsed().as_secs_f64()));
    }
    print(&format!("{name} listen({backlog})"), &clients, before)
}

/// A client, and when it saw what, in seconds since the start of the burst.
struct Client {
    socket: Socket,
    connected: Option<f64>,
    greeted: Option<f64>,
}

impl Client {
    /// Stores the time of each event once.
    fn check(&mut self, now: f64) {
        if info(&self.socket).is_ok_and(|info| info.state == ESTABLISHED) {
            self.connected.get_or_insert(now);
        }
        if self.greeted.is_none() && received(&mut self.socket) == "hello" {
            self.greeted = Some(now);
        }
    }
}

/// One line per event with the times of all clients, in the order of their connect calls.
fn print(server: &str, clients: &[Client], [overflows, cookies]: [u64; 2]) -> Result<(), Stop> {
    let times = |time: fn(&Client) -> Option<f64>| {
        let text = |client| time(client).map_or("-".into(), |s| format!("{s:.1}"));
        clients.iter().map(text).collect::<Vec<String>>().join(" ")
    };
    print_line(&format!("{server} connected: {} s", times(|client| client.connected)));
    print_line(&format!("{server} greeted: {} s", times(|client| client.greeted)));
    print_line(&format!(
        "    ListenOverflows {}, SyncookiesSent {}",
        counter("ListenOverflows")? - overflows,
        counter("SyncookiesSent")? - cookies
    ));
    Ok(())
}
