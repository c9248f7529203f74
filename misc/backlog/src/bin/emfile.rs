//! accept(2) fails with EMFILE: three wrong event loops and four right ones.
//!
//! The error does not remove the connection from the accept queue. So the question is when the loop
//! calls accept again: at once, never, after a pause, or when a descriptor is free.
//!
//! Run: cargo run -p backlog --bin emfile
//! Try: cargo run -p backlog --bin emfile -- --mode naive

use std::fs::File;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use backlog::server::{LISTENER, Server, send_and_close};
use backlog::test_clients::{DescriptorLimit, TestClients, cpu_ms};
use backlog::{Stop, print_line, probe};
use clap::{Parser, ValueEnum};

/// Eight clients connect to a server with four free descriptors; then two leave; then one connects
#[derive(Parser)]
struct Args {
    /// Run only this mode; may be repeated
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// How long the server runs without a free descriptor, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500,
          value_parser = clap::value_parser!(u64).range(100..=10_000))]
    watch: u64,
}

/// What the server does when accept fails with EMFILE.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Eq, ValueEnum)]
enum Mode {
    /// Bug: level-triggered, ignores the error
    Naive,
    /// Bug: edge-triggered, ignores the error
    Edge,
    /// Bug: exits
    Quit,
    /// Fix: pauses accept, each time twice as long
    Backoff,
    /// Fix: removes the listener from epoll until a descriptor is free
    Unwatch,
    /// Fix: closes a spare descriptor, accepts the client and rejects it
    Reserve,
    /// Fix: serves fewer clients than it has descriptors, so that accept does not fail
    Limit,
}

fn main() -> ExitCode {
    let args = Args::parse();
    backlog::run("emfile", || run(&args))
}

/// One line per mode.
fn run(args: &Args) -> Result<(), Stop> {
    print_line("            EMFILE  wakeups  CPU ms  greeted  busy  reset  wait  2 leave  1 more");
    for mode in Mode::value_variants() {
        if args.mode.is_empty() || args.mode.contains(mode) {
            let kind = if *mode < Mode::Backoff { "bug" } else { "fix" };
            let name = format!("{mode:?}").to_lowercase();
            let row = row(*mode, Duration::from_millis(args.watch))?;
            print_line(&format!("{kind} {name:7} {row}"));
        }
    }
    Ok(())
}

/// The event loop. A connection that accept has not taken stays in the queue.
fn serve(server: &mut Server, mode: Mode, time: Duration) -> Result<(), Stop> {
    let end = Instant::now() + time;
    while server.listener.is_some() && Instant::now() < end {
        for key in server.wait(end)? {
            match key {
                LISTENER => accept(server, mode)?,
                _ => server.readable(key)?,
            }
        }
    }
    Ok(())
}

/// Accepts one client per event. After an edge there is no other event: then accepts all of them.
fn accept(server: &mut Server, mode: Mode) -> Result<(), Stop> {
    while let Some(listener) = &server.listener {
        match listener.accept() {
            // One descriptor is kept free for the connections that are rejected.
            Ok((conn, _)) if mode == Mode::Limit && server.conns.len() >= FREE - 1 => {
                send_and_close(conn, "ERR busy\n");
            }
            Ok((conn, _)) => server.greet(conn)?,
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) => {
                server.failed += 1;
                return out_of_descriptors(server, mode);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(anyhow::Error::new(e).context("accept").into()),
        }
        if mode != Mode::Edge {
            break;
        }
    }
    Ok(())
}

/// The connection stays in the queue. A level-triggered epoll reports it again at once; an
/// edge-triggered epoll does not report it again.
fn out_of_descriptors(server: &mut Server, mode: Mode) -> Result<(), Stop> {
    match mode {
        Mode::Naive | Mode::Edge => {}
        Mode::Quit => server.quit(),
        // The listener must leave the interest list: it stays readable, so the loop would spin.
        Mode::Backoff => server.pause_accept()?,
        Mode::Unwatch | Mode::Limit => server.unwatch_listener()?,
        Mode::Reserve => {
            // Closing the spare descriptor makes room for exactly one accept.
            server.spare = None;
            if let Some(Ok((conn, _))) = server.listener.as_ref().map(|listener| listener.accept())
            {
                send_and_close(conn, "ERR busy\n");
            }
            server.spare = File::open("/dev/null").ok();
        }
    }
    Ok(())
}

/// Descriptors that are free when the server starts.
const FREE: usize = 4;
/// The duration of each of the two later phases.
const LATER: Duration = Duration::from_millis(400);

/// Eight clients connect, two of the greeted ones leave, one more connects. Counts after each.
fn row(mode: Mode, watch: Duration) -> Result<String, Stop> {
    let (listener, addr) = probe::listen(64)?;
    let mut clients = TestClients::connect(addr, 8)?;
    probe::wait_queued(&listener, 8)?;
    let mut server = Server::new(listener, mode == Mode::Edge)?;
    let spare = (mode == Mode::Reserve).then(|| File::open("/dev/null"));
    server.spare = spare.transpose().context("open /dev/null")?;
    // From here on the server can open this many descriptors.
    let _limit = DescriptorLimit::leave_free(FREE)?;
    let before = cpu_ms()?;
    serve(&mut server, mode, watch)?;
    let (failed, wakeups, cpu) = (server.failed, server.wakeups, cpu_ms()? - before);
    let [first, busy, reset, waiting] = clients.results();
    clients.disconnect(2);
    serve(&mut server, mode, LATER)?;
    let [second, ..] = clients.results();
    clients.connect_one_more(addr);
    serve(&mut server, mode, LATER)?;
    let [third, ..] = clients.results();
    Ok(format!(
        "{failed:>6}  {wakeups:>7}  {cpu:>6.1}  {first:>7}  {busy:>4}  {reset:>5}  {waiting:>4}  \
         {:>+7}  {:>+6}",
        second - first,
        third - second
    ))
}
