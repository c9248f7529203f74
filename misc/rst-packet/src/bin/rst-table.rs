//! Both ends of a connection in one process: what poll and each call say after the peer has closed, case by case.
//!
//! Run: cargo run -p rst-packet --bin rst-table
//! Try: unshare -rn sh -c 'ip link set lo up; target/debug/rst-table'

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::thread::Builder;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use rst_packet::closing::{Close, Limits, close, linger_zero, polite};
use rst_packet::counters::Counters;
use rst_packet::ours::{Ours, PATIENCE, poll};
use socket2::{Domain, Socket, Type};

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// The cases. "We" are the end whose calls are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// The peer closes with SO_LINGER 0; we read first
    AbortRead,
    /// The peer closes with SO_LINGER 0; we write first
    AbortWrite,
    /// The peer closes: a FIN; what we send after it has no reader
    Fin,
    /// The peer replies and closes with our bytes unread
    Unread,
    /// The peer replies and closes after it has read our bytes
    Drained,
    /// The client resets while it waits in the accept queue; we are the server
    Queued,
    /// We upload; the peer replies and closes in the middle
    UploadRude,
    /// We upload; the peer replies, sends FIN, and drains
    UploadPolite,
}

/// What poll and each call say after the peer has closed
#[derive(Parser)]
struct Args {
    /// Cases to show [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Bytes of an upload
    #[arg(long, default_value_t = 25 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16_777_216..=1 << 30))]
    upload: u32,
}

/// What one case shows.
struct Row {
    poll: String,
    calls: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let cases = if args.cases.is_empty() { Case::value_variants().to_vec() } else { args.cases };
    if let Err(e) = Counters::read() {
        return fail(UNAVAILABLE, &format!("the kernel's counters: {e}"));
    }
    let mut out = io::stdout();
    let _ = writeln!(out, "{:14}{:23}{:9}{:8}{:9}calls in order", "case", "poll", "OutRsts", "OnData", "OnClose");
    for case in cases {
        match measure(case, args.upload as usize) {
            Ok((Row { poll, calls }, moved)) => {
                let (rsts, data, close) = (moved.out_rsts, moved.abort_on_data, moved.abort_on_close);
                let _ = writeln!(out, "{:14}{poll:23}{rsts:<9}{data:<8}{close:<9}{calls}", word(case));
            }
            Err(e) => return fail(1, &format!("{}: {e}", word(case))),
        }
    }
    ExitCode::SUCCESS
}

fn fail(status: u8, why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "Error: {why}");
    ExitCode::from(status)
}

fn word(case: Case) -> String {
    case.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn measure(case: Case, upload: usize) -> io::Result<(Row, Counters)> {
    let before = Counters::read()?;
    let row = match case {
        Case::Queued => queued()?,
        Case::UploadRude => uploading(upload, Close::Unread)?,
        Case::UploadPolite => uploading(upload, Close::Polite)?,
        case => closed(case)?,
    };
    Ok((row, Counters::read()?.since(&before)))
}

/// The peer does all that it does before we make the first of the calls that are shown.
fn closed(case: Case) -> io::Result<Row> {
    let (mut ours, peer) = pair()?;
    match case {
        Case::AbortRead | Case::AbortWrite => linger_zero(peer)?,
        Case::Unread => {
            ours.send_before(b"hello\n")?;
            close(peer, Close::Unread, &limits(0))?;
        }
        Case::Drained => {
            ours.send_before(b"hello\n")?;
            ours.shut_write()?;
            polite(peer, &limits(1 << 20))?;
        }
        _ => drop(peer), // close: a FIN
    }
    ours.wait_end()?;
    let poll = ours.poll_now()?;
    match case {
        Case::AbortRead => {
            ours.recv();
            ours.recv();
            ours.send(b"x");
            ours.send(b"x");
        }
        Case::AbortWrite => {
            ours.send(b"x");
            ours.send(b"x");
            ours.recv();
        }
        Case::Fin => {
            ours.recv();
            ours.send(b"x");
            ours.wait_reset(PATIENCE)?;
            ours.so_error();
            ours.send(b"x");
            ours.recv();
        }
        Case::Unread => {
            ours.recv();
            ours.recv();
            ours.send(b"x");
        }
        _ => {
            ours.recv();
            ours.recv();
        }
    }
    Ok(Row { poll, calls: ours.calls() })
}

/// The handshake is the kernel's work, and so is the reset: accept hands out a connection that is over.
fn queued() -> io::Result<Row> {
    let (listener, client) = connected()?;
    linger_zero(client)?;
    let seen = poll(&listener, libc::POLLIN, PATIENCE)?;
    let (conn, _) = listener.accept()?;
    let mut ours = Ours::new(conn)?;
    ours.say("accept ok");
    ours.wait_reset(PATIENCE)?;
    ours.getpeername();
    ours.recv();
    ours.recv();
    ours.send(b"x");
    let poll = if seen & libc::POLLIN != 0 { "(the listener) IN" } else { "(the listener)" };
    Ok(Row { poll: poll.to_owned(), calls: ours.calls() })
}

/// The peer is a thread here, since an upload that nobody reads would stop.
fn uploading(bytes: usize, how: Close) -> io::Result<Row> {
    let (mut ours, peer) = pair()?;
    // Twice what is to come: a limit that is not reached.
    let limits = limits(2 * bytes);
    let peer = Builder::new().spawn(move || close(peer, how, &limits))?;
    ours.upload(bytes);
    if how == Close::Polite {
        // Without our FIN the peer would drain until it is out of time.
        ours.shut_write()?;
    }
    ours.recv();
    ours.recv();
    let poll = ours.poll_now()?;
    match peer.join() {
        Ok(done) => done.map(|_| Row { poll, calls: ours.calls() }),
        Err(_) => Err(io::Error::other("the peer's thread panicked")),
    }
}

fn limits(drain_bytes: usize) -> Limits {
    Limits { idle: PATIENCE, drain_time: Duration::from_secs(30), drain_bytes }
}

/// A listener on a port of the kernel's choice, and a client in its queue.
fn connected() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&listener.local_addr()?)?;
    Ok((listener, client))
}

/// Our end and the peer's.
fn pair() -> io::Result<(Ours, Socket)> {
    let (listener, client) = connected()?;
    let (peer, _) = listener.accept()?;
    Ok((Ours::new(client)?, peer))
}
