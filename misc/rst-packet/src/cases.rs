//! The cases of the table: both ends of a connection in one process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::Builder;
use std::time::Duration;

use clap::ValueEnum;
use socket2::{Domain, Socket, Type};

use crate::closing::{Close, Limits, close, drain, linger_zero};
use crate::recorded::{Recorded, TIMEOUT, poll};

/// The cases. "We" are the end whose calls are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// The peer closes with SO_LINGER 0; we read first
    AbortRead,
    /// The peer closes with SO_LINGER 0; we write first
    AbortWrite,
    /// The peer closes with a FIN; then we send
    Fin,
    /// The peer replies and closes without reading our bytes
    Unread,
    /// The peer replies and closes after it has read our bytes
    Drained,
    /// The client sends a RST while it is in the accept queue; we are the server
    Queued,
    /// We upload; the peer replies and closes in the middle
    UploadUnread,
    /// We upload; the peer replies, sends a FIN, and reads the rest
    UploadDrain,
}

/// Plays one case. Returns the events of poll before our calls, and our calls with their results.
///
/// # Errors
/// The call that failed, or a FIN or RST that does not arrive.
pub fn play(case: Case, upload: usize) -> io::Result<(String, String)> {
    match case {
        Case::Queued => queued(),
        Case::UploadUnread => upload_to(Close::Unread, upload),
        Case::UploadDrain => upload_to(Close::Drain, upload),
        case => closed(case),
    }
}

/// The peer closes before our first call.
fn closed(case: Case) -> io::Result<(String, String)> {
    let (mut ours, peer) = pair()?;
    match case {
        Case::AbortRead | Case::AbortWrite => linger_zero(peer)?,
        Case::Unread => {
            ours.conn().send(b"hello\n")?;
            close(peer, Close::Unread, &limits(0))?;
        }
        Case::Drained => {
            ours.conn().send(b"hello\n")?;
            ours.shut_down_write()?;
            drain(peer, &limits(1 << 20))?;
        }
        _ => drop(peer), // close: a FIN
    }
    ours.wait_end()?;
    let poll = ours.poll_now()?;
    for call in calls(case).split(' ') {
        match call {
            "recv" => ours.recv(),
            "send" => ours.send(b"x"),
            // The RST for the data that we have sent.
            _ => ours.wait_reset(TIMEOUT).map(|()| ours.so_error())?,
        }
    }
    Ok((poll, ours.calls()))
}

fn calls(case: Case) -> &'static str {
    match case {
        Case::AbortRead => "recv recv send send",
        Case::AbortWrite => "send send recv",
        Case::Fin => "recv send SO_ERROR send recv",
        Case::Unread => "recv recv send",
        _ => "recv recv",
    }
}

/// The kernel does the handshake and receives the RST: accept returns a connection that has ended.
fn queued() -> io::Result<(String, String)> {
    let (listener, client) = connect()?;
    linger_zero(client)?;
    let events = poll(&listener, libc::POLLIN, TIMEOUT)?;
    let (conn, _) = listener.accept()?;
    let mut ours = Recorded::new(conn)?;
    ours.record("accept ok");
    ours.wait_reset(TIMEOUT)?;
    ours.getpeername();
    ours.recv();
    ours.recv();
    ours.send(b"x");
    let poll = if events & libc::POLLIN != 0 { "(the listener) IN" } else { "(the listener)" };
    Ok((poll.to_owned(), ours.calls()))
}

/// The peer is a thread, because an upload without a reader would block.
fn upload_to(how: Close, bytes: usize) -> io::Result<(String, String)> {
    let (mut ours, peer) = pair()?;
    let limits = limits(2 * bytes); // a limit that is not reached
    let peer = Builder::new().spawn(move || close(peer, how, &limits))?;
    ours.upload(bytes);
    if how == Close::Drain {
        // Without our FIN the peer would read until its timeout.
        ours.shut_down_write()?;
    }
    ours.recv();
    ours.recv();
    let poll = ours.poll_now()?;
    peer.join().map_err(|_| io::Error::other("the peer's thread panicked"))??;
    Ok((poll, ours.calls()))
}

fn limits(drain_bytes: usize) -> Limits {
    Limits { idle: TIMEOUT, drain_time: Duration::from_secs(30), drain_bytes }
}

/// A listener on a port that the kernel chooses, and a client in its accept queue.
fn connect() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&listener.local_addr()?)?;
    Ok((listener, client))
}

/// Our end and the peer's end.
fn pair() -> io::Result<(Recorded, Socket)> {
    let (listener, client) = connect()?;
    let (peer, _) = listener.accept()?;
    Ok((Recorded::new(client)?, peer))
}
