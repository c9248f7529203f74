//! The cases of the table: both ends of a connection in one process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::Builder;
use std::time::Duration;

use clap::ValueEnum;
use socket2::{Domain, Socket, Type};

use crate::closing::{Close, Limits, close, linger_zero, polite};
use crate::ours::{Ours, PATIENCE, poll};

/// The cases. "We" are the end whose calls are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
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

/// What one case shows.
pub struct Row {
    /// What poll(2) says before the calls.
    pub poll: String,
    /// The calls and what each said.
    pub calls: String,
}

enum Call {
    Recv,
    Send,
    /// The answer to a send that worked is waited for, and asked of SO_ERROR.
    Reset,
}

/// Plays one case; `upload` is for the two that upload.
///
/// # Errors
/// No socket, no thread, or an end that does not come.
pub fn show(case: Case, upload: usize) -> io::Result<Row> {
    match case {
        Case::Queued => queued(),
        Case::UploadRude => uploading(upload, Close::Unread),
        Case::UploadPolite => uploading(upload, Close::Polite),
        case => closed(case),
    }
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
    for call in calls(case) {
        match call {
            Call::Recv => ours.recv(),
            Call::Send => ours.send(b"x"),
            Call::Reset => {
                ours.wait_reset(PATIENCE)?;
                ours.so_error();
            }
        }
    }
    Ok(Row { poll, calls: ours.calls() })
}

fn calls(case: Case) -> &'static [Call] {
    match case {
        Case::AbortRead => &[Call::Recv, Call::Recv, Call::Send, Call::Send],
        Case::AbortWrite => &[Call::Send, Call::Send, Call::Recv],
        Case::Fin => &[Call::Recv, Call::Send, Call::Reset, Call::Send, Call::Recv],
        Case::Unread => &[Call::Recv, Call::Recv, Call::Send],
        _ => &[Call::Recv, Call::Recv],
    }
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
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
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
